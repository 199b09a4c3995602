"""The header of a safetensors file, read behind one validating door.

Layout of a file: 8 bytes little-endian header length n; n bytes of JSON (an object, padded with spaces);
data. The JSON maps a tensor's name to {"dtype", "shape", "data_offsets": [begin, end]}, offsets counted from
the end of the header; "__metadata__" maps strings to strings. The tensors fill the data without holes.
Source: the safetensors format description (https://github.com/huggingface/safetensors#format).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library itself
LENGTH_BYTES = 8

# Bits of one element. Types below a byte are packed, so only the total has to be whole bytes.
DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "F64": 64, "I64": 64, "U64": 64, "C64": 64,
}

_DAMAGED = "The file is damaged or not safetensors. Fetch it again."


@dataclass(frozen=True)
class HeaderTensor:
    """One tensor as a header describes it. begin, end: byte range from the start of the *file*."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A validated header: tensors by ascending data offset, and the SHA-256 of the header's bytes."""

    tensors: tuple[HeaderTensor, ...]
    sha256: str


def read_header(path: Path) -> Header:
    """Read and validate the header of ``path``. Raises CheckpointError that says what is wrong."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < LENGTH_BYTES:
                raise CheckpointError("too short for a safetensors file", where=path, found=f"{size} bytes",
                                      expected=f"at least {LENGTH_BYTES}", hint=_DAMAGED)
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            limit = min(MAX_HEADER_BYTES, size - LENGTH_BYTES)
            if not 2 <= length <= limit:
                raise CheckpointError("the header's length is impossible", where=path,
                                      found=f"{length} bytes", expected=f"2 to {limit}", hint=_DAMAGED)
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read the file ({error.strerror})", where=path) from error
    if len(text) != length:
        raise CheckpointError("the header ends early", where=path, found=f"{len(text)} bytes",
                              expected=str(length), hint=_DAMAGED)
    tensors = validate_header(text, size - LENGTH_BYTES - length, path)
    start = LENGTH_BYTES + length
    placed = tuple(HeaderTensor(t.name, t.dtype, t.shape, t.begin + start, t.end + start) for t in tensors)
    return Header(placed, hashlib.sha256(text).hexdigest())


def validate_header(text: bytes, data_nbytes: int, where: Path) -> list[HeaderTensor]:
    """The one door: header JSON -> tensors by ascending offset (here from the start of the data).

    Checked: JSON object without repeated names; dtypes known; shapes and offsets plain non-negative integers;
    bytes = elements * element size; ranges disjoint, without holes, covering exactly ``data_nbytes``.
    """
    entries = _parse(text, where)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError("__metadata__ is not an object", where=where, found=type(metadata).__name__,
                              hint=_DAMAGED)
    tensors = [_tensor(name, entry, where) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    position = 0
    for tensor in tensors:
        if tensor.begin != position:
            what = "overlaps the tensor before it" if tensor.begin < position else "leaves a hole before it"
            raise CheckpointError(f"tensor {tensor.name} {what}", where=where, found=f"offset {tensor.begin}",
                                  expected=str(position), hint=_DAMAGED)
        position = tensor.end
    if position != data_nbytes:
        cut = position > data_nbytes
        what = "truncated: the tensors need more data" if cut else "data after the last tensor"
        raise CheckpointError(what, where=where, found=f"{data_nbytes} bytes of data", expected=str(position),
                              hint=_DAMAGED)
    return tensors


def _parse(text: bytes, where: Path) -> dict[str, Any]:
    repeated: list[str] = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            repeated.append(next(name for name in names if names.count(name) > 1))
        return result

    try:
        entries = json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"the header is not JSON ({error})", where=where, hint=_DAMAGED) from error
    if repeated:
        raise CheckpointError("the header has a name twice", where=where, found=repeated[0], hint=_DAMAGED)
    if not isinstance(entries, dict):
        raise CheckpointError("the header is not a JSON object", where=where, found=type(entries).__name__,
                              hint=_DAMAGED)
    return entries


def _tensor(name: str, entry: object, where: Path) -> HeaderTensor:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise CheckpointError(f"the header's entry for {name} is incomplete", where=where,
                              expected="dtype, shape and data_offsets", hint=_DAMAGED)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"tensor {name} has an unknown dtype", where=where, found=dtype,
                              expected=", ".join(DTYPE_BITS))
    if not _are_counts(shape):
        raise CheckpointError(f"tensor {name} has an impossible shape", where=where, found=shape,
                              hint=_DAMAGED)
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointError(f"tensor {name} has impossible data_offsets", where=where, found=offsets,
                              hint=_DAMAGED)
    bits = DTYPE_BITS[dtype]
    for extent in shape:
        bits *= extent
    if bits != 8 * (offsets[1] - offsets[0]):
        raise CheckpointError(f"tensor {name} has the wrong size for {dtype} {shape}", where=where,
                              found=f"{offsets[1] - offsets[0]} bytes", expected=f"{bits / 8:g}",
                              hint=_DAMAGED)
    return HeaderTensor(name, dtype, tuple(shape), offsets[0], offsets[1])


def _are_counts(values: object) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)
