"""Round-to-nearest against MLC's own results: the twin, and the kernels on every instruction set."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from kumquant import _native
from kumquant.quant import new_outputs, reference, round_to_nearest
from kumquant.schemes import SCHEMES, Scheme

VECTORS = Path(__file__).parents[2].parent / "shared" / "conformance" / "vectors" / "quantize_vectors.npz"
pytestmark = pytest.mark.skipif(not VECTORS.is_file(), reason="skipped: no ../shared/conformance")

KINDS = ("random", "partial", "tiny_k", "edges", "nonfinite")
SIXTEEN_BITS = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
MODES = [name for name, scheme in SCHEMES.items() if scheme.has_groups and not name.startswith("q8")]
CASES = [*((mode, kind) for mode in MODES for kind in KINDS),
         *((mode, "experts3d") for mode in ("q3f16_1", "q4f16_1", "q4f32_1"))]


@pytest.fixture(scope="module")
def vectors() -> dict[str, np.ndarray]:
    with np.load(VECTORS) as archive:
        return dict(archive)


def case(vectors: dict[str, np.ndarray], scheme: Scheme,
         kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight (rows, width) in the model dtype; codes and the bit patterns of the scales, row by row."""
    prefix = f"{scheme.name}/{kind}/"
    weight, codes, scales = (vectors[prefix + name] for name in ("weight", "q_weight", "q_scale"))
    if scheme.model_dtype in SIXTEEN_BITS:
        weight = weight.view(SIXTEEN_BITS[scheme.model_dtype])
    else:
        scales = scales.view(np.uint32)
    if scheme.layout == "KN":
        codes, scales = codes.T, scales.T
    return (weight.reshape(-1, weight.shape[-1]), codes.reshape(-1, codes.shape[-1]),
            scales.reshape(-1, scales.shape[-1]))


def test_every_vector_is_used(vectors: dict[str, np.ndarray]) -> None:
    assert {tuple(name.split("/")[:2]) for name in vectors} == set(CASES)


@pytest.mark.parametrize(("mode", "kind"), CASES)
def test_twin(vectors: dict[str, np.ndarray], mode: str, kind: str) -> None:
    scheme = SCHEMES[mode]
    weight, expected_codes, expected_scales = case(vectors, scheme, kind)
    codes, scales = reference.quantize(weight, scheme)
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(scales.view(expected_scales.dtype), expected_scales)


@pytest.mark.parametrize("isa", _native.isa_list())
@pytest.mark.parametrize(("mode", "kind"), CASES)
def test_kernels(vectors: dict[str, np.ndarray], mode: str, kind: str, isa: str) -> None:
    scheme = SCHEMES[mode]
    weight, expected_codes, expected_scales = case(vectors, scheme, kind)
    codes, scales = new_outputs(*weight.shape, scheme)
    round_to_nearest(np.ascontiguousarray(weight), scheme, codes, scales, isa)
    assert np.array_equal(codes, expected_codes)
    assert np.array_equal(scales.view(expected_scales.dtype), expected_scales)
