"""The parts of packed layers as tensors of their own, for caches that hold them as they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .checkpoint import Checkpoint
from .tensors import MappedCheckpoint

_WORDS = ("I32", "U32")


class PartsCheckpoint(Checkpoint):
    """A checkpoint whose packed layers are not unpacked: words of codes read as "uint32".

    Everything but the tensors (config, small files) is that of ``unpacked``.
    """

    def __init__(self, stored: MappedCheckpoint, unpacked: Checkpoint) -> None:
        tensors = {name: replace(info, dtype="uint32") if info.dtype in _WORDS else info
                   for name, info in stored.tensors.items()}
        super().__init__(stored.folder, unpacked.config, stored.has_index, stored.files, tensors, unpacked.small_files)
        self._stored = stored

    def read_rows(self, name: str, width: int, begin: int, end: int) -> np.ndarray:
        if self.tensors[name].dtype == "uint32":
            return self._stored.raw(name, np.dtype("<u4")).reshape(-1, width)[begin:end]
        return self._stored.read_rows(name, width, begin, end)

    def prefetch(self, name: str, begin: int = 0, end: int | None = None) -> None:
        self._stored.prefetch(name, begin, end)

    def release(self, name: str, begin: int = 0, end: int | None = None) -> None:
        self._stored.release(name, begin, end)
