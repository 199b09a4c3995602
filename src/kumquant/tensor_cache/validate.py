"""The one door: decides whether a manifest may be opened. Nothing in it is believed before it passes here.

Strict where it costs no real cache, lenient where existing caches need it (docs/format.md).
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from ..dtypes import DTYPES, itemsize
from ..errors import TensorCacheError
from .manifest import SHARD_FORMAT, Manifest, Record, Shard, stored_dtype

# Bounds are checked before any arithmetic. Up to 2**53 every JSON reader keeps integers exact.
MAX_INTEGER = 2**53
MAX_DIMENSIONS = 32
MAX_METADATA_DEPTH = 16
# A record takes about 330 bytes of text, so this is some 100,000 records, many times the largest known cache.
MAX_MANIFEST_BYTES = 32 << 20

# Stands for "nothing to show", since None is what JSON's null becomes.
_NOT_GIVEN = object()
_MD5 = re.compile(r"[0-9a-f]{32}")
_DAMAGED = "The manifest is damaged or was not written for a tensor cache. Convert or fetch the model again."
_UNSAFE = "Shards must lie in the manifest's folder. Do not trust this cache; fetch it from its maker again."


def validate(
    manifest_json: bytes | str | Mapping[str, Any],
    shard_size: Callable[[str], int | None] | None = None,
    *,
    path: Path | None = None,
    allow_missing_shards: bool = False,
) -> Manifest:
    """Check a manifest completely and return it as data.

    manifest_json: the text, or the object already parsed from it. path: the manifest's own.
    shard_size: data_path -> bytes on disk, None when there is no such file; called only with names that
    cannot leave the folder. Without it, and for missing shards under ``allow_missing_shards``, no length
    is compared.
    Raises TensorCacheError that names the first contradiction; no other exception, whatever the input.
    """
    checker = _Checker("manifest" if path is None else path.name)
    document = checker.parse(manifest_json) if isinstance(manifest_json, bytes | str) else manifest_json
    shards = checker.shards(document)
    if shard_size is not None:
        for shard in shards:
            _check_length(shard, shard_size(shard.data_path), allow_missing_shards)
    return Manifest(shards, checker.metadata(document), path)


def _check_length(shard: Shard, nbytes: int | None, allow_missing: bool) -> None:
    if nbytes is None:
        if not allow_missing:
            raise TensorCacheError(
                "this shard is missing", where=shard.data_path, expected=f"{shard.nbytes} bytes",
                hint="The cache is incomplete. Fetch the file, or convert the model again.",
            )
    elif nbytes != shard.nbytes:
        raise TensorCacheError(
            "wrong length", where=shard.data_path, found=f"{nbytes} bytes",
            expected=f"{shard.nbytes} bytes, as the manifest says",
            hint="The file is truncated or damaged. Fetch it again, or convert the model again.",
        )


class _Checker:
    """One pass over one manifest; ``source`` names it in messages."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.names: set[str] = set()
        self.data_paths: set[str] = set()

    def fail(self, where: str, what: str, *, found: object = _NOT_GIVEN, expected: object = None,
             hint: str = _DAMAGED) -> NoReturn:
        shown = None if found is _NOT_GIVEN else _shown(found)
        location = f"{self.source}: {where}" if where else self.source
        raise TensorCacheError(what, where=location, found=shown, expected=expected, hint=hint)

    def parse(self, text: bytes | str) -> Any:
        if len(text) > MAX_MANIFEST_BYTES:
            self.fail("", "too long for a manifest", found=f"{len(text)} bytes",
                      expected=f"at most {MAX_MANIFEST_BYTES} bytes")
        if isinstance(text, bytes):
            try:
                text = text.decode("utf-8")
            except UnicodeDecodeError as reason:
                self.fail("", f"not UTF-8: byte {reason.start} is 0x{reason.object[reason.start]:02x}")
        if text.startswith("\ufeff"):
            self.fail("", "starts with a byte order mark", hint="Save the file as UTF-8 without one.")
        try:
            return json.loads(text, object_pairs_hook=self._object, parse_constant=self._number,
                              parse_float=self._number)
        except RecursionError:
            self.fail("", "nested too deeply")
        except ValueError as reason:  # bad JSON, or an integer of thousands of digits
            self.fail("", f"not valid JSON: {reason}")

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            self.fail("", "a key is given twice in one object", found=repeated)
        return result

    def _number(self, text: str) -> float:
        value = float(text)  # json also offers NaN and Infinity here
        if not math.isfinite(value):
            self.fail("", "numbers must be finite", found=text)
        return value

    def metadata(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        metadata = document.get("metadata", {})
        if not isinstance(metadata, Mapping):
            self.fail("metadata", "not an object", found=metadata)
        if _is_deeper(metadata, MAX_METADATA_DEPTH):
            self.fail("metadata", "nested too deeply", expected=f"at most {MAX_METADATA_DEPTH} levels")
        for key in ("ParamSize", "ParamBytes", "BitsPerParam"):
            value = metadata.get(key, 0)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 <= value <= MAX_INTEGER:
                self.fail(f"metadata.{key}", "not a number of 0 or more", found=value)
        return metadata

    def shards(self, document: Any) -> tuple[Shard, ...]:
        if not isinstance(document, Mapping):
            self.fail("", "not a JSON object", found=document)
        entries = self.array(document, "records", "")
        return tuple(self.shard(entry, f"records[{i}]") for i, entry in enumerate(entries))

    def shard(self, entry: Any, where: str) -> Shard:
        if not isinstance(entry, Mapping):
            self.fail(where, "a shard must be an object", found=entry)
        data_path = self.data_path(entry, where)
        where = f"{where} ({data_path})"
        shard_format = self.text(entry, "format", where)
        if shard_format != SHARD_FORMAT:
            self.fail(where, "unknown shard format", found=shard_format, expected=SHARD_FORMAT)
        nbytes = self.integer(self.required(entry, "nbytes", where), f"{where}.nbytes")
        records = tuple(
            self.record(record, nbytes, f"{where}.records[{i}]")
            for i, record in enumerate(self.array(entry, "records", where))
        )
        self.check_disjoint(records, where)
        md5sum = entry.get("md5sum")
        if "md5sum" in entry and not (isinstance(md5sum, str) and _MD5.fullmatch(md5sum)):
            self.fail(f"{where}.md5sum", "not an md5", found=md5sum, expected="32 lower-case hex digits")
        return Shard(data_path, nbytes, md5sum, records)

    def data_path(self, entry: Mapping[str, Any], where: str) -> str:
        """A relative path of plain names that stays inside the folder on every system."""
        name = self.text(entry, "dataPath", where)
        where = f"{where}.dataPath"
        leaves = any(part in ("", ".", "..") for part in name.split("/"))
        if leaves or "\\" in name or ":" in name:
            self.fail(where, "leads out of the folder, or is no plain file name", found=name,
                      expected="a file name such as params_shard_0.bin", hint=_UNSAFE)
        if "\0" in name:
            self.fail(where, "not usable as a file name", found=name, hint=_UNSAFE)
        if name in self.data_paths:
            self.fail(where, "two shards have this dataPath", found=name)
        self.data_paths.add(name)
        return name

    def record(self, entry: Any, shard_nbytes: int, where: str) -> Record:
        if not isinstance(entry, Mapping):
            self.fail(where, "a record must be an object", found=entry)
        name = self.text(entry, "name", where)
        where = f"{where} ({_shown(name)})"
        if name in self.names:
            self.fail(where, "two records have this name", found=name)
        self.names.add(name)
        dtype = self.text(entry, "dtype", where)
        if dtype not in DTYPES:
            self.fail(where, "unknown dtype", found=dtype, expected=f"one of {', '.join(DTYPES)}")
        record_format = self.text(entry, "format", where)
        shape = self.shape(entry, where)
        nbytes = self.integer(self.required(entry, "nbytes", where), f"{where}.nbytes")
        byte_offset = self.integer(self.required(entry, "byteOffset", where), f"{where}.byteOffset")
        self.check_size(shape, stored_dtype(dtype, record_format), nbytes, where)
        if byte_offset + nbytes > shard_nbytes:
            self.fail(where, "reaches past the end of its shard",
                      found=f"end at byte {byte_offset + nbytes}", expected=f"at most {shard_nbytes}")
        return Record(name, shape, dtype, record_format, nbytes, byte_offset)

    def shape(self, entry: Mapping[str, Any], where: str) -> tuple[int, ...]:
        dimensions = self.array(entry, "shape", where)
        if len(dimensions) > MAX_DIMENSIONS:
            self.fail(f"{where}.shape", "too many dimensions", found=len(dimensions),
                      expected=f"at most {MAX_DIMENSIONS}")
        return tuple(self.integer(n, f"{where}.shape[{i}]") for i, n in enumerate(dimensions))

    def check_size(self, shape: tuple[int, ...], stored: str, nbytes: int, where: str) -> None:
        # Zeros are left out of the bound: NumPy multiplies the other dimensions even when nothing is stored.
        extent = math.prod(n for n in shape if n) * itemsize(stored)
        if extent > MAX_INTEGER:
            self.fail(f"{where}.shape", "too large", found=str(list(shape)))
        needed = 0 if 0 in shape else extent
        if nbytes != needed:
            self.fail(where, "nbytes contradicts shape and dtype", found=f"{nbytes} bytes",
                      expected=f"{needed} bytes for shape {list(shape)} stored as {stored}")

    def check_disjoint(self, records: tuple[Record, ...], where: str) -> None:
        end, last = 0, None
        for record in sorted((r for r in records if r.nbytes), key=lambda r: r.byte_offset):
            if record.byte_offset < end and last is not None:
                self.fail(where, "two records overlap", found=f"{last.name} ends at byte {end}, "
                          f"{record.name} begins at {record.byte_offset}", expected="disjoint byte ranges")
            end, last = record.byte_offset + record.nbytes, record

    def required(self, entry: Mapping[str, Any], key: str, where: str) -> Any:
        if key not in entry:
            self.fail(where, f'the key "{key}" is missing')
        return entry[key]

    def text(self, entry: Mapping[str, Any], key: str, where: str) -> str:
        value = self.required(entry, key, where)
        if not isinstance(value, str):
            self.fail(f"{where}.{key}", "not a string", found=value)
        if not value.isprintable() and any("\ud800" <= character <= "\udfff" for character in value):
            self.fail(f"{where}.{key}", "not Unicode: half a surrogate pair", found=value)
        return value

    def array(self, entry: Mapping[str, Any], key: str, where: str) -> list[Any]:
        value = self.required(entry, key, where)
        if not isinstance(value, list):
            self.fail(f"{where}.{key}" if where else key, "not an array", found=value)
        return value

    def integer(self, value: Any, where: str) -> int:
        if type(value) is not int:  # bool is a subclass of int, and 8192.0 is refused by other readers
            self.fail(where, "not an integer", found=value)
        if not 0 <= value <= MAX_INTEGER:
            self.fail(where, "out of range", found=value, expected=f"0 to {MAX_INTEGER}")
        return value


def _is_deeper(value: object, levels: int) -> bool:
    """Whether ``value`` nests more than ``levels`` arrays and objects, and could not be written again."""
    if not isinstance(value, Mapping | list):
        return False
    children = value.values() if isinstance(value, Mapping) else value
    return levels == 0 or any(_is_deeper(child, levels - 1) for child in children)


def _shown(value: object, limit: int = 100) -> str:
    """``value`` for a message: as JSON spells it, on one line, bounded, printable."""
    if isinstance(value, Mapping | list):
        return "an array" if isinstance(value, list) else "an object"
    if isinstance(value, str):
        text = value if value.isprintable() else ascii(value)
    elif isinstance(value, int) and value.bit_length() > 512:
        text = "an enormous integer"
    else:
        text = json.dumps(value, default=repr)
    return text if len(text) <= limit else f"{text[:limit]}…"
