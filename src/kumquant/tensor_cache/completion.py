"""What becomes of full shards: flushed to the disk, hashed several side by side, then given their final name."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock, Timer

import numpy as np

from .md5 import MAX_STREAMS, Md5Stream, update_all
from .shard_file import ShardFile

# Fewer shards than that wait for company, because so many together take little longer than one alone; but not for
# long, so that a slow conversion that is killed has its shards in the journal.
_COMPANY = 4
_PATIENCE_SECONDS = 0.25
_CHUNK_BYTES = 128 << 10


class _Shard:
    """A shard on its way. flushed: the disk holds it. done: its md5 once it has its final name."""

    def __init__(self, file: ShardFile, flushed: Future[None]) -> None:
        self.file, self.flushed = file, flushed
        self.md5 = Md5Stream()
        self.done: Future[str] = Future()


class ShardCompletion:
    """Threads that complete shards. One of them hashes, the others wait for the disk."""

    def __init__(self, workers: int) -> None:
        """workers: threads, at least 1."""
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="kumquant-shard")
        self._lock = Lock()  # for everything below
        self._shards: list[_Shard] = []
        self._is_hashing = self._is_urgent = self._is_stopped = False
        self._timer: Timer | None = None

    def submit(self, file: ShardFile) -> Future[str]:
        """Flush, hash and rename a shard that is written; the result is its md5 as lower-case hex.

        Hashing may wait until more shards are there, for a moment, or until ``hurry``.
        """
        with self._lock:
            shard = _Shard(file, self._pool.submit(file.flush))
            self._shards.append(shard)
            self._start()
        return shard.done

    def hurry(self) -> None:
        """Somebody waits: go on with the shards that are there."""
        with self._lock:
            self._timer = None
            self._is_urgent = bool(self._shards)
            self._start()

    def stop(self) -> None:
        """End the threads soon; shards without their name by then never get one. Nothing is submitted afterwards."""
        with self._lock:
            self._is_stopped = True
            if self._timer is not None:
                self._timer.cancel()
        self._pool.shutdown(cancel_futures=True)

    def _start(self) -> None:
        if self._is_hashing or self._is_stopped:
            return
        if self._has_work():
            self._is_hashing = True
            self._pool.submit(self._hash)
        elif self._shards and self._timer is None:
            self._timer = Timer(_PATIENCE_SECONDS, self.hurry)
            self._timer.daemon = True
            self._timer.start()

    def _has_work(self) -> bool:
        return not self._is_stopped and len(self._shards) >= (1 if self._is_urgent else _COMPANY)

    def _hash(self) -> None:
        buffers = np.empty((MAX_STREAMS, _CHUNK_BYTES), np.uint8)
        while True:
            with self._lock:
                self._is_urgent = self._is_urgent and bool(self._shards)
                if not self._has_work():
                    self._is_hashing = False
                    self._start()  # those that are left are not forgotten
                    return
                shards = self._shards[:MAX_STREAMS]
            try:
                ended = _hash_chunks(shards, buffers)
            except BaseException as reason:
                for shard in shards:
                    shard.done.set_exception(reason)
                ended = dict.fromkeys(shards)
            with self._lock:
                self._shards = [shard for shard in self._shards if shard not in ended]
                if self._is_stopped:
                    return
                for shard, md5sum in ended.items():
                    if md5sum is not None:
                        self._pool.submit(_publish, shard, md5sum)


def _hash_chunks(shards: list[_Shard], buffers: np.ndarray) -> dict[_Shard, str | None]:
    """Hash the next chunk of each shard; those that end with it, and their md5."""
    ended: dict[_Shard, str | None] = {}
    whole: list[tuple[_Shard, np.ndarray]] = []
    for shard, buffer in zip(shards, buffers, strict=False):
        count = shard.file.read_into(buffer.data, shard.md5.nbytes)
        if count == len(buffer):
            whole.append((shard, buffer))
        else:
            ended[shard] = shard.md5.finish(buffer[:count])
    if whole:
        update_all([shard.md5 for shard, _ in whole], [buffer for _, buffer in whole])
    return ended


def _publish(shard: _Shard, md5sum: str) -> None:
    try:
        shard.flushed.result()  # was handed to the same threads earlier
        shard.file.publish()
    except BaseException as reason:
        shard.done.set_exception(reason)
    else:
        shard.done.set_result(md5sum)
