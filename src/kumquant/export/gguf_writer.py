"""Writes GGUF files: the header first, then one tensor after the other, so that memory stays small.

Source of the layout: checkpoint/gguf/header.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..checkpoint import GGUF_TYPES
from ..files import translated_os_errors

ALIGNMENT = 32
_VERSION = 3
_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_TYPE_NUMBERS = {kind.name: number for number, kind in GGUF_TYPES.items()}


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the file. type_name: ggml's. shape: slowest axis first."""

    name: str
    type_name: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        kind = GGUF_TYPES[_TYPE_NUMBERS[self.type_name]]
        values = 1
        for extent in self.shape:
            values *= extent
        return values // kind.block_values * kind.block_bytes


def write_gguf(path: Path, metadata: Mapping[str, Any], tensors: Sequence[PlannedTensor],
               data: Iterable[Iterable[np.ndarray]]) -> None:
    """Write ``path``. data: for each tensor its bytes, in pieces of contiguous arrays; drawn one tensor at a time.

    metadata: str, bool, int (as uint32), float (as float32), or a list of str, bool, int (int32) or float.
    Raises Error or CapacityError when the file cannot be written.
    """
    with translated_os_errors("write the file", path), path.open("wb") as file:
        file.write(header_of(metadata, tensors))
        _pad(file)
        for tensor, pieces in zip(tensors, data, strict=True):
            written = 0
            for piece in pieces:
                file.write(np.ascontiguousarray(piece).view(np.uint8).data)
                written += piece.nbytes
            if written != tensor.nbytes:
                raise AssertionError(f"{tensor.name}: {written} bytes written, {tensor.nbytes} planned")
            _pad(file)


def header_of(metadata: Mapping[str, Any], tensors: Sequence[PlannedTensor]) -> bytes:
    """Everything before the data, without the padding."""
    parts = [b"GGUF", struct.pack("<IQQ", _VERSION, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(value)]
    offset = 0
    for tensor in tensors:
        extents = tuple(reversed(tensor.shape))
        parts += [_string(tensor.name), struct.pack(f"<I{len(extents)}Q", len(extents), *extents),
                  struct.pack("<IQ", _TYPE_NUMBERS[tensor.type_name], offset)]
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return b"".join(parts)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, bool):
        return struct.pack("<I?", _BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", _FLOAT32, value)
    head = struct.pack("<I", _ARRAY)
    if value and all(isinstance(item, bool) for item in value):
        return head + struct.pack(f"<IQ{len(value)}?", _BOOL, len(value), *value)
    if all(isinstance(item, str) for item in value):
        return head + struct.pack("<IQ", _STRING, len(value)) + b"".join(map(_string, value))
    if all(isinstance(item, int) for item in value):
        return head + struct.pack(f"<IQ{len(value)}i", _INT32, len(value), *value)
    return head + struct.pack(f"<IQ{len(value)}f", _FLOAT32, len(value), *value)
