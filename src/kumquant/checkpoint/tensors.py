"""An open checkpoint: tensors read one at a time from memory-mapped files, and let go again."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import CheckpointError, UnsupportedError
from ..files import translated_os_errors
from .checkpoint import Checkpoint, CheckpointFile, TensorInfo
from .folder import find_weights, read_config, require_folder
from .header import Header, HeaderTensor, read_header
from .torch_bin import read_torch_header

# The dtypes that weights may have; others keep safetensors' own tag ("I64") and can be listed, not read.
READABLE_DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "F32": ("float32", np.dtype("<f4")),
    "F16": ("float16", np.dtype("<f2")),
    "BF16": ("bfloat16", np.dtype(ml_dtypes.bfloat16)),
}


class MappedCheckpoint(Checkpoint):
    """Tensors at byte ranges of files in a folder, which are mapped when needed.

    Order of the tensors: with an index, files by first appearance in ``weight_map``, names inside a file in its
    order; one file: by data offset. Source: docs/format.md.
    """

    def __init__(self, folder: Path, config: dict[str, Any], headers: dict[str, Header],
                 order: Mapping[str, list[str]], has_index: bool) -> None:
        files = tuple(_describe_file(folder, name, header) for name, header in headers.items())
        super().__init__(folder, config, has_index, files, {})
        self._places: dict[str, HeaderTensor] = {}
        self._maps: dict[str, mmap.mmap] = {}
        for file_name, names in order.items():
            places = {tensor.name: tensor for tensor in headers[file_name].tensors}
            for name in names:
                place = places[name]
                dtype = READABLE_DTYPES[place.dtype][0] if place.dtype in READABLE_DTYPES else place.dtype
                self.tensors[name] = TensorInfo(name, dtype, place.shape, file_name, place.end - place.begin)
                self._places[name] = place

    def read_rows(self, name: str, width: int, begin: int, end: int) -> np.ndarray:
        """A read-only view of the mapped file; pages load when touched. Raises UnsupportedError (dtype)."""
        info = self.tensors[name]
        if self._places[name].dtype not in READABLE_DTYPES:
            raise UnsupportedError(f"tensor {name} has dtype {info.dtype}", where=self.folder / info.file,
                                   expected=", ".join(READABLE_DTYPES))
        return self.raw(name, READABLE_DTYPES[self._places[name].dtype][1]).reshape(-1, width)[begin:end]

    def raw(self, name: str, dtype: np.dtype[Any]) -> np.ndarray:
        """The whole tensor as elements of ``dtype``, a flat read-only view of the mapped file."""
        place = self._places[name]
        mapped = self._map(self.tensors[name].file)
        return np.frombuffer(mapped, np.uint8, place.end - place.begin, place.begin).view(dtype)

    def prefetch(self, name: str, begin: int = 0, end: int | None = None) -> None:
        """Ask the system to start reading bytes [begin, end) of the tensor; returns at once."""
        self._advise(name, begin, end, "MADV_WILLNEED")

    def release(self, name: str, begin: int = 0, end: int | None = None) -> None:
        """Give the memory of bytes [begin, end) of the tensor back; views stay valid and reload on use."""
        self._advise(name, begin, end, "MADV_DONTNEED")

    def _advise(self, name: str, begin: int, end: int | None, advice: str) -> None:
        option = getattr(mmap, advice, None)
        place = self._places[name]
        start = place.begin + begin
        stop = place.end if end is None else place.begin + end
        if option is None or start >= stop:  # no madvise on this system, or nothing to do
            return
        start -= start % mmap.PAGESIZE
        self._map(self.tensors[name].file).madvise(option, start, stop - start)

    def _map(self, file_name: str) -> mmap.mmap:
        mapped = self._maps.get(file_name)
        if mapped is None:
            self.check_unchanged()  # so that every place lies inside the file
            path = self.folder / file_name
            with translated_os_errors("map the file", path, CheckpointError), path.open("rb") as opened:
                mapped = self._maps[file_name] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return mapped


def open_files(source: str | Path) -> MappedCheckpoint:
    """The tensors in a folder as they are stored: one safetensors or torch file, or several with an index.

    Reads headers only. Raises CheckpointError (missing, damaged, contradictory), UnsupportedError (a torch file that
    holds more than tensors).
    """
    folder = require_folder(source)
    config = read_config(folder)
    weights = find_weights(folder)
    if weights.weight_map is None:
        name = weights.single_name
        return open_file(folder, name, config)
    order: dict[str, list[str]] = {}
    for name, file_name in weights.weight_map.items():
        order.setdefault(file_name, []).append(name)
    headers = {file_name: _read_header(folder / file_name) for file_name in order}
    _check_index(folder, weights.index_name, weights.weight_map, headers)
    return MappedCheckpoint(folder, config, headers, order, has_index=True)


def open_file(folder: Path, name: str, config: dict[str, Any]) -> MappedCheckpoint:
    """The tensors of one file."""
    header = _read_header(folder / name)
    return MappedCheckpoint(folder, config, {name: header}, {name: [tensor.name for tensor in header.tensors]},
                            has_index=False)


def _read_header(path: Path) -> Header:
    return read_torch_header(path) if path.suffix in (".bin", ".pt", ".pth") else read_header(path)


def _check_index(folder: Path, index_name: str, weight_map: Mapping[str, str],
                 headers: Mapping[str, Header]) -> None:
    """The index and the files name the same tensors, each in one place."""
    held = {file_name: {tensor.name for tensor in header.tensors} for file_name, header in headers.items()}
    for name, file_name in weight_map.items():
        if name not in held[file_name]:
            raise CheckpointError(f"{index_name} says that tensor {name} is in this file, but it is not",
                                  where=folder / file_name, hint="Download the index and the files again.")
    for file_name, names in held.items():
        for name in sorted(names):
            entry = weight_map.get(name)
            if entry != file_name:
                raise CheckpointError(f"tensor {name} is in this file, but {index_name} does not say so",
                                      where=folder / file_name, found=entry or "no entry", expected=file_name,
                                      hint="Download the index and the files again.")


def _describe_file(folder: Path, name: str, header: Header) -> CheckpointFile:
    status = (folder / name).stat()
    return CheckpointFile(name, status.st_size, status.st_mtime_ns, header.sha256)
