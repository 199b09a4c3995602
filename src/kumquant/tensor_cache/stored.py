"""StoredTensors: the tensors of a cache as they are stored, memory-mapped, read only, nothing copied."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import numpy as np

from ..dtypes import DTYPES
from ..errors import TensorCacheError
from ..files import translated_os_errors
from ..progress import NO_PROGRESS, Progress
from .folder import find_manifest, read_manifest
from .manifest import Manifest, Record, Shard
from .verify import VerifyReport, verify_manifest


class NoSuchRecordError(TensorCacheError, KeyError):
    """A name that is not in the cache; also a KeyError, as a mapping's users expect."""


class StoredTensors(Mapping[str, np.ndarray]):
    """Record name -> read-only array in the stored dtype (bfloat16 where the format stores it so).

    Arrays point into the mapped shard files: nothing is read before it is used. An array may be unaligned,
    because the format aligns nothing. They stay valid after this object is gone.
    """

    def __init__(self, path: Path | str, *, allow_missing_shards: bool = False) -> None:
        """path: the folder, or a manifest in it (also a ``-b16`` twin). Raises TensorCacheError.

        allow_missing_shards: open for inspection although shards are missing; reading a record of one raises.
        """
        manifest_path = find_manifest(path)
        self.manifest: Manifest = read_manifest(manifest_path, allow_missing_shards=allow_missing_shards)
        self.folder: Path = manifest_path.parent
        self._places: dict[str, tuple[Shard, Record]] = {
            record.name: (shard, record) for shard in self.manifest.shards for record in shard.records
        }
        self._maps: dict[str, mmap.mmap] = {}

    @classmethod
    def open(cls, path: Path | str, *, allow_missing_shards: bool = False) -> Self:
        """As the constructor."""
        return cls(path, allow_missing_shards=allow_missing_shards)

    @property
    def missing_shards(self) -> tuple[str, ...]:
        """data_path of every shard that is not on disk."""
        return tuple(s.data_path for s in self.manifest.shards if not (self.folder / s.data_path).exists())

    def record(self, name: str) -> Record:
        """What the manifest says about ``name``. Raises NoSuchRecordError."""
        return self._place(name)[1]

    def __getitem__(self, name: str) -> np.ndarray:
        shard, record = self._place(name)
        dtype = DTYPES[record.stored_dtype]
        if record.nbytes == 0:
            empty = np.empty(record.shape, dtype)
            empty.flags.writeable = False
            return empty
        return np.ndarray(record.shape, dtype, buffer=self._mapped(shard, name), offset=record.byte_offset)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def location(self, name: str) -> tuple[Path, int]:
        """The shard file of a record and the record's offset in it. Raises NoSuchRecordError."""
        shard, record = self._place(name)
        return self.folder / shard.data_path, record.byte_offset

    def release(self, name: str) -> None:
        """Give back the memory of this record's pages; its arrays stay valid and read from the file again.

        Only whole pages inside the record, so that its neighbors keep theirs. Raises NoSuchRecordError.
        """
        shard, record = self._place(name)
        mapped = self._maps.get(shard.data_path)
        if mapped is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        end = record.byte_offset + record.nbytes
        first_page = -(-record.byte_offset // mmap.PAGESIZE) * mmap.PAGESIZE
        page_end = end if end == shard.nbytes else end // mmap.PAGESIZE * mmap.PAGESIZE
        if first_page < page_end:
            mapped.madvise(mmap.MADV_DONTNEED, first_page, page_end - first_page)

    def release_all(self) -> None:
        """Give back the memory of every mapped page; arrays stay valid, as in ``release``."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)

    def verify(self, progress: Progress = NO_PROGRESS, workers: int | None = None) -> VerifyReport:
        """Compare shards and sibling manifests with the manifest; raises VerifyError with every problem."""
        return verify_manifest(self.manifest, progress, workers)

    def _place(self, name: str) -> tuple[Shard, Record]:
        try:
            return self._places[name]
        except KeyError:
            raise NoSuchRecordError(
                "no such record", where=name,
                expected=f"one of the {len(self)} records of {self.manifest.path}",
                hint="kumquant inspect lists the records of a cache.",
            ) from None

    def _mapped(self, shard: Shard, name: str) -> mmap.mmap:
        mapped = self._maps.get(shard.data_path)
        if mapped is None:
            mapped = self._maps.setdefault(shard.data_path, _map_shard(self.folder, shard, name))
        return mapped


def _map_shard(folder: Path, shard: Shard, name: str) -> mmap.mmap:
    path = folder / shard.data_path
    if not path.exists():
        raise TensorCacheError(
            f"this shard is missing, and {name} is in it", where=path,
            hint="The cache is incomplete. Fetch the file, or convert the model again.",
        )
    with translated_os_errors("map", path, TensorCacheError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            nbytes = os.fstat(descriptor).st_size
            if nbytes != shard.nbytes:
                raise TensorCacheError(
                    "the shard changed since the cache was opened", where=path, found=f"{nbytes} bytes",
                    expected=f"{shard.nbytes} bytes", hint="Open the cache again.",
                )
            return mmap.mmap(descriptor, nbytes, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
