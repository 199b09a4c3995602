"""A GGUF file as a checkpoint: Hugging Face's names and row order, and Q4_0's codes as they are."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedError
from ...files import translated_os_errors
from ...schemes import Scheme
from ..checkpoint import Checkpoint, CheckpointFile, PackedRows, TensorInfo
from ..folder import CONFIG_NAME
from ..rows import covering_rows, cut
from .families import GgufFamily, family_of
from .header import GgufHeader, GgufTensor
from .metadata import Metadata
from .rope import ROPE_DIVISORS
from .rows import Q4_0_GROUP, q4_0_codes, values_of

_ROPE_TENSORS = frozenset(ROPE_DIVISORS.values())
_GENERATION_NAME = "generation_config.json"


@dataclass(frozen=True)
class _Place:
    """Where a tensor is. order: the file's row for each row here, None where they are the same.

    shift: added to every value (the norms that llama.cpp stores with 1 added). transposed: the checkpoint has the
    matrix the other way round.
    """

    tensor: GgufTensor
    file: int
    order: np.ndarray | None
    shift: float
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """As the checkpoint has it."""
        return self.tensor.shape[::-1] if self.transposed else self.tensor.shape

    @property
    def num_rows(self) -> int:
        """Rows that can be read alone; a vector has one value in each."""
        return self.tensor.nbytes // self.row_bytes

    @property
    def width(self) -> int:
        return self.tensor.shape[-1] if len(self.tensor.shape) > 1 else 1

    @property
    def row_bytes(self) -> int:
        kind = self.tensor.type
        return self.width // kind.block_values * kind.block_bytes if self.width > 1 else kind.block_bytes


class GgufCheckpoint(Checkpoint):
    """The weights of one GGUF file or of all parts of a split one. Made by ``open_gguf``.

    Tensors are listed by name, so that a GGUF file in float16 converts to the bytes that its original gives.
    metadata: as the (first) file has them.
    """

    def __init__(self, paths: Sequence[Path], headers: Sequence[GgufHeader]) -> None:
        self.metadata = headers[0].metadata
        metadata = Metadata(self.metadata, paths[0])
        family = family_of(metadata)
        self._paths = paths
        self._maps: dict[int, mmap.mmap] = {}
        found = {tensor.name: (tensor, number) for number, header in enumerate(headers) for tensor in header.tensors}
        if sum(len(header.tensors) for header in headers) != len(found):
            raise CheckpointError("parts of the split file hold the same tensor", where=paths[0],
                                  hint="Fetch all its parts again.")
        super().__init__(paths[0].parent, {}, False, tuple(_described(*part) for part in zip(paths, headers)), {},
                         tokenizer_metadata=self.metadata, config_source=str(paths[0]), has_loose_files=False)
        self._places: dict[str, _Place] = {}
        for gguf_name, (tensor, file) in found.items():
            name = family.checkpoint_name(gguf_name)
            if name is not None:
                self._places[name] = _placed(tensor, file, family, metadata)
            elif gguf_name not in _ROPE_TENSORS:
                raise UnsupportedError(f"a {metadata.architecture} model has no place for a tensor", where=paths[file],
                                       found=gguf_name, hint="The cache would lack it.")
        self._fill_tensors()
        self.config |= self._config(family, metadata, found)
        self.small_files = {CONFIG_NAME: json.dumps(self.config, indent=2),
                            _GENERATION_NAME: json.dumps(_generation_config(self.metadata), indent=2)}

    def _fill_tensors(self) -> None:
        for name, place in sorted(self._places.items()):
            kind = place.tensor.type
            self.tensors[name] = TensorInfo(
                name, kind.dtype or kind.name, place.shape, self._paths[place.file].name, place.tensor.nbytes,
                stored_as="" if kind.is_plain else kind.name, scale_dtype="" if kind.is_plain else "float16")

    def _config(self, family: GgufFamily, metadata: Metadata,
                found: dict[str, tuple[GgufTensor, int]]) -> dict[str, Any]:
        embedding = found.get("token_embd.weight")
        if embedding is None:
            raise CheckpointError("the token embedding is missing", where=metadata.where, expected="token_embd.weight",
                                  hint="Is this the GGUF file of a whole language model?")
        divisors = {}
        for key, name in ROPE_DIVISORS.items():
            if name in found:
                tensor, file = found[name]
                if tensor.type.name != "F32" or len(tensor.shape) != 1:
                    raise UnsupportedError(f"{name} is no row of F32", where=metadata.where, found=tensor.type.name)
                divisors[key] = self._bytes(_Place(tensor, file, None, 0.0), 0, tensor.shape[0]).view("<f4").reshape(-1)
        special = {f"{role}_token_id": token for role in ("bos", "eos", "pad")
                   if (token := _token_id(self.metadata, role)) is not None}
        return family.config(metadata, found, embedding[0].shape[0], divisors) | special

    def read_rows(self, name: str, width: int, begin: int, end: int) -> np.ndarray:
        """As ``Checkpoint.read_rows``; plain rows in the file's order are a view of the mapped file."""
        place = self._readable(name)
        if place.transposed:
            whole = values_of(self._bytes(place, 0, place.num_rows), place.tensor.type).T
            return (whole if whole.shape[1] == width else whole.reshape(-1, width))[begin:end]
        first, last = covering_rows(width, begin, end, place.width)
        values = values_of(self._bytes(place, first, last), place.tensor.type)
        if place.shift:
            values = values.astype(np.float32) + np.float32(place.shift)
        return cut(values, first, width, begin, end)

    def read_columns(self, name: str, begin: int, end: int) -> np.ndarray:
        place = self._readable(name)
        if not place.transposed:
            return super().read_columns(name, begin, end)
        return values_of(self._bytes(place, begin, end), place.tensor.type)

    def _readable(self, name: str) -> _Place:
        place = self._places[name]
        if not place.tensor.type.dtype:
            raise UnsupportedError(f"tensor {name} has a type that weights cannot have",
                                   where=self._paths[place.file], found=place.tensor.type.name)
        return place

    def has_codes(self, name: str, scheme: Scheme) -> bool:
        place = self._places[name]
        return (place.tensor.type.name == "Q4_0" and scheme.has_groups
                and (scheme.bits, scheme.group_size) == (4, Q4_0_GROUP))

    def has_transposed_codes(self, name: str) -> bool:
        return self._places[name].transposed

    def read_codes(self, name: str, scheme: Scheme, begin: int, end: int) -> PackedRows:
        place = self._places[name]
        if place.order is None:
            return PackedRows(*q4_0_codes(self._stored(place)[begin:end]))
        return PackedRows(*q4_0_codes(self._stored(place), place.order[begin:end]))

    def prefetch(self, name: str, begin: int = 0, end: int | None = None) -> None:
        self._advise(name, begin, end, "MADV_WILLNEED")

    def release(self, name: str, begin: int = 0, end: int | None = None) -> None:
        self._advise(name, begin, end, "MADV_DONTNEED")

    def _bytes(self, place: _Place, first: int, last: int) -> np.ndarray:
        """Rows [first, last) as (rows, row bytes) uint8, in the order of this checkpoint."""
        rows = self._stored(place)
        return rows[first:last] if place.order is None else rows[place.order[first:last]]

    def _stored(self, place: _Place) -> np.ndarray:
        """All rows as the file has them, (rows, row bytes) uint8: a view of the mapped file."""
        shape = (place.num_rows, place.row_bytes)
        return np.frombuffer(self._map(place.file), np.uint8, place.tensor.nbytes, place.tensor.begin).reshape(shape)

    def _advise(self, name: str, begin: int, end: int | None, advice: str) -> None:
        option = getattr(mmap, advice, None)
        place = self._places[name]
        start = place.tensor.begin + begin
        stop = place.tensor.begin + (place.tensor.nbytes if end is None else min(end, place.tensor.nbytes))
        if option is None or start >= stop:  # no madvise on this system, or nothing to do
            return
        start -= start % mmap.PAGESIZE
        self._map(place.file).madvise(option, start, stop - start)

    def _map(self, file: int) -> mmap.mmap:
        if file not in self._maps:
            self.check_unchanged()  # so that every place lies inside the file
            path = self._paths[file]
            with translated_os_errors("map the file", path, CheckpointError), path.open("rb") as opened:
                self._maps[file] = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return self._maps[file]


def _placed(tensor: GgufTensor, file: int, family: GgufFamily, metadata: Metadata) -> _Place:
    module = family.module(tensor.name) or ""
    order = None
    if module in family.rotated_heads:
        num_heads = metadata.count(family.rotated_heads[module], metadata.count("attention.head_count"))
        rows = tensor.shape[0]
        if rows % (2 * num_heads):
            raise CheckpointError(f"tensor {tensor.name} cannot be split into heads", where=metadata.where,
                                  found=f"{rows} rows", expected=f"a multiple of {2 * num_heads}")
        order = halves_order(rows, num_heads)
    shift = -1.0 if family.norms_plus_one and module.endswith("norm") else 0.0
    return _Place(tensor, file, order, shift, module in family.transposed and len(tensor.shape) == 2)


def halves_order(rows: int, num_heads: int) -> np.ndarray:
    """For each row in Transformers' order the row in llama.cpp's: int64 (rows,).

    llama.cpp turns neighboring rows of a head against each other, Transformers row i against row i + head_dim / 2.
    """
    return np.arange(rows).reshape(num_heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _described(path: Path, header: GgufHeader) -> CheckpointFile:
    status = path.stat()
    return CheckpointFile(path.name, status.st_size, status.st_mtime_ns, header.sha256)


def _token_id(metadata: dict[str, Any], role: str) -> int | None:
    key = {"pad": "padding"}.get(role, role)
    value = metadata.get(f"tokenizer.ggml.{key}_token_id")
    return value if type(value) is int and value >= 0 else None


def _generation_config(metadata: dict[str, Any]) -> dict[str, Any]:
    """Which tokens begin and end a text; the end of a turn ends an answer too."""
    config: dict[str, Any] = {f"{role}_token_id": token for role in ("bos", "eos", "pad")
                              if (token := _token_id(metadata, role)) is not None}
    ends = list(dict.fromkeys(token for role in ("eos", "eot") if (token := _token_id(metadata, role)) is not None))
    if len(ends) > 1:
        config["eos_token_id"] = ends
    return config
