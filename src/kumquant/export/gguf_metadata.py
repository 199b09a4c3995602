"""What a GGUF file says about a model: config.json in llama.cpp's keys, and the tensors that stand for formulas."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..checkpoint import GGUF_FAMILIES, GgufFamily, llama3_divisors
from ..errors import UnsupportedError
from ..models import ModelConfig, RopeSpec

# Families that llama.cpp has under another name.
_SAME_AS = {"mistral": "llama"}
_QUANTIZATION_VERSION = 2


def architecture_of(model_type: str) -> tuple[str, GgufFamily]:
    """llama.cpp's name of a family and its tensors. Raises UnsupportedError for one that is not known there."""
    wanted = _SAME_AS.get(model_type, model_type)
    for name, family in GGUF_FAMILIES.items():
        if family.model_type == wanted and family.can_export:
            return name, family
    known = sorted({family.model_type for family in GGUF_FAMILIES.values() if family.can_export} | set(_SAME_AS))
    raise UnsupportedError("this family cannot be exported to GGUF", where=model_type, expected=", ".join(known),
                           hint="Export it to safetensors.")


def model_metadata(architecture: str, config: ModelConfig, name: str, file_type: int) -> dict[str, Any]:
    """The keys "general.*" and "<architecture>.*". file_type: llama.cpp's number of the commonest tensor type."""
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers, "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads, "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim, "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps), "vocab_size": config.vocab_size,
        **_rope_keys(config.rope),
    }
    return {"general.architecture": architecture, "general.name": name, "general.file_type": file_type,
            "general.quantization_version": _QUANTIZATION_VERSION,
            **{f"{architecture}.{key}": value for key, value in keys.items()}}


def rope_divisors(rope: RopeSpec | None) -> np.ndarray | None:
    """The tensor "rope_freqs.weight", float32 (dim / 2,): what llama.cpp has instead of Llama 3's formula."""
    if rope is None or rope.type not in ("llama3", "longrope"):
        return None
    given = rope.parameters
    if rope.type == "longrope":
        return np.array(given["long_factor"], np.float32)
    return llama3_divisors(rope.theta, rope.dim, given["factor"], given["low_freq_factor"], given["high_freq_factor"],
                           given["original_max_position_embeddings"])


def _rope_keys(rope: RopeSpec | None) -> dict[str, Any]:
    if rope is None:
        return {}
    keys: dict[str, Any] = {"rope.dimension_count": rope.dim, "rope.freq_base": float(rope.theta)}
    given = rope.parameters
    if rope.type in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope.type, "rope.scaling.factor": float(given["factor"])}
    if rope.type == "yarn":
        keys["rope.scaling.original_context_length"] = given["original_max_position_embeddings"]
        for name, key in (("attention_factor", "attn_factor"), ("beta_fast", "beta_fast"), ("beta_slow", "beta_slow")):
            if given.get(name) is not None:
                keys[f"rope.scaling.yarn_{key}"] = float(given[name])
    is_plain_longrope = rope.type == "longrope" and given["short_factor"] == given["long_factor"]
    if rope.type not in ("default", "linear", "yarn", "llama3") and not is_plain_longrope:
        raise UnsupportedError("llama.cpp's file cannot say this rope scaling", where=rope.type,
                               hint="Export it to safetensors.")
    return keys
