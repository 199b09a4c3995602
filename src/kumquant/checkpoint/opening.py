"""Opening a source of weights, whatever it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .adapted import AdaptedCheckpoint
from .adapter import open_adapter
from .checkpoint import Checkpoint
from .gguf import is_gguf, open_gguf
from .packed import is_packed, open_packed
from .tensors import open_files


def open_checkpoint(source: str | Path, *, lora: Sequence[str | Path] = (), headers_only: bool = False) -> Checkpoint:
    """Open the checkpoint ``source``: a folder with config.json and safetensors files, packed by others or not; or a
    GGUF file.

    lora: folders of adapters to merge. headers_only: read nothing of the source but headers and configs, so that files
    without their data will do; what the config says about packed layers is then not checked. Raises CheckpointError
    (missing, damaged, contradictory), UnsupportedError (a method of quantization that cannot be taken in).
    """
    checkpoint = open_gguf(source) if is_gguf(source) else _open_folder(source, headers_only)
    return AdaptedCheckpoint(checkpoint, [open_adapter(folder) for folder in lora]) if lora else checkpoint


def _open_folder(source: str | Path, headers_only: bool) -> Checkpoint:
    stored = open_files(source)
    return open_packed(stored, trust_config=headers_only) if is_packed(stored.config) else stored
