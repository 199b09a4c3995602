"""Hugging Face checkpoints: safetensors files, with or without an index, read lazily."""

from .tensors import Checkpoint, CheckpointFile, TensorInfo, open_checkpoint

__all__ = ["Checkpoint", "CheckpointFile", "TensorInfo", "open_checkpoint"]
