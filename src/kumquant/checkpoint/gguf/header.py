"""The header of a GGUF file, read behind one validating door.

Layout, little-endian: "GGUF", version u32, number of tensors u64, number of metadata entries u64; the entries (key,
type u32, value); for each tensor its name, number of axes u32, their lengths u64 (fastest first), type u32, offset
u64 from the start of the data; padding to the alignment; the data, each tensor at a multiple of the alignment.
A string is its length u64 and UTF-8. The gguf package reads the same, but believes every number; so the file is read
here, and the package serves where trust is not asked for (types of blocks and their arithmetic).
Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ...errors import CheckpointError, Error, UnsupportedError
from ...files import translated_os_errors
from .types import TYPES, GgufType

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 16
_MAX_AXES = 4
_MAX_NAME_BYTES = 1 << 16
_MAX_NESTING = 2

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
# The least that an entry or a tensor can take, so that counts are refused before anything is made of them.
_LEAST_ENTRY_BYTES = 8 + 4 + 1
_LEAST_TENSOR_BYTES = 8 + 4 + 8 + 4 + 8

_DAMAGED = "The file is damaged or cut. Fetch it again."


@dataclass(frozen=True)
class GgufTensor:
    """One tensor as the header describes it. shape: slowest axis first. begin: byte in the file."""

    name: str
    type: GgufType
    shape: tuple[int, ...]
    begin: int

    @property
    def nbytes(self) -> int:
        values = 1
        for extent in self.shape:
            values *= extent
        return values // self.type.block_values * self.type.block_bytes


@dataclass(frozen=True)
class GgufHeader:
    """A validated header. metadata: keys as they stand there. sha256: of everything before the data."""

    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    sha256: str


def read_header(path: Path) -> GgufHeader:
    """Read and validate the header of ``path``.

    Checked: magic and version; every count against the bytes that are left before anything is allocated; keys and
    names unique, strings UTF-8; types known; whole blocks along each row; offsets aligned, inside the file, and no
    two tensors sharing a byte. Raises CheckpointError, or UnsupportedError for what is well formed but unknown.
    """
    with translated_os_errors("read the file", path, CheckpointError), path.open("rb") as file:
        size = path.stat().st_size
        if size < 24:
            raise CheckpointError("too short for a GGUF file", where=path, found=f"{size} bytes", hint=_DAMAGED)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Parser(data, path).header()


class _Parser:
    """Walks through the mapped file; every step first asks whether the bytes are there."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data, self._path, self._position = data, path, 0

    def header(self) -> GgufHeader:
        self._check_version()
        num_tensors, num_entries = self._scalar("<Q"), self._scalar("<Q")
        self._check_count("metadata entries", num_entries, _LEAST_ENTRY_BYTES)
        metadata: dict[str, Any] = {}
        for _ in range(num_entries):
            key = self._string("a key", _MAX_NAME_BYTES)
            if key in metadata:
                self._fail("a key is there twice", found=key)
            metadata[key] = self._value(key, self._scalar("<I"))
        self._check_count("tensors", num_tensors, _LEAST_TENSOR_BYTES)
        unplaced = [self._tensor() for _ in range(num_tensors)]
        alignment = self._alignment(metadata)
        start = -(-self._position // alignment) * alignment
        sha256 = hashlib.sha256(self._data[: self._position]).hexdigest()
        return GgufHeader(metadata, self._placed(unplaced, start, alignment), sha256)

    def _check_version(self) -> None:
        magic = self._take(4, "the magic number")
        if magic != MAGIC:
            self._fail("not a GGUF file", found=repr(bytes(magic)), expected=repr(MAGIC))
        version = self._scalar("<I")
        if version in _VERSIONS:
            return
        if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
            raise UnsupportedError("the file is big-endian", where=self._path,
                                   hint="Convert it with gguf-convert-endian.")
        raise UnsupportedError("a version of GGUF that is not known", where=self._path, found=version,
                               expected=" or ".join(map(str, _VERSIONS)))

    def _value(self, key: str, kind: int, nesting: int = 0) -> Any:
        if kind == _STRING:
            return self._string(f"the value of {key}")
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind != _ARRAY or nesting == _MAX_NESTING:
            self._fail(f"the value of {key} has an impossible type", found=kind)
        item_kind, count = self._scalar("<I"), self._scalar("<Q")
        if item_kind in _SCALARS:
            code = _SCALARS[item_kind][1]
            nbytes = struct.calcsize("<" + code)
            self._check_count(f"items of {key}", count, nbytes)
            return list(struct.unpack(f"<{count}{code}", self._take(count * nbytes, f"the value of {key}")))
        self._check_count(f"items of {key}", count, 8)
        return [self._value(key, item_kind, nesting + 1) for _ in range(count)]

    def _tensor(self) -> tuple[str, GgufType, tuple[int, ...], int]:
        name = self._string("a tensor's name", _MAX_NAME_BYTES)
        num_axes = self._scalar("<I")
        if not 1 <= num_axes <= _MAX_AXES:
            self._fail(f"tensor {name} has an impossible number of axes", found=num_axes, expected=f"1 to {_MAX_AXES}")
        extents = [self._scalar("<Q") for _ in range(num_axes)]
        number, offset = self._scalar("<I"), self._scalar("<Q")
        if number not in TYPES:
            raise UnsupportedError(f"tensor {name} has a type that is not known", where=self._path, found=number,
                                   expected=", ".join(kind.name for kind in TYPES.values()))
        if any(not 1 <= extent < 2**48 for extent in extents):
            self._fail(f"tensor {name} has an impossible shape", found=extents)
        kind = TYPES[number]
        if extents[0] % kind.block_values:
            self._fail(f"the rows of tensor {name} are no whole blocks of {kind.name}", found=extents[0],
                       expected=f"a multiple of {kind.block_values}")
        return name, kind, tuple(reversed(extents)), offset

    def _alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
        is_power = type(alignment) is int and 1 <= alignment <= _MAX_ALIGNMENT and alignment & (alignment - 1) == 0
        if not is_power:
            self._fail("impossible alignment", found=f"{_ALIGNMENT_KEY} {alignment!r}", expected="a power of two")
        return alignment

    def _placed(self, unplaced: list[tuple[str, GgufType, tuple[int, ...], int]], start: int,
                alignment: int) -> tuple[GgufTensor, ...]:
        """The tensors with their place in the file, each checked, in the header's order."""
        size = len(self._data)
        tensors: dict[str, GgufTensor] = {}
        for name, kind, shape, offset in unplaced:
            if name in tensors:
                self._fail("a tensor is there twice", found=name)
            if offset % alignment:
                self._fail(f"tensor {name} is not aligned", found=f"offset {offset}", expected=f"times {alignment}")
            tensor = GgufTensor(name, kind, shape, start + offset)
            if tensor.begin + tensor.nbytes > size:
                self._fail(f"tensor {name} reaches past the end of the file",
                           found=f"{size} bytes", expected=f"at least {tensor.begin + tensor.nbytes}")
            tensors[name] = tensor
        end, before = 0, ""
        for tensor in sorted(tensors.values(), key=lambda tensor: tensor.begin):
            if tensor.begin < end:
                self._fail(f"tensors {before} and {tensor.name} share bytes", found=f"offset {tensor.begin - start}",
                           expected=f"at least {end - start}")
            end, before = tensor.begin + tensor.nbytes, tensor.name
        return tuple(tensors.values())

    def _check_count(self, what: str, count: int, least_bytes: int) -> None:
        left = len(self._data) - self._position
        if count > left // least_bytes:
            self._fail(f"the file is too short for its {what}", found=f"{count} in {left} bytes")

    def _string(self, what: str, limit: int | None = None) -> str:
        length = self._scalar("<Q")
        if limit is not None and length > limit:
            self._fail(f"{what} is impossibly long", found=f"{length} bytes")
        try:
            return str(self._take(length, what), "utf-8")
        except UnicodeDecodeError as reason:
            raise CheckpointError(f"{what} is not UTF-8", where=self._path, found=str(reason),
                                  hint=_DAMAGED) from reason

    def _scalar(self, code: str) -> Any:
        return struct.unpack(code, self._take(struct.calcsize(code), "a number"))[0]

    def _take(self, length: int, what: str) -> bytes:
        if length > len(self._data) - self._position:
            self._fail(f"the file ends inside {what}", found=f"{len(self._data)} bytes",
                       expected=f"at least {self._position + length}")
        start = self._position
        self._position += length
        return self._data[start : self._position]

    def _fail(self, what: str, found: object = None, expected: object = None) -> NoReturn:
        error: Error = CheckpointError(what, where=self._path, found=found, expected=expected, hint=_DAMAGED)
        raise error
