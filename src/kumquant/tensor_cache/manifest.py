"""The manifest as data, and its text, byte for byte. Whoever reads a file goes through ``validate`` instead.

Source: docs/format.md.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite, prod
from pathlib import Path
from typing import Any

from ..dtypes import itemsize

MANIFEST_NAME = "tensor-cache.json"
TWIN_NAME = "tensor-cache-b16.json"
LEGACY_MANIFEST_NAME = "ndarray-cache.json"
LEGACY_TWIN_NAME = "ndarray-cache-b16.json"
# In the order in which a folder is searched; a twin is opened only where nothing else is.
MANIFEST_NAMES = (MANIFEST_NAME, LEGACY_MANIFEST_NAME, TWIN_NAME, LEGACY_TWIN_NAME)
TWIN_OF = {MANIFEST_NAME: TWIN_NAME, LEGACY_MANIFEST_NAME: LEGACY_TWIN_NAME}

F32_TO_BF16 = "f32-to-bf16"
RAW = "raw"
SHARD_FORMAT = "raw-shard"


@dataclass(frozen=True, slots=True)
class Record:
    """One tensor in a shard.

    shape, dtype: what a consumer sees; format: the encoder's name; nbytes, byte_offset: the stored bytes.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    nbytes: int
    byte_offset: int

    @property
    def stored_dtype(self) -> str:
        """The dtype of the stored bytes: bfloat16 for float32 under "f32-to-bf16", else ``dtype``."""
        return stored_dtype(self.dtype, self.format)

    @property
    def num_elements(self) -> int:
        return prod(self.shape)

    @property
    def logical_nbytes(self) -> int:
        """Bytes at the logical dtype, as ``ParamBytes`` counts them."""
        return self.num_elements * itemsize(self.dtype)


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of raw tensor bytes. md5sum: lower-case hex, None where the writer left it out."""

    data_path: str
    nbytes: int
    md5sum: str | None
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything a manifest says. metadata is kept as found; path is the file it came from, if any."""

    shards: tuple[Shard, ...]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None

    def records(self) -> Iterator[Record]:
        for shard in self.shards:
            yield from shard.records

    @property
    def num_records(self) -> int:
        return sum(len(shard.records) for shard in self.shards)

    @property
    def nbytes(self) -> int:
        """Bytes of all shards together."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def num_values(self) -> int | None:
        """Checkpoint values behind the cache, from ParamBytes and BitsPerParam; None where unknown."""
        num_bytes, bits = self.metadata.get("ParamBytes"), self.metadata.get("BitsPerParam")
        if not num_bytes or not bits:
            return None
        num_values = num_bytes * 8.0 / bits
        return round(num_values) if isfinite(num_values) else None

    def twin(self) -> Manifest:
        """The same shards with every rounded float32 record described as raw bfloat16: the ``-b16`` file."""
        shards = (replace(shard, records=tuple(map(_as_bfloat16, shard.records))) for shard in self.shards)
        return replace(self, shards=tuple(shards))

    @property
    def has_twin(self) -> bool:
        """Whether a writer leaves a twin: some record is float32 that is stored as bfloat16."""
        return any(record.stored_dtype != record.dtype for record in self.records())

    def to_text(self) -> str:
        """The manifest's text as MLC writes it: four spaces per level, ASCII, no newline at the end."""
        document = {"metadata": dict(self.metadata), "records": [_shard_json(shard) for shard in self.shards]}
        return json.dumps(document, indent=4)


def stored_dtype(dtype: str, record_format: str) -> str:
    return "bfloat16" if dtype == "float32" and record_format == F32_TO_BF16 else dtype


def _as_bfloat16(record: Record) -> Record:
    if record.stored_dtype == record.dtype:
        return record
    return replace(record, dtype="bfloat16", format=RAW)


def _shard_json(shard: Shard) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "dataPath": shard.data_path,
        "format": SHARD_FORMAT,
        "nbytes": shard.nbytes,
        "records": [
            {
                "name": record.name,
                "shape": list(record.shape),
                "dtype": record.dtype,
                "format": record.format,
                "nbytes": record.nbytes,
                "byteOffset": record.byte_offset,
            }
            for record in shard.records
        ],
    }
    if shard.md5sum is not None:
        fields["md5sum"] = shard.md5sum
    return fields
