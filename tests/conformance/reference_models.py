"""Tiny random models, the same everywhere: their logits by Transformers are stored in reference/.

No torch here: the tests make the weights again from the seed. numpy's RandomState is used because its stream
is frozen for good.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from kumquant.models import CacheTensor

_SIZES = {
    "vocab_size": 72, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False,
}

# Sizes that divide nothing: a head is not hidden / heads, matrices do not end with a group of 32.
_ODD = {**_SIZES, "hidden_size": 40, "intermediate_size": 52}
_LAYER_NORM = {key: value for key, value in _ODD.items() if key not in ("rms_norm_eps", "hidden_act")} | {
    "layer_norm_eps": 1e-5}
_EXPERTS = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "decoder_sparse_step": 1,
            "mlp_only_layers": []}
_GEMMA = {"head_dim": 14, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}
_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
           "image_size": 28, "patch_size": 14}


def _llama(**keys: Any) -> dict[str, Any]:
    return {"model_type": "llama", **_SIZES, "rope_theta": 10000.0, **keys}


def _scaled(length: int, **rope: Any) -> dict[str, Any]:
    return _llama(max_position_embeddings=length, rope_scaling=rope)


def _factors(first: float, last: float) -> list[float]:
    return [round(float(x), 4) for x in np.linspace(first, last, 4)]


# name -> config.json. The older spelling; Transformers writes the newer one, and the tests compare the two.
MODELS: dict[str, dict[str, Any]] = {
    "llama": _llama(),
    "llama_tied": _llama(tie_word_embeddings=True, num_key_value_heads=4),
    "llama_biases": _llama(attention_bias=True, mlp_bias=True),
    "llama_head_dim": _llama(head_dim=12, num_key_value_heads=1),
    "llama_linear": _scaled(24, type="linear", factor=2.5),
    "llama_dynamic": _scaled(24, rope_type="dynamic", factor=2.0),
    "llama_yarn": _scaled(96, rope_type="yarn", factor=4.0, original_max_position_embeddings=24),
    "llama_yarn_tuned": _scaled(24, rope_type="yarn", factor=3.0, beta_fast=16, beta_slow=2, mscale=1.2,
                                mscale_all_dim=0.7, truncate=False),
    "llama_longrope": _scaled(96, rope_type="longrope", original_max_position_embeddings=24,
                              short_factor=_factors(1.0, 1.3), long_factor=_factors(1.5, 4.5)),
    "llama_longrope_short": _scaled(96, rope_type="longrope", original_max_position_embeddings=64, factor=3.0,
                                    short_factor=_factors(1.0, 1.3), long_factor=_factors(1.5, 4.5)),
    "llama_llama3": _scaled(128, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                            original_max_position_embeddings=24),
    "llama_proportional": _scaled(64, rope_type="proportional", partial_rotary_factor=0.5, factor=1.5),
    "mistral": {"model_type": "mistral", **_SIZES, "rope_theta": 1e6, "sliding_window": 9},
    "mistral_no_window": {"model_type": "mistral", **_SIZES, "rope_theta": 1e6, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", **_SIZES, "rope_theta": 1e6},
    "qwen2_window": {"model_type": "qwen2", **_SIZES, "rope_theta": 1e6, "tie_word_embeddings": True,
                     "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 7,
                     "max_window_layers": 1},
    "qwen2_layer_types": {"model_type": "qwen2", **_SIZES, "rope_theta": 1e6, "use_sliding_window": True,
                          "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3": {"model_type": "qwen3", **_SIZES, "rope_theta": 1e6, "head_dim": 12,
              "tie_word_embeddings": True},
    "qwen3_bias": {"model_type": "qwen3", **_SIZES, "rope_theta": 1e6, "head_dim": 8, "attention_bias": True},
    "mixtral": {"model_type": "mixtral", **_ODD, "rope_theta": 1e6, "num_local_experts": 5, "num_experts_per_tok": 2,
                "sliding_window": 9},
    "mixtral_tied": {"model_type": "mixtral", **_ODD, "num_local_experts": 3, "num_experts_per_tok": 1,
                     "tie_word_embeddings": True},
    "qwen2_moe": {"model_type": "qwen2_moe", **_ODD, **_EXPERTS, "norm_topk_prob": False,
                  "shared_expert_intermediate_size": 36},
    "qwen3_moe": {"model_type": "qwen3_moe", **_ODD, **_EXPERTS, "head_dim": 10, "norm_topk_prob": True,
                  "attention_bias": True},
    "gemma": {"model_type": "gemma", **_ODD, "head_dim": 14, "hidden_act": "gelu", "tie_word_embeddings": True},
    "gemma2": {"model_type": "gemma2", **_ODD, **_GEMMA, "sliding_window": 9, "num_hidden_layers": 3,
               "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 23},
    "gemma3_text": {"model_type": "gemma3_text", **_ODD, **_GEMMA, "num_hidden_layers": 3, "sliding_window": 7,
                    "sliding_window_pattern": 2, "query_pre_attn_scalar": 9, "rope_local_base_freq": 500.0,
                    "rope_theta": 1e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "gemma3": {"model_type": "gemma3", "vision_config": _VISION, "text_config": {
        "model_type": "gemma3_text", **_ODD, **_GEMMA, "sliding_window": 7, "query_pre_attn_scalar": 9,
        "sliding_window_pattern": 2}},
    "phi": {"model_type": "phi", **_LAYER_NORM, "hidden_act": "gelu_new", "partial_rotary_factor": 0.4},
    "phi3": {"model_type": "phi3", **_ODD, "pad_token_id": 0, "sliding_window": 9, "partial_rotary_factor": 0.8},
    "phi3_longrope": {"model_type": "phi3", **_ODD, "pad_token_id": 0, "tie_word_embeddings": True,
                      "max_position_embeddings": 96, "original_max_position_embeddings": 24, "rope_scaling": {
                          "type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3, 1.3],
                          "long_factor": [1.5, 2.0, 3.0, 4.0, 5.0]}},
    "gpt2": {"model_type": "gpt2", "vocab_size": 72, "n_embd": 40, "n_layer": 2, "n_head": 4, "n_positions": 64,
             "n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    "gpt_bigcode": {"model_type": "gpt_bigcode", "vocab_size": 72, "n_embd": 40, "n_layer": 2, "n_head": 4,
                    "n_positions": 64, "n_inner": 52, "activation_function": "gelu_pytorch_tanh"},
    "gpt_neox": {"model_type": "gpt_neox", **_LAYER_NORM, "num_key_value_heads": 4, "hidden_act": "gelu",
                 "rotary_pct": 0.4},
    "gpt_neox_serial": {"model_type": "gpt_neox", **_LAYER_NORM, "num_key_value_heads": 4, "hidden_act": "gelu",
                        "rotary_pct": 1.0, "use_parallel_residual": False, "rotary_emb_base": 500},
    "starcoder2": {"model_type": "starcoder2", **_ODD, "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5,
                   "sliding_window": 9, "tie_word_embeddings": True, "use_bias": True},
    "starcoder2_own_head": {"model_type": "starcoder2", **_ODD, "hidden_act": "gelu_pytorch_tanh",
                            "norm_epsilon": 1e-5, "use_bias": False, "tie_word_embeddings": False},
    "stablelm": {"model_type": "stablelm", **_LAYER_NORM, "hidden_act": "silu", "use_qkv_bias": True,
                 "partial_rotary_factor": 0.4},
    "olmo": {"model_type": "olmo", **_ODD, "clip_qkv": 0.7},
    "olmo2": {"model_type": "olmo2", **_ODD},
    "cohere": {"model_type": "cohere", **_LAYER_NORM, "hidden_act": "silu", "logit_scale": 0.25,
               "tie_word_embeddings": True},
    "nemotron": {"model_type": "nemotron", **_ODD, "hidden_act": "relu2", "norm_eps": 1e-5, "head_dim": 20,
                 "partial_rotary_factor": 0.5, "mlp_bias": True},
    "granite": {"model_type": "granite", **_ODD, "embedding_multiplier": 3.0, "residual_multiplier": 0.4,
                "attention_multiplier": 0.2, "logits_scaling": 2.0, "attention_bias": True},
    "smollm3": {"model_type": "smollm3", **_ODD, "pad_token_id": 0, "num_hidden_layers": 3, "no_rope_layer_interval": 2,
                "tie_word_embeddings": True},
    "ministral3": {"model_type": "ministral3", **_ODD, "head_dim": 12, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e5, "factor": 4.0, "original_max_position_embeddings": 64,
        "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
}
# Their reference is published_models.py: Transformers never had them.
PUBLISHED: dict[str, dict[str, Any]] = {
    "internlm2": {"model_type": "internlm2", **_ODD, "bias": False, "rope_theta": 1e6},
    "internlm": {"model_type": "internlm", **_ODD, "num_key_value_heads": 4, "bias": True},
    "minicpm": {"model_type": "minicpm", **_ODD, "scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 16,
                "tie_word_embeddings": True},
    "minicpm_experts": {"model_type": "minicpm", **_ODD, "scale_emb": 3, "scale_depth": 1.4, "dim_model_base": 16,
                        "num_experts": 5, "num_experts_per_tok": 2},
    "baichuan": {"model_type": "baichuan", **_ODD, "num_key_value_heads": 4},
    "orion": {"model_type": "orion", **_ODD},
    "chatglm": {"model_type": "chatglm", "num_layers": 2, "padded_vocab_size": 72, "hidden_size": 40,
                "ffn_hidden_size": 52, "kv_channels": 12, "num_attention_heads": 4, "seq_length": 128,
                "layernorm_epsilon": 1e-5, "rmsnorm": True, "post_layer_norm": True, "add_bias_linear": False,
                "add_qkv_bias": True, "multi_query_attention": True, "multi_query_group_num": 2, "rope_ratio": 1.5},
    "qwen": {"model_type": "qwen", "vocab_size": 72, "hidden_size": 40, "num_hidden_layers": 2,
             "num_attention_heads": 4, "kv_channels": 10, "intermediate_size": 104, "layer_norm_epsilon": 1e-6,
             "rotary_emb_base": 10000, "seq_length": 64, "no_bias": True, "scale_attn_weights": True},
}
MODES = ("q0f32", "q4f32_1")
STORED_COLUMNS = slice(1, None, 3)
NUM_TOKENS = 44


def models_of_families() -> dict[str, list[str]]:
    """model_type -> names of its models here."""
    found: dict[str, list[str]] = {}
    for name, config_json in (MODELS | PUBLISHED).items():
        found.setdefault(config_json["model_type"], []).append(name)
    return found


def token_ids(name: str) -> list[int]:
    return [int(i) for i in _random(name).randint(0, _SIZES["vocab_size"], NUM_TOKENS)]


def weight(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weight ``name`` of a model: large enough that attention and positions matter."""
    values = _random(f"{model}/{name}").standard_normal(shape)
    if "norm" in name or ".ln" in name or name.startswith("ln_"):
        around = 0.0 if model.startswith(("gemma", "nemotron")) or name.endswith("bias") else 1.0
        values = around + 0.3 * values
    elif name.endswith("bias"):
        values = 0.5 * values
    else:
        values *= 1.6 / np.sqrt(shape[-1])
    return values.astype(np.float32)


def checkpoint_tensors(model: str, plan: Iterable[CacheTensor]) -> dict[str, np.ndarray]:
    """Every weight that a plan asks for, by its checkpoint name, sorted as Transformers writes them."""
    shapes = {name: shape for tensor in plan for name, shape in zip(tensor.sources, tensor.source_shapes)}
    return {name: weight(model, name, shape) for name, shape in sorted(shapes.items())}


def unfused(plan: Iterable[CacheTensor], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Checkpoint tensors from a cache's: cache names -> float32, logical shapes; the inverse of a conversion."""
    sources: dict[str, np.ndarray] = {}
    for tensor in plan:
        whole = values[tensor.name]
        whole = whole.T if tensor.transposed else whole.reshape(-1, *tensor.source_shapes[0][1:])
        if tensor.plus_one:
            whole = whole - np.float32(1)
        if tensor.row_order:
            order = np.concatenate([np.arange(begin, end) for begin, end in tensor.row_order])
            whole, shuffled = np.empty_like(whole), whole
            whole[order] = shuffled
        ends = np.cumsum([shape[0] for shape in tensor.source_shapes])[:-1]
        sources |= {name: np.ascontiguousarray(part) for name, part in zip(tensor.sources, np.split(whole, ends))}
    return sources


def write_checkpoint(folder: Path, config_json: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """config.json and model.safetensors."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_json))
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _random(text: str) -> np.random.RandomState:
    return np.random.RandomState(list(text.encode()))
