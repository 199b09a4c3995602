"""GGUF files as checkpoints: llama.cpp's container, read behind a door of our own."""

from .opening import is_gguf, open_gguf

__all__ = ["is_gguf", "open_gguf"]
