"""Hugging Face checkpoints: weights by name and a config, read lazily."""

from .checkpoint import Checkpoint, CheckpointFile, PackedRows, TensorInfo
from .gguf import (
    GGUF_FAMILIES,
    GGUF_ROPE_DIVISORS,
    GGUF_TYPES,
    GgufFamily,
    config_from_gguf,
    halves_order,
    is_gguf,
    llama3_divisors,
    q4_0_blocks,
    yarn_attention_factor,
)
from .opening import open_checkpoint

__all__ = [
    "GGUF_FAMILIES",
    "GGUF_ROPE_DIVISORS",
    "GGUF_TYPES",
    "Checkpoint",
    "CheckpointFile",
    "GgufFamily",
    "PackedRows",
    "TensorInfo",
    "config_from_gguf",
    "halves_order",
    "is_gguf",
    "llama3_divisors",
    "open_checkpoint",
    "q4_0_blocks",
    "yarn_attention_factor",
]
