"""Checkpoint: what every source of weights looks like to a conversion, whatever its files are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError
from ..files import translated_os_errors
from ..schemes import Scheme
from .folder import CONFIG_NAME
from .rows import columns_as_rows


@dataclass(frozen=True)
class TensorInfo:
    """A tensor of the checkpoint.

    dtype: what ``read`` gives, "float32", "float16" or "bfloat16"; else safetensors' tag of something that is no
    weight. file: the name of the file it is in. nbytes: what it takes there. stored_as: how, where that is not
    plainly as ``dtype`` ("4-bit GPTQ, group 128, symmetric"). scale_dtype: of its own scales, if it has any.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    nbytes: int
    stored_as: str = ""
    scale_dtype: str = ""

    @property
    def num_values(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count


@dataclass(frozen=True)
class CheckpointFile:
    """One file of weights, with what tells whether it is still the same one later."""

    name: str
    nbytes: int
    mtime_ns: int
    header_sha256: str


class PackedRows(NamedTuple):
    """Rows that were quantized by somebody else, in a scheme's own layout (not transposed).

    codes: (rows, scheme.num_words(width)) uint32. scales: (rows, scheme.num_groups(width)) in the source's
    precision; whoever stores them casts them. value = (code - scheme.zero_point) * scale.
    """

    codes: np.ndarray
    scales: np.ndarray


@dataclass
class Checkpoint(ABC):
    """Weights by name, with their config. Make one with ``open_checkpoint``.

    folder: where it is. config: as config.json has it, without what only says how the weights were packed.
    has_index: whether an index names the files. files: in order of first use, by name relative to ``folder``.
    tensors: in MLC's order (docs/format.md). small_files: name -> text of files that belong into the cache and are
    not in ``folder``, or not like this. has_loose_files: whether what lies in ``folder`` belongs to the model too.
    config_source: where the config is from, for errors. tokenizer_metadata: what describes the tokenizer where there
    are no files of it, in GGUF's keys. Methods may be called from several threads at once.
    """

    folder: Path
    config: dict[str, Any]
    has_index: bool
    files: tuple[CheckpointFile, ...]
    tensors: dict[str, TensorInfo]
    small_files: Mapping[str, str] = field(default_factory=dict)
    has_loose_files: bool = True
    config_source: str = ""
    tokenizer_metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.config_source = self.config_source or str(self.folder / CONFIG_NAME)

    @abstractmethod
    def read_rows(self, name: str, width: int, begin: int, end: int) -> np.ndarray:
        """Rows [begin, end) of the tensor seen as a matrix of ``width`` columns, in ``TensorInfo.dtype``.

        Raises UnsupportedError for a tensor whose dtype weights cannot have.
        """

    def read_columns(self, name: str, begin: int, end: int) -> np.ndarray:
        """Columns [begin, end) of a matrix as rows, (end - begin, rows) in ``TensorInfo.dtype``; C-contiguous.

        Raises like ``read_rows``.
        """
        rows, columns = self.tensors[name].shape
        return columns_as_rows(self.read_rows(name, columns, 0, rows), begin, end)

    def has_codes(self, name: str, scheme: Scheme) -> bool:
        """Whether ``read_codes`` has the tensor in ``scheme``. Needs no weights read."""
        return False

    def has_transposed_codes(self, name: str) -> bool:
        """Whether rows of ``read_codes`` are the tensor's columns: files that store (out, in) what others transpose."""
        return False

    def read_codes(self, name: str, scheme: Scheme, begin: int, end: int) -> PackedRows:
        """Rows [begin, end), the tensor's last axis being their width, as the source quantized them.

        They say exactly what ``read_rows`` says (in float32). Only for tensors that ``has_codes`` of the scheme.
        """
        raise NotImplementedError(f"{type(self).__name__} has no codes of {name} for {scheme.name}")

    def parts(self) -> Checkpoint:
        """The same source with packed layers left in their parts, as its files have them ("….qweight")."""
        return self

    def has_exact_scales(self, name: str, dtype: str) -> bool:
        """Whether ``dtype`` holds every scale of a tensor that has codes; False also where that is not known."""
        return self.tensors[name].scale_dtype == dtype

    def prefetch(self, name: str, begin: int = 0, end: int | None = None) -> None:  # noqa: B027 (may do nothing)
        """Ask the system to start reading bytes [begin, end) of the tensor; returns at once."""

    def release(self, name: str, begin: int = 0, end: int | None = None) -> None:  # noqa: B027
        """Give the memory of bytes [begin, end) of the tensor back; views stay valid and reload on use."""

    def read(self, name: str) -> np.ndarray:
        """The whole tensor, in its shape. Raises like ``read_rows``, and CheckpointError for an unknown name."""
        info = self.tensors.get(name)
        if info is None:
            raise CheckpointError(f"there is no tensor {name}", where=self.folder)
        width = max(1, info.shape[-1]) if info.shape else 1
        return self.read_rows(name, width, 0, info.num_values // width).reshape(info.shape)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if a file was replaced or written to since the checkpoint was opened."""
        for file in self.files:
            path = self.folder / file.name
            with translated_os_errors("read the file", path, CheckpointError):
                status = path.stat()
            if (status.st_size, status.st_mtime_ns) != (file.nbytes, file.mtime_ns):
                raise CheckpointError("the file changed while it was being read", where=path,
                                      hint="Start again once nothing writes to the checkpoint.")
