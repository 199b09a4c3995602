"""The format against the outside: golden caches, golden vectors and the manifest of a published cache."""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from kumquant.dtypes import DTYPES, f32_to_bf16_bits
from kumquant.errors import TensorCacheError
from kumquant.schemes import SCHEMES
from kumquant.tensor_cache import (
    CacheWriter,
    StoredTensors,
    decode_groups,
    plan_shards,
    read_manifest,
    verify,
)

SHARED = Path(__file__).parents[2].parent / "shared"
CONFORMANCE = SHARED / "conformance"
MANIFESTS = sorted(CONFORMANCE.glob("cases/*/cache-*/tensor-cache*.json"))
SHARDING = CONFORMANCE / "vectors" / "sharding.json"

pytestmark = pytest.mark.skipif(
    not CONFORMANCE.is_dir(), reason="skipped: no ../shared/conformance beside the repository"
)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: "/".join(path.parts[-3:]))
def test_golden_manifests_read_verify_and_write_back_byte_for_byte(path):
    manifest = read_manifest(path)
    assert manifest.to_text().encode() == path.read_bytes()
    assert manifest.has_twin == ((path.parent / "tensor-cache-b16.json").exists() and "b16" not in path.name)
    report = verify(path)
    assert (report.tensors, report.unchecked) == (manifest.metadata["ParamSize"], ())
    for name, tensor in StoredTensors.open(path).items():
        assert tensor.nbytes == StoredTensors.open(path).record(name).nbytes


@pytest.mark.parametrize("path", [p for p in MANIFESTS if "b16" not in p.name],
                         ids=lambda path: "/".join(path.parts[-3:-1]))
def test_golden_caches_written_again_are_equal_byte_for_byte(path, tmp_path):
    tensors = StoredTensors.open(path)
    manifest = tensors.manifest
    plan = plan_shards((r.name, r.shape, r.dtype) for r in manifest.records())
    with CacheWriter(tmp_path, plan) as writer:
        for record in manifest.records():
            writer.add(record.name, tensors[record.name].astype(DTYPES[record.dtype]))
        writer.finish(manifest.num_values)
    for written in tmp_path.iterdir():
        assert written.read_bytes() == (path.parent / written.name).read_bytes(), written.name
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in path.parent.iterdir()}


def sharding_cases():
    return json.loads(SHARDING.read_text())["cases"] if SHARDING.exists() else []


@pytest.mark.parametrize("case", sharding_cases(), ids=lambda case: case["name"])
def test_sharding(case, tmp_path):
    inputs = [(i["name"], i["shape"], i["dtype"]) for i in case["inputs"]]
    plan = plan_shards(inputs, shard_cap=case["shard_cap_mb"] << 20, encoder=case["encode_format"])
    with CacheWriter(tmp_path, plan) as writer:
        for position, (name, shape, dtype) in enumerate(inputs):
            index = np.arange(math.prod(shape), dtype=np.uint64)
            values = ((index * 2654435761 + 97 * position) % 2**32) >> 24
            writer.add(name, values.astype(DTYPES[dtype]).reshape(shape))
        writer.finish(None)
    assert sorted(path.name for path in tmp_path.iterdir()) == case["files"]
    assert (tmp_path / "tensor-cache.json").read_text() == json.dumps(case["manifest"], indent=4)
    if case["b16_manifest"] is not None:
        assert (tmp_path / "tensor-cache-b16.json").read_text() == json.dumps(case["b16_manifest"], indent=4)
    assert verify(tmp_path).shards == len(case["manifest"]["records"])


def test_f32_to_bf16():
    vectors = np.load(CONFORMANCE / "vectors" / "f32_to_bf16.npz")
    rounded = f32_to_bf16_bits(vectors["f32_bits"].view(np.float32))
    np.testing.assert_array_equal(rounded, vectors["bf16_bits"])


@pytest.mark.parametrize("mode", [name for name, scheme in SCHEMES.items() if scheme.has_groups and scheme.bits < 8])
def test_dequantized_vectors(mode):
    """The reference rounds the product to the model dtype; ours is exact, and equal once rounded."""
    scheme = SCHEMES[mode]
    with np.load(CONFORMANCE / "vectors" / "quantize_vectors.npz") as vectors:
        kinds = sorted({key.split("/")[1] for key in vectors.files if key.startswith(f"{mode}/")})
        assert {"random", "partial", "tiny_k", "edges", "nonfinite"} <= set(kinds)
        for kind in kinds:
            codes, scales, expected = (
                vectors[f"{mode}/{kind}/{part}"] for part in ("q_weight", "q_scale", "dequantized_f32")
            )
            if scales.dtype == np.uint16:
                scales = scales.view(DTYPES[scheme.model_dtype])
            width = expected.shape[0 if scheme.layout == "KN" else -1]
            exact = decode_groups(codes, scales, scheme, width)
            with np.errstate(over="ignore"):
                rounded = exact.astype(DTYPES[scheme.model_dtype]).astype(np.float32)
            if scheme.layout == "KN":
                rounded = rounded.T
            np.testing.assert_array_equal(bits(rounded), bits(expected), err_msg=f"{mode} {kind}")


def bits(values):
    """Bit patterns, so that -0 is not 0; one pattern for every NaN, whose sign and payload mean nothing."""
    return np.where(np.isnan(values), np.uint32(0x7FC00000), np.ascontiguousarray(values).view(np.uint32))


def test_the_published_manifest_opens_without_its_shards_and_writes_back_byte_for_byte():
    path = SHARED / "seed" / "ndarray-cache-b16.json"
    if not path.exists():
        pytest.skip("skipped: no ../shared/seed beside the repository")
    tensors = StoredTensors.open(path, allow_missing_shards=True)
    manifest = tensors.manifest
    assert manifest.to_text().encode() == path.read_bytes()
    assert tensors.missing_shards == ("params_shard_0.bin", "params_shard_1.bin")
    assert (manifest.num_records, manifest.nbytes, manifest.num_values) == (65, 56_974_848, 101_263_104)
    assert manifest.nbytes * 8 / manifest.num_values == pytest.approx(4.50113, abs=5e-6)
    with pytest.raises(TensorCacheError, match="missing"):
        tensors["lm_head.q_weight"]
    with pytest.raises(TensorCacheError, match="missing"):
        StoredTensors.open(path)
    assert ml_dtypes.bfloat16 == DTYPES[tensors.record("lm_head.q_scale").stored_dtype]


def test_the_published_manifest_follows_from_its_names_and_shapes():
    path = SHARED / "seed" / "ndarray-cache-b16.json"
    if not path.exists():
        pytest.skip("skipped: no ../shared/seed beside the repository")
    published = read_manifest(path, check_sizes=False)
    before_twin = {"bfloat16": "float32", "uint32": "uint32"}
    plan = plan_shards((r.name, r.shape, before_twin[r.dtype]) for r in published.records())
    md5sums = {shard.data_path: shard.md5sum for shard in published.shards}
    assert plan.manifest(md5sums, 101_263_104).twin().to_text().encode() == path.read_bytes()
