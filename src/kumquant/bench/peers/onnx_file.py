"""A small writer of ONNX files: the protobuf messages that a graph with weights beside it needs, and no more.

Source of the field numbers: onnx/onnx.proto3 (IR version 10).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np

FLOAT, UINT8, INT32, INT64 = 1, 2, 6, 7  # TensorProto.DataType
_DATA_TYPES = {np.dtype(np.float32): FLOAT, np.dtype(np.uint8): UINT8, np.dtype(np.int32): INT32,
               np.dtype(np.int64): INT64}
_IR_VERSION = 10
_OPSETS = {"": 21, "com.microsoft": 1}
_ALIGNMENT = 4096  # of each tensor in the data file, so that it can be mapped


class OnnxWriter:
    """Collects a graph; weights go to ``<name>.data`` at once, the graph to ``path`` at the end of the block."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._nodes: list[bytes] = []
        self._initializers: list[bytes] = []
        self._inputs: list[bytes] = []
        self._outputs: list[bytes] = []
        self._file: BinaryIO = path.with_name(path.name + ".data").open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._file.close()
        if error is None:
            self._path.write_bytes(self._model())

    def input(self, name: str, data_type: int, shape: Sequence[int | str]) -> str:
        """shape: numbers, or names of dimensions that are not known yet."""
        self._inputs.append(_value_info(name, data_type, shape))
        return name

    def output(self, name: str, data_type: int, shape: Sequence[int | str]) -> str:
        self._outputs.append(_value_info(name, data_type, shape))
        return name

    def constant(self, name: str, values: np.ndarray, data_of: tuple[int, int] | None = None) -> str:
        """A weight. data_of: (offset, length) where ``values`` are stored already; they are not written again."""
        offset, length = data_of or self.store(values)
        place = {"location": self._path.name + ".data", "offset": str(offset), "length": str(length)}
        self._initializers.append(_tensor(name, values) + b"".join(
            _message(13, _text(1, key) + _text(2, value)) for key, value in place.items()) + _integer(14, 1))
        return name

    def small_constant(self, name: str, values: np.ndarray) -> str:
        """A constant inside the graph, which shape inference can see."""
        self._initializers.append(_tensor(name, values) + _message(9, values.tobytes()))
        return name

    def store(self, values: np.ndarray) -> tuple[int, int]:
        """Write the bytes to the data file: (offset, length)."""
        self._file.write(bytes(-self._file.tell() % _ALIGNMENT))
        offset = self._file.tell()
        self._file.write(np.ascontiguousarray(values).data)
        return offset, values.nbytes

    def node(self, op_type: str, inputs: Iterable[str], outputs: Sequence[str], domain: str = "",
             **attributes: float | int | Sequence[int]) -> str:
        """An operation; returns its first output's name. An input "" is left out."""
        body = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
        body += _text(3, f"/{outputs[0]}") + _text(4, op_type)
        body += b"".join(_message(5, _attribute(name, value)) for name, value in attributes.items())
        self._nodes.append(body + _text(7, domain))
        return outputs[0]

    def _model(self) -> bytes:
        graph = b"".join(_message(1, node) for node in self._nodes) + _text(2, "decoder")
        graph += b"".join(_message(5, tensor) for tensor in self._initializers)
        graph += b"".join(_message(11, one) for one in self._inputs)
        graph += b"".join(_message(12, one) for one in self._outputs)
        opsets = b"".join(_message(8, _text(1, domain) + _integer(2, version)) for domain, version in _OPSETS.items())
        return _integer(1, _IR_VERSION) + _text(2, "kumquant") + _message(7, graph) + opsets


def _tensor(name: str, values: np.ndarray) -> bytes:
    dims = b"".join(_integer(1, size) for size in values.shape)
    return dims + _integer(2, _DATA_TYPES[values.dtype]) + _text(8, name)


def _value_info(name: str, data_type: int, shape: Sequence[int | str]) -> bytes:
    dims = b"".join(_message(1, _text(2, one) if isinstance(one, str) else _integer(1, one)) for one in shape)
    return _text(1, name) + _message(2, _message(1, _integer(1, data_type) + _message(2, dims)))


def _attribute(name: str, value: float | int | Sequence[int]) -> bytes:
    if isinstance(value, float):
        return _text(1, name) + _key(2, 5) + struct.pack("<f", value) + _integer(20, 1)
    if isinstance(value, int):
        return _text(1, name) + _integer(3, value) + _integer(20, 2)
    return _text(1, name) + b"".join(_integer(8, one) for one in value) + _integer(20, 7)


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _integer(field: int, value: int) -> bytes:
    return _key(field, 0) + _varint(value & 2**64 - 1)


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _message(field: int, body: bytes) -> bytes:
    return _key(field, 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
