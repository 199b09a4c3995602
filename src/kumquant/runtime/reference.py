"""The whole forward pass in plain NumPy, float32: the twin that the native core is tested against.

It executes a DecoderSpec and nothing else, one operation after another, as Transformers computes it. Nothing
here is fast; the order of summation is whatever NumPy does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..models import DecoderSpec, RopeSpec, inverse_frequencies

Array = np.ndarray  # always float32


def forward(spec: DecoderSpec, weights: Mapping[str, np.ndarray], token_ids: Sequence[int],
            kv_dtype: Literal["float32", "int8"] = "float32") -> Array:
    """Logits of one sequence from position 0; of an encoder the hidden states.

    weights: cache tensor name ("model.norm.weight") -> float32, matrices (out, in), experts (expert, out,
    in). kv_dtype: "int8" rounds keys and values as an int8 cache does.
    Returns float32 (tokens, vocab_size), or (tokens, hidden_size).
    """
    outer = _Tensors(spec, weights, 0)
    x = _embed(spec, outer, token_ids)
    rotations = [_rotation(rope, len(token_ids)) for rope in spec.ropes]
    for layer in range(spec.num_layers):
        x = _layer(spec, layer, _Tensors(spec, weights, layer), x, rotations, kv_dtype == "int8")
    x = outer.norm("final_norm", x)
    if spec.is_encoder:
        return x
    logits = _linear(x, outer["head" if "head" in outer else "embed"], outer.get("head_bias"))
    return _cap(logits * np.float32(spec.logit_scale), spec.final_cap)


class _Tensors:
    """The tensors of one layer (or of none) by role."""

    def __init__(self, spec: DecoderSpec, weights: Mapping[str, np.ndarray], layer: int) -> None:
        self._spec, self._weights, self._layer = spec, weights, layer

    def __contains__(self, role: str) -> bool:
        return role in self._spec.tensors

    def __getitem__(self, role: str) -> Array:
        return np.concatenate([self._weights[name] for name in self._spec.names(role, self._layer)])

    def get(self, role: str) -> Array | None:
        if role not in self:
            return None
        return self[role]

    def linear(self, role: str, x: Array) -> Array:
        return _linear(x, self[role], self.get(f"{role}_bias"))

    def norm(self, role: str, x: Array) -> Array:
        """The norm of that role; x itself where the model has none."""
        spec = self._spec
        is_bare = not spec.norm_has_weight and role in ("attn_norm", "mlp_norm", "final_norm")
        if role not in self and not is_bare:
            return x
        weight = np.float32(1) if is_bare else self[role] + np.float32(spec.norm_offset)
        if spec.norm == "rms":
            return _rms_norm(x, weight, spec.norm_eps)
        centered = x - x.mean(axis=-1, keepdims=True)
        bias = self.get(f"{role}_bias")
        normed = _rms_norm(centered, weight, spec.norm_eps)
        return normed if bias is None else normed + bias


def _embed(spec: DecoderSpec, outer: _Tensors, token_ids: Sequence[int]) -> Array:
    x = outer["embed"][np.asarray(token_ids)].astype(np.float32) * np.float32(spec.embed_scale)
    if "positions" in outer:
        x = x + outer["positions"][:len(token_ids)]
    if "token_types" in outer:
        x = x + outer["token_types"][0]
    return outer.norm("embed_norm", x)


def _layer(spec: DecoderSpec, layer: int, tensors: _Tensors, x: Array,
           rotations: list[tuple[Array, Array]], int8_kv: bool) -> Array:
    scale = np.float32(spec.residual_scale)
    if spec.norm_after_residual:
        x = tensors.norm("attn_norm", x + scale * _attention(spec, layer, tensors, x, rotations, int8_kv))
        return tensors.norm("mlp_norm", x + scale * _mlp(spec, tensors, x))
    normed = tensors.norm("attn_norm", x)
    attended = tensors.norm("attn_post_norm", _attention(spec, layer, tensors, normed, rotations, int8_kv))
    before = x if spec.parallel_block else x + scale * attended
    if "mlp_norm" in tensors or not spec.parallel_block:
        normed = tensors.norm("mlp_norm", before)
    after = x + scale * attended
    return after + scale * tensors.norm("mlp_post_norm", _mlp(spec, tensors, normed))


def _linear(x: Array, weight: np.ndarray, bias: np.ndarray | None = None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


def _rms_norm(x: Array, weight: np.ndarray | np.float32, eps: float) -> Array:
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return weight * (x / np.sqrt(mean_square + np.float32(eps)))


def _cap(x: Array, limit: float) -> Array:
    return x if limit == 0 else np.float32(limit) * np.tanh(x / np.float32(limit))


def _rotation(rope: RopeSpec, num_tokens: int) -> tuple[Array, Array]:
    """cos and sin, each (tokens, 1, dim / 2)."""
    frequencies, attention_factor = inverse_frequencies(rope, num_tokens)
    angles = (np.arange(num_tokens, dtype=np.float32)[:, None] * frequencies)[:, None, :]
    return np.cos(angles) * np.float32(attention_factor), np.sin(angles) * np.float32(attention_factor)


def _rotate(x: Array, rotation: tuple[Array, Array], interleaved: bool) -> Array:
    """x: (tokens, heads, head_dim). Pairs are (i, i + dim / 2), or (2i, 2i + 1); dimensions beyond dim
    stay."""
    cos, sin = rotation
    dim = 2 * cos.shape[-1]
    first, second = (slice(0, dim, 2), slice(1, dim, 2)) if interleaved else (slice(dim // 2),
                                                                              slice(dim // 2, dim))
    result = x.copy()
    result[..., first] = x[..., first] * cos - x[..., second] * sin
    result[..., second] = x[..., second] * cos + x[..., first] * sin
    return result


def _attention(spec: DecoderSpec, layer: int, tensors: _Tensors, x: Array,
               rotations: list[tuple[Array, Array]], int8_kv: bool) -> Array:
    num_tokens = len(x)
    qkv = tensors.linear("qkv", x)
    if spec.clip_qkv:
        qkv = np.clip(qkv, -spec.clip_qkv, spec.clip_qkv).astype(np.float32)
    query_rows, key_rows = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    parts = np.split(qkv, [query_rows, query_rows + key_rows], axis=-1)
    if spec.qk_norm and spec.qk_norm_over_all:
        parts[:2] = [_rms_norm(part, tensors[role], spec.norm_eps) for part,
                     role in zip(parts, ("q_norm", "k_norm"))]
    queries, keys, values = (part.reshape(num_tokens, -1, spec.head_dim) for part in parts)
    if spec.qk_norm and not spec.qk_norm_over_all:
        queries = _rms_norm(queries, tensors["q_norm"], spec.norm_eps)
        keys = _rms_norm(keys, tensors["k_norm"], spec.norm_eps)
    rope = spec.rope_of_layer[layer]
    if rope >= 0:
        queries = _rotate(queries, rotations[rope], spec.rope_interleaved)
        keys = _rotate(keys, rotations[rope], spec.rope_interleaved)
    if int8_kv:
        queries, keys, values = hadamard(queries), int8_rounded(hadamard(keys)), int8_rounded(values)
    sharing = spec.num_heads // spec.num_kv_heads
    keys, values = np.repeat(keys, sharing, axis=1), np.repeat(values, sharing, axis=1)
    scores = np.einsum("qhd,khd->hqk", queries, keys) * np.float32(spec.attention_scale)
    visible = _visible(num_tokens, spec.sliding_window[layer], spec.causal)
    scores = np.where(visible, _cap(scores, spec.attention_cap), np.float32(-np.inf))
    mixed = np.einsum("hqk,khd->qhd", _softmax(scores), values).reshape(num_tokens, -1)
    return tensors.linear("o", mixed)


def hadamard(x: Array) -> Array:
    """The last axis times the normalized Hadamard matrix of the largest power of two (128 at most) that divides it,
    block by block."""
    dim = x.shape[-1]
    block = min(dim & -dim, 128)
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < block:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    blocks = x.reshape(*x.shape[:-1], -1, block) @ matrix / np.float32(math.sqrt(block))
    return blocks.reshape(x.shape).astype(np.float32)


def int8_rounded(x: Array) -> Array:
    """Each row of the last axis in steps of its largest magnitude / 127, rounded up to bfloat16."""
    exact = (np.abs(x).max(axis=-1, keepdims=True) / np.float32(127)).astype(np.float32)
    step = ((exact.view(np.uint32) + 0xFFFF) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return (np.rint(np.divide(x, step, out=np.zeros_like(x), where=step > 0)) * step).astype(np.float32)


def _visible(num_tokens: int, window: int, causal: bool) -> npt.NDArray[np.bool_]:
    """(query, key): a token sees itself and earlier ones, of which the latest ``window`` (0: all)."""
    distance = np.arange(num_tokens)[:, None] - np.arange(num_tokens)[None, :]
    return ((distance >= 0) | (not causal)) & ((distance < window) | (window == 0))


def _softmax(x: Array) -> Array:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _mlp(spec: DecoderSpec, tensors: _Tensors, x: Array) -> Array:
    activation = _ACTIVATIONS[spec.activation]
    if spec.experts is not None:
        return _experts(spec, tensors, x)
    if "gate_up" in tensors:
        gate_up = tensors.linear("gate_up", x)
        if not spec.gate_first:
            gate_up = np.roll(gate_up, spec.intermediate_size, axis=-1)
        return tensors.linear("down", _gated(gate_up, activation))
    return tensors.linear("down", activation(tensors.linear("up", x)))


def _gated(gate_up: Array, activation: Callable[[Array], Array]) -> Array:
    """Gate rows stand before up rows."""
    gate, up = np.split(gate_up, 2, axis=-1)
    return activation(gate) * up


def _experts(spec: DecoderSpec, tensors: _Tensors, x: Array) -> Array:
    """Each token goes through its likeliest experts, weighed, and through the shared one if there is one."""
    experts, activation = spec.experts, _ACTIVATIONS[spec.activation]
    assert experts is not None
    probabilities = _softmax(tensors.linear("router", x))
    result = np.zeros_like(x)
    for token, row in enumerate(probabilities):
        chosen = np.argsort(-row, kind="stable")[:experts.per_token]
        total = row[chosen].sum() if experts.normalize else np.float32(1)
        for expert in chosen:
            inner = _gated(_linear(x[token], tensors["experts_gate_up"][expert]), activation)
            result[token] += row[expert] / total * _linear(inner, tensors["experts_down"][expert])
    if experts.shared_size:
        shared = tensors.linear("shared_down", _gated(tensors.linear("shared_gate_up", x), activation))
        if "shared_gate" in tensors:
            shared = shared / (1 + np.exp(-tensors.linear("shared_gate", x)))
        result = result + shared
    return result


def _silu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the quotient is rightly 0
        return x / (1 + np.exp(-x))


def _gelu(x: Array) -> Array:
    erf = np.array([math.erf(value) for value in (x / math.sqrt(2)).ravel()],
                   dtype=np.float32).reshape(x.shape)
    return np.float32(0.5) * x * (1 + erf)


def _gelu_tanh(x: Array) -> Array:
    inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)
    return np.float32(0.5) * x * (1 + np.tanh(inner))


def _relu(x: Array) -> Array:
    return np.maximum(x, np.float32(0))


_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": _silu, "gelu": _gelu, "gelu_tanh": _gelu_tanh, "relu": _relu,
    "relu2": lambda x: np.square(_relu(x)),
}
