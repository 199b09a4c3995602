"""CacheWriter: fills a ShardPlan with data, shard by shard, and writes the manifest last."""

from __future__ import annotations

import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ..dtypes import DTYPES, dtype_name, f32_to_bf16_bits
from ..errors import CapacityError, TensorCacheError
from ..files import atomic_write, fsync_dir, translated_os_errors
from .completion import ShardCompletion
from .manifest import (
    LEGACY_MANIFEST_NAME,
    LEGACY_TWIN_NAME,
    MANIFEST_NAME,
    MANIFEST_NAMES,
    TWIN_NAME,
    Manifest,
    Record,
)
from .plan import FinishedShard, ShardPlan, plan_shards
from .shard_file import ShardFile

# Elements encoded or copied at a time, so that no second copy of a record ever exists.
_BLOCK_ELEMENTS = 1 << 20
# Shards that may wait for md5 and flush; beyond that ``add`` waits, or writing would outrun the disk.
_MAX_COMPLETING = 6
_SHARD = re.compile(r"params_shard_\d+\.bin")
_PARTIAL_SHARD = re.compile(r"params_shard_\d+\.bin\.partial")


class CacheWriter:
    """Writes a planned cache into a folder: ``add`` every record in emission order, then ``finish``.

    Use as a context manager: leaving it early keeps finished shards, removes unfinished ones, and leaves
    no manifest. Data goes straight into the shard's file, so memory holds at most one block beside the
    record being added. While it is written a shard has a temporary name; full ones are flushed, hashed (some
    side by side, so one may wait for others) and renamed by worker threads.
    """

    def __init__(
        self,
        folder: Path | str,
        plan: ShardPlan,
        *,
        keep: Iterable[FinishedShard] = (),
        legacy_names: bool = False,
        on_shard: Callable[[FinishedShard], None] | None = None,
        workers: int = 3,
    ) -> None:
        """folder: made if need be. Manifests in it are removed, for it holds no whole cache from now on;
        ``finish`` removes shards of an earlier cache that this plan does not have.

        keep: shards of this plan that lie in the folder and were verified (``shards_that_verify``); their
        records need no data. legacy_names: also write ndarray-cache.json and its twin.
        on_shard: called in the adding thread for each shard that is finished, for a journal.
        workers: threads for md5 and flushing.
        Raises CapacityError when the disk has no room, TensorCacheError if a kept shard is not there.
        """
        self.folder, self.plan = Path(folder), plan
        self._legacy_names, self._on_shard = legacy_names, on_shard
        self._shard_nbytes = {shard.data_path: shard.nbytes for shard in plan.shards}
        self._shard_of = plan.shard_of
        self._md5sums = {shard.data_path: self._checked_md5sum(shard) for shard in keep}
        kept_or_dropped = {None, *self._md5sums}
        self._finished = {r.name for r in plan.records if self._shard_of.get(r.name) in kept_or_dropped}
        self._awaited = deque(record for record in plan.records if not self.is_finished(record.name))
        with translated_os_errors("make the folder", self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._check_space()
        with translated_os_errors("clear the folder", self.folder):
            for stale in [*MANIFEST_NAMES, *_matching(self.folder, _PARTIAL_SHARD)]:
                (self.folder / stale).unlink(missing_ok=True)
        self._open: dict[str, ShardFile] = {}
        self._completing: deque[tuple[ShardFile, Future[str]]] = deque()
        self._completion = ShardCompletion(workers)

    def is_finished(self, name: str) -> bool:
        """Whether the record needs no data: its shard is kept, or the format drops it (no bytes)."""
        return name in self._finished

    def add(self, name: str, data: np.ndarray | Iterable[np.ndarray]) -> None:
        """Write the next record; a record that ``is_finished`` is passed over.

        data: an array of the record's planned shape and logical dtype, or its consecutive pieces as arrays
        of any shape (for tensors too large to hold whole). It is written when this returns and may be reused.
        Raises TensorCacheError for a record out of order or of another shape or dtype, CapacityError when
        the disk is full; the writer is then closed and unfinished shards are removed.
        """
        if self.is_finished(name):
            return
        try:
            record = self._next_record(name)
            if record.nbytes:
                self._write(record, data)
            self._settle(_MAX_COMPLETING)
        except BaseException:
            self.abort()
            raise

    def flush(self) -> None:
        """Wait until every full shard has its final name and was reported to ``on_shard``."""
        self._settle(0)

    def finish(self, num_values: int | None) -> Manifest:
        """Wait for every shard, then write the twin (where the format has one) and, last, the manifest.

        num_values: checkpoint values as they were loaded, for BitsPerParam; None writes ParamSize alone.
        Raises TensorCacheError when records are still missing, CapacityError or Error when the disk fails.
        """
        try:
            if self._awaited:
                raise TensorCacheError(
                    "not every planned record was added", where=self.folder,
                    found=f"{len(self._awaited)} missing, the first is {self._awaited[0].name}",
                )
            self._settle(0)
            self._completion.stop()
            with translated_os_errors("flush the folder", self.folder):
                for stale in set(_matching(self.folder, _SHARD)) - self._shard_nbytes.keys():
                    (self.folder / stale).unlink()
                fsync_dir(self.folder)
            manifest = self.plan.manifest(self._md5sums, num_values)
            return self._write_manifests(manifest)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Stop: remove unfinished shards, keep finished ones, write no manifest; no effect once finished."""
        self._completion.stop()
        unfinished = [*self._open.values(), *(file for file, _ in self._completing)]
        self._open.clear()
        self._completing.clear()
        for file in unfinished:
            file.abandon()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.abort()

    def _checked_md5sum(self, shard: FinishedShard) -> str:
        planned = self._shard_nbytes.get(shard.data_path)
        path = self.folder / shard.data_path
        if planned != shard.nbytes or not path.is_file() or path.stat().st_size != planned:
            raise TensorCacheError(
                "this shard cannot be kept", where=path, found=f"{shard.nbytes} bytes in the journal",
                expected=f"a file of {planned} bytes" if planned else "no such shard",
                hint="Start the conversion over.",
            )
        return shard.md5sum

    def _check_space(self) -> None:
        wanted = [data_path for data_path in self._shard_nbytes if data_path not in self._md5sums]
        needed = sum(self._shard_nbytes[data_path] for data_path in wanted)
        with translated_os_errors("ask for the free space", self.folder):
            files = [self.folder / data_path for data_path in wanted]
            replaced = sum(file.stat().st_size for file in files if file.is_file())
            free = shutil.disk_usage(self.folder).free
        if free + replaced < needed:
            raise CapacityError(
                "not enough space on the disk", where=self.folder, found=f"{_amount(free)} free",
                expected=_amount(needed - replaced),
                hint="Free some space, or choose a folder on another disk.",
            )

    def _next_record(self, name: str) -> Record:
        if not self._awaited or self._awaited[0].name != name:
            expected = self._awaited[0].name if self._awaited else "no further record"
            raise TensorCacheError("this record comes out of order", where=name, expected=expected)
        return self._awaited.popleft()

    def _write(self, record: Record, data: np.ndarray | Iterable[np.ndarray]) -> None:
        data_path = self._shard_of[record.name]
        file = self._open.get(data_path)
        if file is None:
            file = self._open[data_path] = ShardFile(self.folder / data_path)
        for block in _encoded_blocks(record, data):
            file.write(block)
        if file.nbytes == self._shard_nbytes[data_path]:
            del self._open[data_path]
            self._completing.append((file, self._completion.submit(file)))

    def _settle(self, max_completing: int) -> None:
        """Take the results of completed shards; wait until at most ``max_completing`` are under way."""
        while self._completing and (len(self._completing) > max_completing or self._completing[0][1].done()):
            file, completion = self._completing[0]
            if not completion.done():
                self._completion.hurry()
            md5sum = completion.result()
            self._completing.popleft()
            self._md5sums[file.path.name] = md5sum
            if self._on_shard is not None:
                self._on_shard(FinishedShard(file.path.name, file.nbytes, md5sum))

    def _write_manifests(self, manifest: Manifest) -> Manifest:
        text = manifest.to_text()
        twin = manifest.twin().to_text() if manifest.has_twin else None
        names = [(LEGACY_TWIN_NAME, LEGACY_MANIFEST_NAME)] if self._legacy_names else []
        for twin_name, manifest_name in [*names, (TWIN_NAME, MANIFEST_NAME)]:
            if twin is not None:
                atomic_write(self.folder / twin_name, twin)
            atomic_write(self.folder / manifest_name, text)
        return replace(manifest, path=self.folder / MANIFEST_NAME)


def write_cache(
    folder: Path | str, tensors: Mapping[str, np.ndarray], num_values: int | None = None, *,
    legacy_names: bool = False,
) -> Manifest:
    """Write arrays that are all in memory as one cache, in the mapping's order. Raises as CacheWriter."""
    for name, array in tensors.items():
        if array.dtype not in DTYPES.values():
            raise TensorCacheError("not a dtype of the format", where=name, found=array.dtype)
    plan = plan_shards((name, array.shape, dtype_name(array.dtype)) for name, array in tensors.items())
    with CacheWriter(folder, plan, legacy_names=legacy_names) as writer:
        for name, array in tensors.items():
            writer.add(name, array)
        return writer.finish(num_values)


def _amount(nbytes: int) -> str:
    return f"{nbytes / 2**20:.0f} MiB" if nbytes >= 2**20 else f"{nbytes:,} bytes"


def _matching(folder: Path, pattern: re.Pattern[str]) -> list[str]:
    return [name for name in os.listdir(folder) if pattern.fullmatch(name)]


def _encoded_blocks(record: Record, data: np.ndarray | Iterable[np.ndarray]) -> Iterator[memoryview]:
    """The stored bytes of a record, block by block. Raises TensorCacheError unless data is as planned."""
    if isinstance(data, np.ndarray) and data.shape != record.shape:
        raise TensorCacheError("not the planned shape", where=record.name, found=data.shape,
                               expected=record.shape)
    num_elements = 0
    for piece in [data] if isinstance(data, np.ndarray) else data:
        num_elements += piece.size
        if piece.dtype != DTYPES[record.dtype]:
            raise TensorCacheError("not the planned dtype", where=record.name, found=piece.dtype,
                                   expected=record.dtype)
        if num_elements > record.num_elements:
            break
        for block in _contiguous_blocks(piece):
            stored = f32_to_bf16_bits(block) if record.stored_dtype != record.dtype else block
            yield stored.view(np.uint8).data
    if num_elements != record.num_elements:
        raise TensorCacheError("not the planned number of elements", where=record.name, found=num_elements,
                               expected=record.num_elements)


def _contiguous_blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The elements in row-major order as flat contiguous arrays of bounded size; copies only strided ones."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1)
        for start in range(0, flat.size, _BLOCK_ELEMENTS):
            yield flat[start : start + _BLOCK_ELEMENTS]
        return
    rows_per_block = max(1, _BLOCK_ELEMENTS // max(1, array[0].size))
    for start in range(0, len(array), rows_per_block):
        yield np.ascontiguousarray(array[start : start + rows_per_block]).reshape(-1)
