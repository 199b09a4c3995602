"""Compare a cache on disk with its manifest: every length, every md5, and the manifests beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

from ..errors import Error, RequestError, TensorCacheError
from ..files import translated_os_errors
from ..processors import available_processors
from ..progress import NO_PROGRESS, Progress
from .folder import ShardSizes, find_manifest, read_manifest
from .manifest import MANIFEST_NAMES, TWIN_OF, Manifest, Shard
from .plan import FinishedShard

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class VerifyReport:
    """What was compared.

    problems: one line each, empty for a whole cache. unchecked: shards that have no md5sum to compare.
    """

    shards: int
    tensors: int
    nbytes: int
    problems: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


class VerifyError(TensorCacheError):
    """A cache that is not what its manifest says; ``report`` has every problem."""

    def __init__(self, report: VerifyReport) -> None:
        self.report = report
        super().__init__(
            "\n".join(report.problems),
            hint="Fetch the files named above again, or convert the model again (with --force).",
        )


def verify(path: Path | str, progress: Progress = NO_PROGRESS, workers: int | None = None) -> VerifyReport:
    """Verify the cache at ``path``, a folder or a manifest, as ``verify_manifest`` does.

    Also for caches too damaged to open: a missing or truncated shard is one of the problems reported.
    """
    manifest = read_manifest(find_manifest(path), check_sizes=False)
    return verify_manifest(manifest, progress, workers)


def verify_manifest(
    manifest: Manifest, progress: Progress = NO_PROGRESS, workers: int | None = None
) -> VerifyReport:
    """Read every shard beside the manifest file and compare lengths, md5 and sibling manifests.

    manifest: one with a path. workers: threads that hash shards side by side, default one per CPU.
    progress counts bytes.
    Raises VerifyError that lists every problem, unless there is none.
    """
    if manifest.path is None:
        raise RequestError("only a manifest that was read from a file can be verified")
    folder = manifest.path.parent
    sizes = ShardSizes(folder)
    with _Hasher(progress, "verify", manifest.nbytes, workers) as hasher:
        found = hasher.pool.map(lambda shard: _shard_problem(shard, folder, sizes, hasher), manifest.shards)
        problems = [problem for problem in found if problem is not None]
    problems += _sibling_problems(manifest, manifest.path)
    unchecked = tuple(shard.data_path for shard in manifest.shards if shard.md5sum is None)
    num_shards, num_tensors = len(manifest.shards), manifest.num_records
    report = VerifyReport(num_shards, num_tensors, manifest.nbytes, tuple(problems), unchecked)
    if problems:
        raise VerifyError(report)
    return report


def shards_that_verify(
    folder: Path,
    finished: Iterable[FinishedShard],
    progress: Progress = NO_PROGRESS,
    workers: int | None = None,
) -> list[FinishedShard]:
    """Those of ``finished`` that lie in ``folder`` with the length and md5 they should have, order kept."""
    candidates = list(finished)
    total = sum(shard.nbytes for shard in candidates)
    with _Hasher(progress, "check finished shards", total, workers) as hasher:

        def is_whole(shard: FinishedShard) -> bool:
            path = folder / shard.data_path
            return path.is_file() and hasher.md5(path) == (shard.nbytes, shard.md5sum)

        return [shard for shard, whole in zip(candidates, hasher.pool.map(is_whole, candidates)) if whole]


class _Hasher:
    """Threads that hash files, with one progress for all of them; leaving the block early stops them soon."""

    def __init__(self, progress: Progress, what: str, total_bytes: int, workers: int | None) -> None:
        self._progress, self._what, self._total = progress, what, total_bytes
        self.pool = ThreadPoolExecutor(workers or len(available_processors()), thread_name_prefix="kumquant-md5")
        self._lock, self._stop = Lock(), Event()

    def __enter__(self) -> _Hasher:
        self._progress.start(self._total, self._what)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self.pool.shutdown(cancel_futures=True)
        self._progress.finish()

    def advance(self, nbytes: int, note: str) -> None:
        with self._lock:
            self._progress.advance(nbytes, note)

    def md5(self, path: Path) -> tuple[int, str]:
        """(length, hex digest) of the file, read to its end. Raises TensorCacheError."""
        digest, nbytes = hashlib.md5(usedforsecurity=False), 0
        buffer = memoryview(bytearray(_READ_BYTES))
        with translated_os_errors("read", path.name, TensorCacheError), path.open("rb", buffering=0) as file:
            while not self._stop.is_set() and (count := file.readinto(buffer)):
                digest.update(buffer[:count])
                nbytes += count
                self.advance(count, path.name)
        return nbytes, digest.hexdigest()


def _shard_problem(shard: Shard, folder: Path, sizes: ShardSizes, hasher: _Hasher) -> str | None:
    try:
        nbytes = sizes(shard.data_path)
        if nbytes is None:
            hasher.advance(shard.nbytes, shard.data_path)
            return f"{shard.data_path}: missing, manifest says {shard.nbytes} bytes"
        if nbytes != shard.nbytes:
            hasher.advance(shard.nbytes, shard.data_path)
            return f"{shard.data_path}: {nbytes} bytes, manifest says {shard.nbytes}"
        if shard.md5sum is None:
            hasher.advance(shard.nbytes, shard.data_path)
            return None
        found = hasher.md5(folder / shard.data_path)[1]
    except Error as reason:  # one line of the report; the other shards are still to be looked at
        return str(reason).splitlines()[0]
    if found != shard.md5sum:
        return f"{shard.data_path}: md5 is {found[:8]}…, manifest says {shard.md5sum[:8]}…"
    return None


def _sibling_problems(manifest: Manifest, path: Path) -> list[str]:
    """Manifests beside ``path`` must say the same: the older name literally, a twin with bfloat16 records."""
    name, folder = path.name, path.parent
    if name not in MANIFEST_NAMES:
        return []
    twins = set(TWIN_OF.values())
    problems = []
    for sibling in MANIFEST_NAMES:
        if sibling == name or not (folder / sibling).exists():
            continue
        try:
            other = read_manifest(folder / sibling, check_sizes=False)
        except TensorCacheError as reason:
            problems.append(str(reason).splitlines()[0])
            continue
        mine = manifest.twin() if sibling in twins and name not in twins else manifest
        theirs = other.twin() if name in twins and sibling not in twins else other
        if (mine.shards, mine.metadata) != (theirs.shards, theirs.metadata):
            problems.append(f"{sibling}: disagrees with {name} {_first_difference(mine, theirs)}")
    return problems


def _first_difference(mine: Manifest, theirs: Manifest) -> str:
    for shard, other in zip(mine.shards, theirs.shards):
        for record, other_record in zip(shard.records, other.records):
            if record != other_record:
                return f"about {record.name}"
        if shard != other:
            return f"about {shard.data_path}"
    return "about the number of shards" if len(mine.shards) != len(theirs.shards) else "in metadata"
