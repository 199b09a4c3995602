"""StoredTensors: mapped, read only, unaligned, and honest about what is missing."""

import json
import os

import ml_dtypes
import numpy as np
import pytest

from kumquant.errors import TensorCacheError
from kumquant.tensor_cache import (
    CacheWriter,
    NoSuchRecordError,
    StoredTensors,
    find_manifest,
    plan_shards,
    write_cache,
)

RNG = np.random.default_rng(7)
TENSORS = {
    "flags": np.array([True, False, True]),  # three bytes: everything after it is unaligned
    "codes": RNG.integers(0, 2**32, (40, 6), np.uint32),
    "wide": RNG.standard_normal((33, 5)).astype(np.float32),
    "half": RNG.standard_normal(7).astype(np.float16),
    "brain": RNG.standard_normal((2, 9)).astype(ml_dtypes.bfloat16),
    "long": RNG.integers(-(2**60), 2**60, 3),
    "double": RNG.standard_normal(2),
    "fp8": RNG.standard_normal(5).astype(ml_dtypes.float8_e4m3fn),
    "scalar": np.array(2.5, np.float16),
    "empty": np.empty((0, 4), np.float16),
}


@pytest.fixture
def folder(tmp_path):
    write_cache(tmp_path, TENSORS, num_values=1000)
    return tmp_path


def test_a_mapping_of_read_only_views_into_the_file(folder):
    tensors = StoredTensors.open(folder)
    assert list(tensors) == list(TENSORS) and len(tensors) == len(TENSORS)
    assert "codes" in tensors and "nothing" not in tensors and tensors.get("nothing") is None
    for name, expected in TENSORS.items():
        stored = tensors[name]
        if name == "wide":
            expected = expected.astype(ml_dtypes.bfloat16)
        assert stored.shape == expected.shape and stored.dtype == expected.dtype
        assert stored.tobytes() == expected.tobytes()
        assert name == "empty" or not stored.flags.owndata
        with pytest.raises(ValueError, match="read-only"):
            stored[...] = 0
    assert not tensors["codes"].flags.aligned
    np.testing.assert_array_equal(tensors["codes"] >> 3, TENSORS["codes"] >> 3)
    np.testing.assert_array_equal(tensors["brain"].astype(np.float32), TENSORS["brain"].astype(np.float32))


def test_views_outlive_the_object_and_the_file_name(folder):
    codes = StoredTensors(folder)["codes"]
    os.unlink(folder / "params_shard_0.bin")
    np.testing.assert_array_equal(codes, TENSORS["codes"])


def test_unknown_names_are_key_errors_and_tensor_cache_errors(folder):
    tensors = StoredTensors.open(folder)
    for attempt in (tensors.__getitem__, tensors.record, tensors.release):
        with pytest.raises(NoSuchRecordError, match="nothing: no such record; expected one of the") as caught:
            attempt("nothing")
        assert isinstance(caught.value, KeyError) and isinstance(caught.value, TensorCacheError)


def test_release_all(tmp_path):
    write_cache(tmp_path, {"a": np.arange(100_000), "b": np.arange(200_000)})
    tensors = StoredTensors.open(tmp_path)
    tensors.release_all()  # nothing mapped yet
    views = {name: tensors[name] for name in tensors}
    assert sum(view.sum() for view in views.values()) > 0
    assert resident_pages(tmp_path / "params_shard_0.bin") > 500
    tensors.release_all()
    assert resident_pages(tmp_path / "params_shard_0.bin") == 0
    np.testing.assert_array_equal(views["b"], np.arange(200_000))


def test_release_keeps_the_values(tmp_path):
    big = RNG.integers(0, 2**32, (300, 1000), np.uint32)
    write_cache(tmp_path, {"first": np.ones(3, np.uint8), "big": big, "last": np.ones(5, np.uint8)})
    tensors = StoredTensors.open(tmp_path)
    tensors.release("big")  # nothing mapped yet
    view = tensors["big"]
    before = resident_pages(tmp_path / "params_shard_0.bin")
    assert view.sum() == big.sum()
    touched = resident_pages(tmp_path / "params_shard_0.bin")
    for name in tensors:
        tensors.release(name)
    assert touched - before > 250 and resident_pages(tmp_path / "params_shard_0.bin") < before + 20
    np.testing.assert_array_equal(view, big)


def resident_pages(path):
    """Pages of the file that are mapped into this process and present."""
    resident, inside = 0, False
    with open("/proc/self/smaps") as lines:
        for line in lines:
            if "-" in line.split(" ", 1)[0]:
                inside = line.rstrip().endswith(str(path))
            elif inside and line.startswith("Rss:"):
                resident += int(line.split()[1]) // 4
    return resident


def test_which_manifest_a_folder_is_opened_by(folder):
    main, legacy = folder / "tensor-cache.json", folder / "ndarray-cache.json"
    twin = folder / "tensor-cache-b16.json"
    assert find_manifest(folder) == main
    legacy.write_bytes(main.read_bytes())
    assert find_manifest(folder) == main
    main.unlink()
    assert find_manifest(folder) == legacy
    legacy.unlink()
    assert find_manifest(folder) == twin  # only because it is all there is
    assert StoredTensors.open(folder).record("wide").dtype == "bfloat16"
    twin.rename(folder / "ndarray-cache-b16.json")
    assert StoredTensors.open(folder).record("wide").dtype == "bfloat16"
    assert StoredTensors.open(folder / "ndarray-cache-b16.json")["codes"].shape == (40, 6)


def test_the_twin_by_its_own_path_gives_the_same_arrays(folder):
    tensors, twin = StoredTensors.open(folder), StoredTensors.open(folder / "tensor-cache-b16.json")
    for name in TENSORS:
        assert tensors[name].dtype == twin[name].dtype and tensors[name].tobytes() == twin[name].tobytes()


def test_paths_that_cannot_be_opened(tmp_path):
    with pytest.raises(TensorCacheError, match="no such file or folder"):
        StoredTensors.open(tmp_path / "nowhere")
    with pytest.raises(TensorCacheError, match=r"no manifest in this folder; expected tensor-cache\.json or"):
        StoredTensors.open(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(TensorCacheError, match="Convert it first: kumquant convert"):
        StoredTensors.open(tmp_path)
    with pytest.raises(TensorCacheError, match="File name too long"):
        StoredTensors.open(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "tensor-cache.json")
    with pytest.raises(TensorCacheError, match="not a regular file"):
        StoredTensors.open(tmp_path)


def test_a_folder_of_caches_is_told_from_one(tmp_path):
    for mode in ("a", "b"):
        (tmp_path / mode).mkdir()
        (tmp_path / mode / "tensor-cache.json").write_text("{}")
    with pytest.raises(TensorCacheError) as caught:
        StoredTensors(tmp_path)
    assert caught.value.hint == f"It holds caches: try {tmp_path / 'a'} or {tmp_path / 'b'}."


def test_missing_and_truncated_shards(folder):
    shard = folder / "params_shard_0.bin"
    whole = shard.read_bytes()
    tensors = StoredTensors.open(folder)
    shard.write_bytes(whole[:-1])
    with pytest.raises(TensorCacheError, match="changed since the cache was opened"):
        tensors["codes"]
    with pytest.raises(TensorCacheError, match=r"_0\.bin: wrong length; found 1389 bytes; expected 1390"):
        StoredTensors.open(folder)
    shard.unlink()
    with pytest.raises(TensorCacheError, match=r"params_shard_0\.bin: this shard is missing"):
        StoredTensors.open(folder)
    inspected = StoredTensors.open(folder, allow_missing_shards=True)
    assert inspected.missing_shards == ("params_shard_0.bin",)
    assert "codes" in inspected and inspected.record("codes").shape == (40, 6)
    with pytest.raises(TensorCacheError, match="this shard is missing, and codes is in it"):
        inspected["codes"]


def test_shards_that_are_no_plain_files(folder, tmp_path_factory):
    shard = folder / "params_shard_0.bin"
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "secret"
    shard.rename(elsewhere)
    shard.symlink_to(elsewhere)
    with pytest.raises(TensorCacheError, match="a link that leads out of the folder"):
        StoredTensors.open(folder)
    shard.unlink()
    shard.symlink_to(shard)
    with pytest.raises(TensorCacheError, match="symbolic links"):
        StoredTensors.open(folder)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(TensorCacheError, match="not a regular file"):
        StoredTensors.open(folder)
    shard.unlink()
    shard.mkdir()
    with pytest.raises(TensorCacheError, match="not a regular file"):
        StoredTensors.open(folder)
    shard.rmdir()
    (folder / "inside").symlink_to(folder)  # a link that stays inside is no harm
    elsewhere.rename(folder / "renamed")
    shard.symlink_to(folder / "inside" / "renamed")
    assert StoredTensors.open(folder)["codes"].shape == (40, 6)


def test_a_link_of_a_folder_out_of_the_folder(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "params_shard_0.bin").rename(elsewhere / "params_shard_0.bin")
    (folder / "sub").symlink_to(elsewhere)
    text = (folder / "tensor-cache.json").read_text().replace("params_shard_0", "sub/params_shard_0")
    (folder / "tensor-cache.json").write_text(text)
    with pytest.raises(TensorCacheError, match="a link that leads out of the folder"):
        StoredTensors.open(folder)


def test_the_download_folder_of_the_model_hub(folder, tmp_path_factory):
    repository = tmp_path_factory.mktemp("models--org--name")
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(["tensor-cache.json", "params_shard_0.bin"]):
        (folder / name).rename(blobs / f"hash{number}")
        (snapshot / name).symlink_to(f"../../blobs/hash{number}")
    assert StoredTensors.open(snapshot)["codes"].shape == (40, 6)
    assert StoredTensors.open(snapshot).verify().problems == ()


def test_several_shards(tmp_path):
    arrays = {f"t{i}": RNG.integers(0, 255, 700, np.uint8) for i in range(5)}
    plan = plan_shards([(name, a.shape, "uint8") for name, a in arrays.items()], shard_cap=1500)
    with CacheWriter(tmp_path, plan) as writer:
        for name, array in arrays.items():
            writer.add(name, array)
        writer.finish(None)
    tensors = StoredTensors.open(tmp_path)
    assert len(tensors.manifest.shards) == 3
    for name, array in arrays.items():
        np.testing.assert_array_equal(tensors[name], array)
    os.unlink(tmp_path / "params_shard_1.bin")
    partly = StoredTensors.open(tmp_path, allow_missing_shards=True)
    np.testing.assert_array_equal(partly["t0"], arrays["t0"])
    with pytest.raises(TensorCacheError, match="missing"):
        partly["t2"]


def test_an_empty_cache(tmp_path):
    write_cache(tmp_path, {})
    document = json.loads((tmp_path / "tensor-cache.json").read_text())
    assert document == {"metadata": {"ParamSize": 0}, "records": []}
    assert len(StoredTensors.open(tmp_path)) == 0
    assert StoredTensors.open(tmp_path).verify().nbytes == 0
