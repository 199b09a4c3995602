"""MD5 of several streams side by side, and what becomes of full shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kumquant import _native
from kumquant.errors import Error
from kumquant.tensor_cache import completion
from kumquant.tensor_cache.completion import ShardCompletion
from kumquant.tensor_cache.md5 import MAX_STREAMS, Md5Stream, update_all
from kumquant.tensor_cache.shard_file import ShardFile

RNG = np.random.default_rng(11)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, 128, 1000])
def test_one_stream_is_hashlib(size: int) -> None:
    data = RNG.integers(0, 256, size, np.uint8)
    assert Md5Stream().finish(data) == hashlib.md5(data).hexdigest()


@pytest.mark.parametrize("count", range(1, MAX_STREAMS + 1))
def test_streams_side_by_side_are_hashlib_each(count: int) -> None:
    streams = [Md5Stream() for _ in range(count)]
    data = RNG.integers(0, 256, (count, 64 * 5 + 17), np.uint8)
    update_all(streams, list(data[:, :128]))
    update_all(streams, list(data[:, 128:320]))
    assert [s.finish(rest) for s, rest in zip(streams, data[:, 320:], strict=True)] == [
        hashlib.md5(row).hexdigest() for row in data]


def test_what_the_kernel_refuses() -> None:
    state, block = np.zeros(16, np.uint8), np.zeros(64, np.uint8)
    for data in ([], [block] * (MAX_STREAMS + 1), [block, block], [block[:63]]):
        with pytest.raises(ValueError, match=r"streams|state|blocks"):
            _native.md5_update(state, data)
    with pytest.raises(ValueError, match="data: 0 bytes, expected 64"):
        _native.md5_update(np.zeros(32, np.uint8), [block, block[:0]])


@pytest.fixture
def shards() -> Iterator[ShardCompletion]:
    completion = ShardCompletion(workers=2)
    yield completion
    completion.stop()


def written(path: Path, size: int) -> ShardFile:
    file = ShardFile(path)
    file.write(memoryview(RNG.bytes(size)))
    return file


def test_shards_of_unlike_sizes_get_their_md5_and_their_name(
        tmp_path: Path, shards: ShardCompletion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_CHUNK_BYTES", 640)
    sizes = [5000, 640, 1, 0, 639, 641, 1280, 70, 20000, 3, 6400]
    futures = {f"{number}": shards.submit(written(tmp_path / f"{number}", size)) for number, size in enumerate(sizes)}
    shards.hurry()
    for name, future in futures.items():
        assert future.result() == hashlib.md5((tmp_path / name).read_bytes()).hexdigest()
    assert sorted(os.listdir(tmp_path)) == sorted(futures)


def test_one_shard_waits_for_others_or_for_somebody_who_hurries(
        tmp_path: Path, shards: ShardCompletion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_PATIENCE_SECONDS", 3600)
    first = shards.submit(written(tmp_path / "a", 100))
    assert not first.done() and os.listdir(tmp_path) == ["a.partial"]
    others = [shards.submit(written(tmp_path / name, 200)) for name in "bcd"]  # now there is company
    assert all(len(future.result()) == 32 for future in [first, *others])
    last = shards.submit(written(tmp_path / "e", 100))
    assert not last.done()
    shards.hurry()
    assert last.result() == hashlib.md5((tmp_path / "e").read_bytes()).hexdigest()


def test_nobody_waits_for_long(tmp_path: Path, shards: ShardCompletion, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion, "_PATIENCE_SECONDS", 0.01)
    for name in "ab":  # the second finds a clock that has run out
        future = shards.submit(written(tmp_path / name, 100))
        assert future.result() == hashlib.md5((tmp_path / name).read_bytes()).hexdigest()


def test_a_shard_that_cannot_be_read_says_so(
        tmp_path: Path, shards: ShardCompletion, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    future = shards.submit(written(tmp_path / "a", 100))
    shards.hurry()
    with pytest.raises(Error, match=r"a: cannot read the shard: Input/output error"):
        future.result()
    assert os.listdir(tmp_path) == ["a.partial"]
