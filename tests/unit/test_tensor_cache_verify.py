"""verify: every problem of a damaged cache, in one report."""

import json
import os

import numpy as np
import pytest

from kumquant.errors import TensorCacheError
from kumquant.tensor_cache import (
    CacheWriter,
    FinishedShard,
    StoredTensors,
    VerifyError,
    VerifyReport,
    plan_shards,
    shards_that_verify,
    verify,
)


class RecordedProgress:
    def __init__(self):
        self.calls, self.total = [], 0

    def start(self, total_bytes, what):
        self.calls.append(("start", total_bytes, what))

    def advance(self, n, note=""):
        self.total += n

    def finish(self):
        self.calls.append(("finish",))


@pytest.fixture
def folder(tmp_path):
    """Six records of 500 float32 (1000 bytes stored) in three shards of 2000 bytes, with a twin."""
    plan = plan_shards([(f"t{i}", (500,), "float32") for i in range(6)], shard_cap=2900)
    with CacheWriter(tmp_path, plan, legacy_names=True) as writer:
        for i in range(6):
            writer.add(f"t{i}", np.arange(500, dtype=np.float32) + i)
        writer.finish(3000)
    return tmp_path


def damage(path, place=100):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_whole_cache(folder):
    progress = RecordedProgress()
    report = verify(folder, progress)
    assert report == VerifyReport(shards=3, tensors=6, nbytes=6000)
    assert progress.calls == [("start", 6000, "verify"), ("finish",)] and progress.total == 6000
    assert StoredTensors.open(folder).verify(workers=1) == report
    for name in ("tensor-cache-b16.json", "ndarray-cache.json", "ndarray-cache-b16.json"):
        assert verify(folder / name) == report


def test_every_problem_is_in_the_one_error(folder):
    damage(folder / "params_shard_1.bin")
    os.truncate(folder / "params_shard_2.bin", 1999)
    (folder / "params_shard_0.bin").unlink()
    edit(folder / "tensor-cache-b16.json", "bfloat16", "float16")
    (folder / "ndarray-cache.json").write_text("{")
    edit(folder / "ndarray-cache-b16.json", '"BitsPerParam": 32.0', '"BitsPerParam": 31.0')
    progress = RecordedProgress()
    with pytest.raises(VerifyError) as caught:
        verify(folder, progress)
    report = caught.value.report
    assert report.problems[0] == "params_shard_0.bin: missing, manifest says 2000 bytes"
    assert report.problems[1].startswith("params_shard_1.bin: md5 is ")
    assert report.problems[1].endswith(f"…, manifest says {md5_in_manifest(folder, 1)[:8]}…")
    assert report.problems[2] == "params_shard_2.bin: 1999 bytes, manifest says 2000"
    assert report.problems[3].startswith("ndarray-cache.json: not valid JSON")
    assert report.problems[4] == "tensor-cache-b16.json: disagrees with tensor-cache.json about t0"
    assert report.problems[5] == "ndarray-cache-b16.json: disagrees with tensor-cache.json in metadata"
    assert len(report.problems) == 6
    assert str(caught.value) == "\n".join(report.problems) + (
        "\nFetch the files named above again, or convert the model again (with --force)."
    )
    assert isinstance(caught.value, TensorCacheError)
    assert progress.total == 6000


def md5_in_manifest(folder, shard):
    return json.loads((folder / "tensor-cache.json").read_text())["records"][shard]["md5sum"]


def test_an_opened_cache_verifies_what_it_opened(folder):
    tensors = StoredTensors.open(folder)
    damage(folder / "params_shard_2.bin", place=1999)
    with pytest.raises(VerifyError, match=r"params_shard_2\.bin: md5 is \w{8}…, manifest says \w{8}…"):
        tensors.verify()


def test_shards_without_md5_are_counted_as_unchecked(folder):
    for name in ("tensor-cache-b16.json", "ndarray-cache.json", "ndarray-cache-b16.json"):
        (folder / name).unlink()
    document = json.loads((folder / "tensor-cache.json").read_text())
    del document["records"][1]["md5sum"]
    (folder / "tensor-cache.json").write_text(json.dumps(document))
    damage(folder / "params_shard_1.bin")
    progress = RecordedProgress()
    assert verify(folder, progress).unchecked == ("params_shard_1.bin",)
    assert progress.total == 6000


def test_a_cache_opened_by_its_twin_is_compared_with_the_main_manifest(folder):
    edit(folder / "tensor-cache.json", '"name": "t3"', '"name": "t9"')
    with pytest.raises(VerifyError, match=r"cache\.json: disagrees with tensor-cache-b16\.json about t3"):
        verify(folder / "tensor-cache-b16.json")


def test_no_twin_is_fine(folder):
    (folder / "tensor-cache-b16.json").unlink()
    assert verify(folder).problems == ()


def test_a_manifest_that_may_not_be_opened(folder):
    edit(folder / "tensor-cache.json", "params_shard_0.bin", "../params_shard_0.bin")
    with pytest.raises(TensorCacheError, match="leads out of the folder"):
        verify(folder)


def test_a_link_out_of_the_folder_is_a_problem_of_that_shard(folder, tmp_path_factory):
    target = tmp_path_factory.mktemp("elsewhere") / "x"
    (folder / "params_shard_1.bin").rename(target)
    (folder / "params_shard_1.bin").symlink_to(target)
    with pytest.raises(VerifyError, match=r"params_shard_1\.bin: a link that leads out of the folder"):
        verify(folder)


def test_shards_that_verify(folder):
    finished = [FinishedShard(f"params_shard_{i}.bin", 2000, md5_in_manifest(folder, i)) for i in range(3)]
    assert shards_that_verify(folder, finished) == finished
    damage(folder / "params_shard_0.bin")
    (folder / "params_shard_2.bin").unlink()
    assert shards_that_verify(folder, finished) == [finished[1]]
    os.truncate(folder / "params_shard_1.bin", 100)
    assert shards_that_verify(folder, finished) == []
