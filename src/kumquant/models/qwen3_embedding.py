"""Qwen3-Embedding: Qwen3 whose checkpoints leave out the leading "model.". Never inferred: asked for by name."""

from __future__ import annotations

from .qwen3 import QWEN3

QWEN3_EMBEDDING = QWEN3.extend("qwen3-embedding", prefixes=(("model.", ""), ("", "")), pooling="last")
