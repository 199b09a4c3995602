"""Torch files (pytorch_model.bin): where each tensor's bytes are, found without torch.

A file of torch 1.6 or later is a zip archive without compression: <top>/data.pkl describes the tensors,
<top>/data/<key> are the elements of one storage. The entries are used where they lie, memory-mapped.
Source: torch/serialization.py and torch/csrc/jit/serialization (the container's layout).
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from pathlib import Path

from ..errors import CheckpointError, UnsupportedError
from .header import DTYPE_BITS, Header, HeaderTensor
from .torch_pickle import MAX_PICKLE_BYTES, StoredTensor, load_tensors

_LOCAL_HEADER = struct.Struct("<4s22xHH")  # signature, lengths of name and extra field
# What zipfile raises for one damage or another; NotImplementedError for features that torch never uses.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, LookupError, RuntimeError,
               OverflowError)
_DAMAGED = "The file is damaged. Fetch it again."


def read_torch_header(path: Path) -> Header:
    """The tensors of a torch file, in the order of its dictionary, and the hash of their description.

    Raises UnsupportedError (an old format, compression, big-endian data, names outside the closed list),
    CheckpointError (damaged or contradictory).
    """
    if not zipfile.is_zipfile(path):
        raise UnsupportedError("not a zip archive: a torch file from before version 1.6, or no torch file", where=path,
                               expected="a zip archive as torch.save writes it today",
                               hint="Load it with an old torch and save the model as safetensors.")
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            top = _top_folder(list(entries), path)
            for name in (f"{top}/data.pkl", f"{top}/byteorder"):
                _check_small(entries.get(name), path)
            byte_order = archive.read(f"{top}/byteorder") if f"{top}/byteorder" in entries else b"little"
            description = archive.read(f"{top}/data.pkl")
    except _ZIP_ERRORS as error:
        raise CheckpointError(f"not a readable zip archive ({error})", where=path, hint=_DAMAGED) from error
    if byte_order != b"little":
        raise UnsupportedError("the elements are not little-endian", where=path, found=byte_order[:20])
    stored = load_tensors(description, path)
    begins = {tensor.storage: _entry_range(entries.get(f"{top}/data/{tensor.storage}"), tensor, path)
              for tensor in stored.values()}
    tensors = tuple(_placed(name, tensor, begins[tensor.storage], path) for name, tensor in stored.items())
    return Header(tensors, hashlib.sha256(description).hexdigest())


def _top_folder(names: list[str], path: Path) -> str:
    tops = [name.removesuffix("/data.pkl") for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(tops) != 1 or len(set(names)) != len(names):
        raise CheckpointError("not laid out as a torch file", where=path,
                              found=", ".join(names[:3]) or "an empty archive",
                              expected="one data.pkl in one folder, every name once")
    return tops[0]


def _check_small(entry: zipfile.ZipInfo | None, path: Path) -> None:
    """Refuse entries that would fill the memory when they are read."""
    if entry is not None and entry.file_size > MAX_PICKLE_BYTES:
        raise CheckpointError(f"the entry {entry.filename} is impossibly long", where=path,
                              found=f"{entry.file_size} bytes", expected=f"at most {MAX_PICKLE_BYTES}", hint=_DAMAGED)


def _entry_range(entry: zipfile.ZipInfo | None, tensor: StoredTensor, path: Path) -> int:
    """Where the storage's elements begin in the file."""
    if entry is None:
        raise CheckpointError("a storage is missing", where=path, expected=f"data/{tensor.storage}", hint=_DAMAGED)
    if entry.compress_type != zipfile.ZIP_STORED:
        raise UnsupportedError("the archive is compressed", where=path, found=entry.filename,
                               expected="entries stored as they are, as torch.save writes them")
    needed = tensor.num_stored * DTYPE_BITS[tensor.tag] // 8
    with path.open("rb") as file:
        file.seek(entry.header_offset)
        raw = file.read(_LOCAL_HEADER.size)
    if len(raw) != _LOCAL_HEADER.size or raw[:4] != b"PK\x03\x04":
        raise CheckpointError("the archive's index points nowhere", where=path, found=entry.filename, hint=_DAMAGED)
    _, name_length, extra_length = _LOCAL_HEADER.unpack(raw)
    begin = int(entry.header_offset + len(raw) + name_length + extra_length)
    if entry.file_size < needed or begin + needed > path.stat().st_size:
        raise CheckpointError("a storage is shorter than its tensors", where=path,
                              found=f"{entry.filename}: {entry.file_size} bytes", expected=str(needed), hint=_DAMAGED)
    return begin


def _placed(name: str, tensor: StoredTensor, begin: int, path: Path) -> HeaderTensor:
    if not tensor.is_contiguous:
        raise UnsupportedError(f"tensor {name} is a view whose elements are not in order", where=path,
                               found=f"shape {list(tensor.shape)}, strides {list(tensor.stride)}",
                               hint="Save it contiguous, or the model as safetensors.")
    size = DTYPE_BITS[tensor.tag] // 8
    count = 1
    for extent in tensor.shape:
        count *= extent
    start = begin + tensor.offset * size
    return HeaderTensor(name, tensor.tag, tensor.shape, start, start + count * size)
