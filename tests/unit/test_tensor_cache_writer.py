"""plan_shards and CacheWriter: the plan is the cache, and half a cache is never seen."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from kumquant.dtypes import f32_to_bf16_bits
from kumquant.errors import CapacityError, Error, TensorCacheError
from kumquant.tensor_cache import (
    CacheWriter,
    FinishedShard,
    StoredTensors,
    plan_shards,
    shards_that_verify,
    verify,
    write_cache,
)

RNG = np.random.default_rng(3)
ARRAYS = {f"t{i}": RNG.integers(0, 255, 700 + i, np.uint8) for i in range(7)}
PLAN = plan_shards([(name, a.shape, "uint8") for name, a in ARRAYS.items()], shard_cap=1500)


def fill(writer, num_values=None):
    for name, array in ARRAYS.items():
        writer.add(name, array)
    return writer.finish(num_values)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def whole(tmp_path_factory):
    """The cache of ARRAYS as an undisturbed run writes it."""
    folder = tmp_path_factory.mktemp("whole")
    with CacheWriter(folder, PLAN) as writer:
        fill(writer)
    return folder


def assert_same_files(folder, expected):
    assert names_in(folder) == names_in(expected)
    for name in names_in(expected):
        assert (folder / name).read_bytes() == (expected / name).read_bytes(), name


# The plan


def placed(plan):
    return [(s.data_path, s.nbytes, [(r.name, r.byte_offset) for r in s.records]) for s in plan.shards]


def test_a_large_record_overtakes_the_pending_ones():
    plan = plan_shards([("a", [10], "uint8"), ("big", [50], "uint8"), ("b", [20], "uint8")], shard_cap=60)
    assert placed(plan) == [
        ("params_shard_0.bin", 50, [("big", 0)]), ("params_shard_1.bin", 30, [("a", 0), ("b", 10)])
    ]
    assert [plan.shard_of[name] for name in ("big", "a", "b")] == [f"params_shard_{n}.bin" for n in (0, 1, 1)]
    assert [record.name for record in plan.records] == ["a", "big", "b"] and plan.nbytes == 80


def test_records_of_no_bytes_vanish_or_wait_for_the_next_shard_with_data():
    empty = [("e0", [0], "float16"), ("e1", [3, 0], "float32")]
    alone = plan_shards(empty, shard_cap=60)
    assert placed(alone) == [] and alone.metadata(None) == {"ParamSize": 2}
    # A record written alone does not take them along; the next pending one does.
    more = [("big", [60], "uint8"), ("a", [4], "uint8"), ("e2", [0], "int8")]
    plan = plan_shards([*empty, *more], shard_cap=60)
    assert placed(plan) == [
        ("params_shard_0.bin", 60, [("big", 0)]),
        ("params_shard_1.bin", 4, [("e0", 0), ("e1", 0), ("a", 0), ("e2", 4)]),
    ]


def test_dropped_records_are_counted_and_need_no_data(tmp_path):
    plan = plan_shards([("big", [60], "uint8"), ("e", [0, 2], "float16")], shard_cap=60)
    with CacheWriter(tmp_path, plan) as writer:
        assert writer.is_finished("e") and not writer.is_finished("big")
        writer.add("big", np.zeros(60, np.uint8))
        writer.add("e", np.empty((0, 2), np.float16))
        manifest = writer.finish(60)
    assert manifest.metadata == {"ParamSize": 2, "ParamBytes": 60.0, "BitsPerParam": 8.0}
    assert list(StoredTensors.open(tmp_path)) == ["big"]


def test_float32_counts_two_stored_bytes_and_four_logical_ones():
    records = [("w", [10, 3], "float32"), ("q", [5], "uint32")]
    plan = plan_shards(records)
    assert plan.nbytes == 80
    assert plan.metadata(100) == {"ParamSize": 2, "ParamBytes": 140.0, "BitsPerParam": 11.2}
    raw = plan_shards(records, encoder="raw")
    assert raw.nbytes == 140 and raw.records[0].format == "raw"


def test_plans_that_are_refused():
    with pytest.raises(TensorCacheError, match="a: two records have this name"):
        plan_shards([("a", [1], "uint8"), ("a", [2], "uint8")])
    with pytest.raises(TensorCacheError, match="a: unknown dtype; found q4_0"):
        plan_shards([("a", [1], "q4_0")])
    with pytest.raises(TensorCacheError, match="unknown encoder"):
        plan_shards([], encoder="zip")


# Filling it


def test_written_tensors_come_back_as_stored(tmp_path):
    tensors = {
        "wide": RNG.standard_normal((7, 33)).astype(np.float32),
        "half": RNG.standard_normal((5, 3)).astype(np.float16),
        "brain": RNG.standard_normal(9).astype(ml_dtypes.bfloat16),
        "codes": RNG.integers(0, 2**32, (3, 4), np.uint32),
        "scalar": np.array(3, np.int64),
        "empty": np.empty((2, 0), np.float32),
    }
    manifest = write_cache(tmp_path, tensors, num_values=300, legacy_names=True)
    assert names_in(tmp_path) == [
        "ndarray-cache-b16.json", "ndarray-cache.json", "params_shard_0.bin", "tensor-cache-b16.json",
        "tensor-cache.json",
    ]
    for kind in ("", "-b16"):
        new, old = tmp_path / f"tensor-cache{kind}.json", tmp_path / f"ndarray-cache{kind}.json"
        assert new.read_bytes() == old.read_bytes()
    assert (tmp_path / "tensor-cache.json").read_text() == manifest.to_text()
    stored = StoredTensors.open(tmp_path)
    assert stored.verify().tensors == 6 and stored.manifest == manifest
    assert stored["wide"].tobytes() == f32_to_bf16_bits(tensors["wide"]).tobytes()
    for name in ("half", "brain", "codes", "scalar"):
        assert stored[name].dtype == tensors[name].dtype and stored[name].tobytes() == tensors[name].tobytes()
    shard = (tmp_path / "params_shard_0.bin").read_bytes()
    assert manifest.shards[0].md5sum == hashlib.md5(shard).hexdigest()


def test_no_twin_without_float32(tmp_path):
    write_cache(tmp_path, {"a": np.ones(3, np.float16)})
    assert names_in(tmp_path) == ["params_shard_0.bin", "tensor-cache.json"]


def test_pieces_and_strided_arrays_give_the_same_bytes(tmp_path):
    matrix = RNG.standard_normal((300, 700)).astype(np.float32)
    plan = plan_shards([("m", matrix.shape, "float32"), ("t", matrix.shape[::-1], "float32")])
    with CacheWriter(tmp_path / "arrays", plan) as writer:
        writer.add("m", matrix)
        writer.add("t", matrix.T)
        writer.finish(None)
    with CacheWriter(tmp_path / "pieces", plan) as writer:
        writer.add("m", (matrix[start : start + 7] for start in range(0, 300, 7)))
        writer.add("t", iter([matrix.T[:400], matrix.T[400:].reshape(-1)]))
        writer.finish(None)
    assert_same_files(tmp_path / "pieces", tmp_path / "arrays")
    expected = f32_to_bf16_bits(matrix).tobytes() + f32_to_bf16_bits(np.ascontiguousarray(matrix.T)).tobytes()
    assert (tmp_path / "arrays" / "params_shard_0.bin").read_bytes() == expected


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t1", ARRAYS["t1"], "t1: this record comes out of order; expected t0"),
        ("other", ARRAYS["t0"], "other: this record comes out of order"),
        ("t0", ARRAYS["t1"], r"t0: not the planned shape; found \(701,\); expected \(700,\)"),
        ("t0", ARRAYS["t0"].astype(np.int8), "t0: not the planned dtype; found int8; expected uint8"),
        ("t0", [ARRAYS["t0"][:300]], "t0: not the planned number of elements; found 300; expected 700"),
        ("t0", [ARRAYS["t0"], ARRAYS["t0"]], "t0: not the planned number of elements; found 1400"),
    ],
)
def test_data_that_is_not_as_planned_ends_the_writing(tmp_path, name, data, message):
    with CacheWriter(tmp_path, PLAN) as writer, pytest.raises(TensorCacheError, match=message):
        writer.add(name, data)
    assert names_in(tmp_path) == []


def test_finish_before_every_record_is_there(tmp_path):
    with CacheWriter(tmp_path, PLAN) as writer:
        writer.add("t0", ARRAYS["t0"])
        with pytest.raises(TensorCacheError, match="record was added; found 6 missing, the first is t1"):
            writer.finish(None)
    assert names_in(tmp_path) == []


def test_write_cache_refuses_dtypes_the_format_does_not_have(tmp_path):
    with pytest.raises(TensorCacheError, match="a: not a dtype of the format; found complex64"):
        write_cache(tmp_path / "out", {"a": np.ones(1, np.complex64)})
    assert not (tmp_path / "out").exists()


# Half a cache is never seen


def test_no_manifest_and_no_unfinished_shard_after_leaving_early(tmp_path):
    with pytest.raises(KeyboardInterrupt), CacheWriter(tmp_path, PLAN) as writer:
        for name in ("t0", "t1", "t2"):
            writer.add(name, ARRAYS[name])
        raise KeyboardInterrupt
    assert names_in(tmp_path) in ([], ["params_shard_0.bin"])  # the full shard, if it was ready


def test_an_old_cache_is_replaced_whole(tmp_path, whole):
    big = {f"o{i}": np.full(17 << 20, i, np.uint8) for i in range(6)}
    write_cache(tmp_path, big, legacy_names=True)
    assert len(names_in(tmp_path)) == 8
    (tmp_path / "params_shard_9.bin.partial").write_bytes(b"left by a killed run")
    with CacheWriter(tmp_path, PLAN) as writer:
        assert not any(name.endswith((".json", ".partial")) for name in names_in(tmp_path))
        fill(writer)
    assert_same_files(tmp_path, whole)


def test_a_killed_process_leaves_no_manifest_and_the_next_run_resumes(tmp_path, whole):
    script = f"""
import os, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
from test_tensor_cache_writer import ARRAYS, PLAN
from kumquant.tensor_cache import CacheWriter
journal = lambda shard: print(shard.data_path, shard.nbytes, shard.md5sum, flush=True)
writer = CacheWriter({str(tmp_path)!r}, PLAN, on_shard=journal)
for name in list(ARRAYS)[:5]:
    writer.add(name, ARRAYS[name])
    writer.flush()
os.kill(os.getpid(), 9)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert run.returncode == -9, run.stderr
    assert names_in(tmp_path) == ["params_shard_0.bin", "params_shard_1.bin", "params_shard_2.bin.partial"]
    lines = [line.split() for line in run.stdout.splitlines()]
    journal = [FinishedShard(path, int(nbytes), md5sum) for path, nbytes, md5sum in lines]
    resume(tmp_path, journal, expected_kept=2)
    assert_same_files(tmp_path, whole)


def resume(folder, journal, expected_kept):
    kept = shards_that_verify(folder, journal)
    assert len(kept) == expected_kept
    finished = []
    with CacheWriter(folder, PLAN, keep=kept, on_shard=finished.append) as writer:
        before = {s.data_path: os.stat(folder / s.data_path).st_ino for s in kept}
        untouched = {name for name in ARRAYS if writer.is_finished(name)}
        assert untouched == {name for name, path in PLAN.shard_of.items() if path in before}
        for name, array in ARRAYS.items():
            if name not in untouched or name == "t0":  # adding a finished record is allowed and does nothing
                writer.add(name, array)
        writer.finish(None)
    assert {path: os.stat(folder / path).st_ino for path in before} == before
    assert [s.data_path for s in finished] == [s.data_path for s in PLAN.shards if s.data_path not in before]


def test_resuming_from_a_shard_in_the_middle(tmp_path, whole):
    journal = [
        FinishedShard(s["dataPath"], s["nbytes"], s["md5sum"])
        for s in json.loads((whole / "tensor-cache.json").read_text())["records"]
    ]
    shutil.copy(whole / "params_shard_1.bin", tmp_path)
    shutil.copy(whole / "params_shard_2.bin", tmp_path)
    (tmp_path / "params_shard_2.bin").write_bytes(b"\0" * journal[2].nbytes)  # not what the journal says
    resume(tmp_path, journal, expected_kept=1)
    assert_same_files(tmp_path, whole)


def test_shards_that_cannot_be_kept(tmp_path, whole):
    for shard in (
        FinishedShard("params_shard_9.bin", 5, "0" * 32),
        FinishedShard("params_shard_0.bin", 5, "0" * 32),
        FinishedShard("../params_shard_0.bin", PLAN.shards[0].nbytes, "0" * 32),
    ):
        with pytest.raises(TensorCacheError, match="this shard cannot be kept"):
            CacheWriter(whole, PLAN, keep=[shard])
    with pytest.raises(TensorCacheError, match="this shard cannot be kept"):
        absent = FinishedShard("params_shard_0.bin", PLAN.shards[0].nbytes, "0" * 32)
        CacheWriter(tmp_path, PLAN, keep=[absent])
    assert verify(whole).shards == 4  # nothing was touched


# Disks that fail


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_nothing_under_a_final_name(tmp_path, monkeypatch, call):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    message = r"params_shard_0\.bin: cannot write the shard: No space"
    with pytest.raises(CapacityError, match=message) as caught, CacheWriter(tmp_path, PLAN) as writer:
        fill(writer)
    assert "Free some space" in caught.value.hint
    assert names_in(tmp_path) == []


def test_a_disk_that_fills_up_later_keeps_the_finished_shards_and_the_next_run_goes_on(
    tmp_path, monkeypatch, whole
):
    written, write = [], os.write

    def full_after_three_records(descriptor, data):
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(len(data))
        return write(descriptor, data)

    journal = []
    with monkeypatch.context() as patched, pytest.raises(CapacityError):
        patched.setattr(os, "write", full_after_three_records)
        with CacheWriter(tmp_path, PLAN, on_shard=journal.append) as writer:
            for name in ("t0", "t1"):
                writer.add(name, ARRAYS[name])
            writer.flush()
            for name in list(ARRAYS)[2:]:
                writer.add(name, ARRAYS[name])
    assert names_in(tmp_path) == ["params_shard_0.bin"]
    resume(tmp_path, journal, expected_kept=1)
    assert_same_files(tmp_path, whole)


def test_a_full_disk_at_the_manifest(tmp_path, monkeypatch):
    opened = os.open

    def no_manifest(path, *args, **kwargs):
        if "tensor-cache" in os.fspath(path):
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return opened(path, *args, **kwargs)

    with CacheWriter(tmp_path, PLAN) as writer:
        monkeypatch.setattr(os, "open", no_manifest)
        with pytest.raises(CapacityError, match=r"tensor-cache\.json: cannot write: Disk quota exceeded"):
            fill(writer)
    assert names_in(tmp_path) == [shard.data_path for shard in PLAN.shards]


def test_too_little_space_is_noticed_before_anything_is_written(whole, monkeypatch):
    usage = shutil.disk_usage(whole)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 20))
    huge = plan_shards([("a", [64 << 20], "uint8"), ("b", [8 << 20], "uint8")])
    with pytest.raises(CapacityError, match="not enough space on the disk; found 1 MiB free; expected 72"):
        CacheWriter(whole, huge)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 19))
    small = plan_shards([("a", [1000 << 10], "uint8")])
    with pytest.raises(CapacityError, match=r"found 524,288 bytes free; expected [0-9,]+ bytes"):
        CacheWriter(whole / "new", small)
    assert verify(whole).shards == 4
    with CacheWriter(whole, PLAN) as writer:
        fill(writer)


def test_a_file_where_the_folder_should_be(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(Error, match="cannot make the folder: File exists"):
        CacheWriter(tmp_path / "out", PLAN)
