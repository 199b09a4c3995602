"""What a conversion starts from: a folder or a name on the hub, and adapters for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..hub import local_folder
from ..progress import NO_PROGRESS, Progress

Adapters = str | Path | Sequence[str | Path]


def open_source(source: str | Path, lora: Adapters = (), progress: Progress = NO_PROGRESS, *,
                headers_only: bool = False) -> Checkpoint:
    """The checkpoint that ``source`` means, downloaded if it is on the hub, with adapters from either place merged.

    headers_only: see ``open_checkpoint``.
    """
    adapters: Sequence[Any] = lora if isinstance(lora, (list, tuple)) else [lora]
    folder = local_folder(source, "checkpoint", progress)
    return open_checkpoint(folder, lora=[local_folder(adapter, "checkpoint", progress) for adapter in adapters],
                           headers_only=headers_only)
