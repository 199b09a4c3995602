"""GGUF files as checkpoints: llama.cpp's container, read behind a door of our own."""

from .checkpoint import halves_order
from .families import FAMILIES as GGUF_FAMILIES
from .families import GgufFamily, config_from_gguf
from .opening import is_gguf, open_gguf
from .rope import ROPE_DIVISORS as GGUF_ROPE_DIVISORS
from .rope import llama3_divisors, yarn_attention_factor
from .rows import q4_0_blocks
from .types import TYPES as GGUF_TYPES

__all__ = ["GGUF_FAMILIES", "GGUF_ROPE_DIVISORS", "GGUF_TYPES", "GgufFamily", "config_from_gguf", "halves_order",
           "is_gguf", "llama3_divisors", "open_gguf", "q4_0_blocks", "yarn_attention_factor"]
