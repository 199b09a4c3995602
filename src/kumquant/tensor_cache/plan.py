"""Which record goes into which shard at which offset, from names, shapes and dtypes alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from ..dtypes import DTYPES, itemsize
from ..errors import TensorCacheError
from .manifest import F32_TO_BF16, RAW, Manifest, Record, Shard, stored_dtype

SHARD_CAP = 32 << 20


@dataclass(frozen=True, slots=True)
class FinishedShard:
    """A shard that lies under its final name, whole: what a journal keeps so that a conversion can resume."""

    data_path: str
    nbytes: int
    md5sum: str


@dataclass(frozen=True)
class ShardPlan:
    """A whole cache except its data and its md5 sums.

    shards: in the order in which they are finished and listed, md5sum None. records: in emission order; those
    of no bytes that the format drops are among them, but in no shard.
    """

    shards: tuple[Shard, ...]
    records: tuple[Record, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of all shards together: the disk space the cache needs, manifests aside."""
        return sum(shard.nbytes for shard in self.shards)

    @property
    def shard_of(self) -> dict[str, str]:
        """Record name -> data_path of its shard, dropped records left out."""
        return {record.name: shard.data_path for shard in self.shards for record in shard.records}

    def metadata(self, num_values: int | None) -> dict[str, Any]:
        """ParamSize, ParamBytes and BitsPerParam.

        num_values: checkpoint values as they were loaded (docs/format.md); None writes ParamSize only.
        """
        if num_values is None:
            return {"ParamSize": len(self.records)}
        num_bytes = float(sum(record.logical_nbytes for record in self.records))
        return {
            "ParamSize": len(self.records),
            "ParamBytes": num_bytes,
            "BitsPerParam": num_bytes * 8.0 / num_values if num_values else 0.0,
        }

    def manifest(self, md5sums: Mapping[str, str], num_values: int | None) -> Manifest:
        """The finished manifest. md5sums: data_path -> hex digest, one for every shard."""
        shards = (replace(shard, md5sum=md5sums[shard.data_path]) for shard in self.shards)
        return Manifest(tuple(shards), self.metadata(num_values))


def plan_shards(
    records: Iterable[tuple[str, Sequence[int], str]],
    *,
    shard_cap: int = SHARD_CAP,
    encoder: str = F32_TO_BF16,
) -> ShardPlan:
    """Place records in shards by MLC's rule.

    records: (name, shape, logical dtype) in emission order. encoder: "f32-to-bf16", or "raw" to keep float32.
    A record that does not fit beside the pending ones goes alone if it has half of ``shard_cap`` bytes or
    more (and is listed before records that came earlier), else it starts a new shard. Nothing is aligned.
    Raises TensorCacheError for a name given twice, an unknown dtype or encoder.
    Source: docs/format.md, "Shards".
    """
    if encoder not in (F32_TO_BF16, RAW):
        raise TensorCacheError("unknown encoder", where=encoder, expected=f"{F32_TO_BF16} or {RAW}")
    shards: list[Shard] = []
    emitted: list[Record] = []
    pending: list[Record] = []
    pending_nbytes = 0

    def write(members: list[Record], nbytes: int) -> None:
        shards.append(Shard(f"params_shard_{len(shards)}.bin", nbytes, None, tuple(members)))

    for name, shape, dtype in records:
        record = _new_record(name, tuple(shape), dtype, encoder)
        if pending_nbytes + record.nbytes >= shard_cap:
            if 2 * record.nbytes >= shard_cap:
                write([record], record.nbytes)
                emitted.append(record)
                continue
            # Not empty: a record under half the cap always fits into an empty shard.
            write(pending, pending_nbytes)
            pending, pending_nbytes = [], 0
        placed = Record(name, record.shape, dtype, encoder, record.nbytes, pending_nbytes)
        pending.append(placed)
        emitted.append(placed)
        pending_nbytes += record.nbytes
    if pending_nbytes > 0:
        write(pending, pending_nbytes)
    _refuse_repeated_names(emitted)
    return ShardPlan(tuple(shards), tuple(emitted))


def _new_record(name: str, shape: tuple[int, ...], dtype: str, encoder: str) -> Record:
    if dtype not in DTYPES:
        raise TensorCacheError("unknown dtype", where=name, found=dtype, expected=", ".join(DTYPES))
    nbytes = prod(shape) * itemsize(stored_dtype(dtype, encoder))
    return Record(name, tuple(int(n) for n in shape), dtype, encoder, nbytes, 0)


def _refuse_repeated_names(records: list[Record]) -> None:
    seen: set[str] = set()
    for record in records:
        if record.name in seen:
            hint = "Every tensor of a cache needs its own name."
            raise TensorCacheError("two records have this name", where=record.name, hint=hint)
        seen.add(record.name)
