"""Hugging Face checkpoints: weights by name and a config, read lazily."""

from .checkpoint import Checkpoint, CheckpointFile, PackedRows, TensorInfo
from .opening import open_checkpoint

__all__ = ["Checkpoint", "CheckpointFile", "PackedRows", "TensorInfo", "open_checkpoint"]
