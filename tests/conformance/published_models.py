"""Plain float32 forward passes of models whose code was never in Transformers, for test_families.py.

Written from the modeling code that was published with each model: modeling_internlm2.py, modeling_internlm.py,
modeling_minicpm.py, modeling_baichuan.py, modeling_orion.py, modeling_chatglm.py (ChatGLM3) and modeling_qwen.py (the
first Qwen). They read checkpoint tensors by their published names, share nothing with kumquant, and compute one
sequence from its first token. w: name -> float32; c: the model's config.json.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Weights = Mapping[str, np.ndarray]
Config = Mapping[str, Any]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return weight * (x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(eps)))


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    centered = x - x.mean(-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + np.float32(eps)) * weight + bias


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def angles(length: int, dim: int, base: float) -> np.ndarray:
    inverse = 1.0 / base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    return np.outer(np.arange(length), inverse)


def rotate_half(x: np.ndarray, base: float) -> np.ndarray:
    """x (tokens, heads, dim): x * cos + rotate_half(x) * sin."""
    angle = angles(len(x), x.shape[-1], base)
    cos = np.concatenate([np.cos(angle)] * 2, -1)[:, None].astype(np.float32)
    sin = np.concatenate([np.sin(angle)] * 2, -1)[:, None].astype(np.float32)
    first, second = np.split(x, 2, -1)
    return x * cos + np.concatenate([-second, first], -1) * sin


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    """q (tokens, heads, dim), k and v (tokens, kv heads, dim) -> (tokens, heads * dim), causal."""
    share = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, share, 1), np.repeat(v, share, 1)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.float32(np.sqrt(q.shape[-1]))
    scores = np.where(np.tril(np.ones(scores.shape[1:], bool)), scores, np.float32(-np.inf))
    return np.einsum("hqk,khd->qhd", softmax(scores), v).reshape(len(q), -1)


def llama_like(c: Config, w: Weights, tokens: Sequence[int], *, qkv: Callable[..., tuple[np.ndarray, ...]],
               names: Mapping[str, str], norm: Callable[[str, np.ndarray], np.ndarray], residual: float = 1.0,
               embed: float = 1.0, logit: float = 1.0, mlp: Callable[[str, np.ndarray], np.ndarray] | None = None,
               head: str = "lm_head.weight") -> np.ndarray:
    """The skeleton that these models' authors took from Llama, with the names and the scales of each."""
    x = w[names["embed"]][np.asarray(tokens)] * np.float32(embed)
    base = c.get("rope_theta", 10000)
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        q, k, v = qkv(at, norm(at + names["attn_norm"], x))
        mixed = attention(rotate_half(q, base), rotate_half(k, base), v)
        out = mixed @ w[at + names["o"] + ".weight"].T
        if at + names["o"] + ".bias" in w:
            out = out + w[at + names["o"] + ".bias"]
        x = x + out * np.float32(residual)
        normed = norm(at + names["mlp_norm"], x)
        if mlp is not None:
            out = mlp(at, normed)
        else:
            gate, up, down = (w[at + names[part]] for part in ("gate", "up", "down"))
            out = (silu(normed @ gate.T) * (normed @ up.T)) @ down.T
        x = x + out * np.float32(residual)
    return (norm("model.norm", x) * np.float32(logit)) @ w[head].T


_LLAMA = {"embed": "model.embed_tokens.weight", "attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm",
          "o": "self_attn.o_proj", "gate": "mlp.gate_proj.weight", "up": "mlp.up_proj.weight",
          "down": "mlp.down_proj.weight"}


def _split_qkv(c: Config, w: Weights) -> Callable[..., tuple[np.ndarray, ...]]:
    heads = c["num_attention_heads"]
    counts = {"q": heads, "k": c.get("num_key_value_heads") or heads, "v": c.get("num_key_value_heads") or heads}

    def qkv(at: str, x: np.ndarray) -> tuple[np.ndarray, ...]:
        parts = []
        for part, count in counts.items():
            y = x @ w[f"{at}self_attn.{part}_proj.weight"].T
            if f"{at}self_attn.{part}_proj.bias" in w:
                y = y + w[f"{at}self_attn.{part}_proj.bias"]
            parts.append(y.reshape(len(x), count, -1))
        return tuple(parts)
    return qkv


def _rms(c: Config, w: Weights) -> Callable[[str, np.ndarray], np.ndarray]:
    return lambda name, x: rms_norm(x, w[f"{name}.weight"], c["rms_norm_eps"])


def internlm(c: Config, w: Weights, tokens: Sequence[int]) -> np.ndarray:
    return llama_like(c, w, tokens, qkv=_split_qkv(c, w), names=_LLAMA, norm=_rms(c, w))


def orion(c: Config, w: Weights, tokens: Sequence[int]) -> np.ndarray:
    def norm(name: str, x: np.ndarray) -> np.ndarray:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], c["rms_norm_eps"])
    return llama_like(c, w, tokens, qkv=_split_qkv(c, w), names=_LLAMA, norm=norm)


def baichuan(c: Config, w: Weights, tokens: Sequence[int]) -> np.ndarray:
    def qkv(at: str, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """proj.unflatten(-1, (3, hidden_size))"""
        packed = (x @ w[f"{at}self_attn.W_pack.weight"].T).reshape(len(x), 3, c["num_attention_heads"], -1)
        return packed[:, 0], packed[:, 1], packed[:, 2]
    return llama_like(c, w, tokens, qkv=qkv, names=_LLAMA, norm=_rms(c, w))


def internlm2(c: Config, w: Weights, tokens: Sequence[int]) -> np.ndarray:
    groups = c["num_key_value_heads"]
    share = c["num_attention_heads"] // groups

    def qkv(at: str, x: np.ndarray) -> tuple[np.ndarray, ...]:
        """rearrange(qkv_states, "b q (h gs d) -> b q h gs d"): per kv head its queries, then key, then value."""
        packed = (x @ w[f"{at}attention.wqkv.weight"].T).reshape(len(x), groups, share + 2, -1)
        q = packed[:, :, :share].reshape(len(x), groups * share, -1)
        return q, packed[:, :, -2], packed[:, :, -1]
    names = {"embed": "model.tok_embeddings.weight", "attn_norm": "attention_norm", "mlp_norm": "ffn_norm",
             "o": "attention.wo", "gate": "feed_forward.w1.weight", "up": "feed_forward.w3.weight",
             "down": "feed_forward.w2.weight"}
    return llama_like(c, w, tokens, qkv=qkv, names=names, norm=_rms(c, w), head="output.weight")


def minicpm(c: Config, w: Weights, tokens: Sequence[int]) -> np.ndarray:
    def experts(at: str, x: np.ndarray) -> np.ndarray:
        """MiniCPMMoE: softmax over all experts, the best few, their weights made to sum to 1."""
        scores = softmax(x @ w[f"{at}mlp.gate.weight"].T)
        y = np.zeros_like(x)
        for token in range(len(x)):
            best = np.argsort(-scores[token])[: c["num_experts_per_tok"]]
            for expert in best:
                w1, w2, w3 = (w[f"{at}mlp.experts.{expert}.{part}.weight"] for part in ("w1", "w2", "w3"))
                inner = silu(x[token] @ w1.T) * (x[token] @ w3.T)
                y[token] += scores[token][expert] / scores[token][best].sum() * (inner @ w2.T)
        return y
    return llama_like(
        c, w, tokens, qkv=_split_qkv(c, w), names=_LLAMA, norm=_rms(c, w), embed=c["scale_emb"],
        residual=c["scale_depth"] / np.sqrt(c["num_hidden_layers"]), logit=c["dim_model_base"] / c["hidden_size"],
        mlp=experts if c.get("num_experts") else None,
        head="model.embed_tokens.weight" if c["tie_word_embeddings"] else "lm_head.weight",
    )


def chatglm(c: Config, w: Weights, tokens: Sequence[int]) -> np.ndarray:
    heads, groups, dim = c["num_attention_heads"], c["multi_query_group_num"], c["kv_channels"]
    x = w["transformer.embedding.word_embeddings.weight"][np.asarray(tokens)]
    angle = angles(len(tokens), dim // 2, 10000 * c["rope_ratio"])
    cos, sin = (f(angle)[:, None].astype(np.float32) for f in (np.cos, np.sin))

    def rotate(x: np.ndarray) -> np.ndarray:
        """apply_rotary_pos_emb: the first half of a head, as (dim / 4) pairs of neighbors."""
        turned, kept = x[..., : dim // 2], x[..., dim // 2:]
        pairs = turned.reshape(*turned.shape[:-1], -1, 2)
        a, b = pairs[..., 0], pairs[..., 1]
        turned = np.stack([a * cos - b * sin, b * cos + a * sin], -1).reshape(turned.shape)
        return np.concatenate([turned, kept], -1)

    for layer in range(c["num_layers"]):
        at = f"transformer.encoder.layers.{layer}."
        normed = rms_norm(x, w[at + "input_layernorm.weight"], c["layernorm_epsilon"])
        mixed = normed @ w[at + "self_attention.query_key_value.weight"].T
        mixed = mixed + w[at + "self_attention.query_key_value.bias"]
        q, k, v = np.split(mixed, [heads * dim, (heads + groups) * dim], -1)
        q, k, v = (part.reshape(len(x), -1, dim) for part in (q, k, v))
        x = x + attention(rotate(q), rotate(k), v) @ w[at + "self_attention.dense.weight"].T
        normed = rms_norm(x, w[at + "post_attention_layernorm.weight"], c["layernorm_epsilon"])
        first, second = np.split(normed @ w[at + "mlp.dense_h_to_4h.weight"].T, 2, -1)
        x = x + (silu(first) * second) @ w[at + "mlp.dense_4h_to_h.weight"].T
    x = rms_norm(x, w["transformer.encoder.final_layernorm.weight"], c["layernorm_epsilon"])
    return x @ w["transformer.output_layer.weight"].T


def qwen(c: Config, w: Weights, tokens: Sequence[int]) -> np.ndarray:
    x, base = w["transformer.wte.weight"][np.asarray(tokens)], c["rotary_emb_base"]
    for layer in range(c["num_hidden_layers"]):
        at = f"transformer.h.{layer}."
        normed = rms_norm(x, w[at + "ln_1.weight"], c["layer_norm_epsilon"])
        mixed = normed @ w[at + "attn.c_attn.weight"].T + w[at + "attn.c_attn.bias"]
        q, k, v = (part.reshape(len(x), c["num_attention_heads"], -1) for part in np.split(mixed, 3, -1))
        x = x + attention(rotate_half(q, base), rotate_half(k, base), v) @ w[at + "attn.c_proj.weight"].T
        normed = rms_norm(x, w[at + "ln_2.weight"], c["layer_norm_epsilon"])
        inner = (normed @ w[at + "mlp.w1.weight"].T) * silu(normed @ w[at + "mlp.w2.weight"].T)
        x = x + inner @ w[at + "mlp.c_proj.weight"].T
    return rms_norm(x, w["transformer.ln_f.weight"], c["layer_norm_epsilon"]) @ w["lm_head.weight"].T


FORWARDS: dict[str, Callable[[Config, Weights, Sequence[int]], np.ndarray]] = {
    "internlm2": internlm2, "internlm": internlm, "minicpm": minicpm, "baichuan": baichuan, "orion": orion,
    "chatglm": chatglm, "qwen": qwen,
}
