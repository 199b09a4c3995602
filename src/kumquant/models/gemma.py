"""Gemma: the Llama layout, scaled embeddings that are the head too, norms around 1 instead of 0 in the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .llama import LLAMA
from .rules import TensorRule


def around_one(rules: tuple[TensorRule, ...]) -> tuple[TensorRule, ...]:
    """The rules with every norm's weight plus one in the cache (5.2)."""
    return tuple(replace(rule, plus_one=True) if rule.role.endswith("norm") else rule for rule in rules)


def _activation(source: dict[str, Any], where: str) -> dict[str, Any]:
    """The first configs said "gelu" and meant its tanh form, as Transformers knows."""
    if source.get("hidden_activation") is None and source.get("hidden_act") in (None, "gelu"):
        return source | {"hidden_act": "gelu_pytorch_tanh"}
    return source


_KEYS = (
    "hidden_size", "intermediate_size", "attention_bias", "num_attention_heads", "num_key_value_heads", "head_dim",
    "num_hidden_layers", "rms_norm_eps", "vocab_size", "hidden_activation", "position_embedding_base",
    "context_window_size", "prefill_chunk_size", "tensor_parallel_shards", "max_batch_size",
)

GEMMA = LLAMA.extend(
    "gemma",
    without=("head", "gate_up_bias", "down_bias"),
    prepare=_activation,
    aliases={"hidden_act": "hidden_activation"},
    defaults={"tie_word_embeddings": True, "head_dim": 256},
    flags={"qkv_bias": "attention_bias", "o_bias": "attention_bias"},
    traits={"embed_scale": lambda keys: keys.count("hidden_size") ** 0.5},
    uncounted_names=(),
    format_config=_KEYS,
)
GEMMA = replace(GEMMA, tensors=around_one(GEMMA.tensors))
