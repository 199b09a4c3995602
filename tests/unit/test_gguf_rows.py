"""Q4_0 to the format's codes and back: bit for bit the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from kumquant.checkpoint.gguf.rows import q4_0_blocks, q4_0_codes, values_of
from kumquant.checkpoint.gguf.types import TYPES
from kumquant.errors import UnsupportedError
from kumquant.schemes import scheme_named
from kumquant.tensor_cache import decode_groups

SCHEME = scheme_named("q4f16_1")
SCALES = np.array([1.0, -1.0, 0.0, -0.0, 0.0123, -0.0123, 6e-8, -6e-8, 6.1e-5, 65504.0, -65504.0, np.inf], np.float16)


def blocks_of_all_codes() -> np.ndarray:
    """One row: for every scale two blocks, which have every code in every place of a byte."""
    codes = np.arange(16, dtype=np.uint8)
    blocks = np.empty((len(SCALES), 2, 18), np.uint8)
    blocks[:, :, :2] = SCALES[:, None, None].view(np.uint8).reshape(-1, 1, 2)
    blocks[:, 0, 2:] = codes | (15 - codes) << 4
    blocks[:, 1, 2:] = np.roll(codes, 5) | codes << 4
    return blocks.reshape(1, -1)


def q4_0_by_hand(blocks: np.ndarray) -> np.ndarray:
    """d * (q - 8) from ggml's description of the block, in float32."""
    groups = blocks.reshape(-1, 18)
    scales = groups[:, :2].copy().view(np.float16).astype(np.float32)
    codes = np.concatenate([groups[:, 2:] & 15, groups[:, 2:] >> 4], axis=1).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return (scales * (codes - 8)).reshape(len(blocks), -1)


def test_every_code_sign_zero_and_subnormal_scale_is_the_same_number() -> None:
    blocks = blocks_of_all_codes()
    codes, scales = q4_0_codes(blocks)
    assert codes.shape == (1, 24 * 32 // 8) and scales.dtype == np.float16
    with np.errstate(invalid="ignore"):
        found = decode_groups(codes, scales, SCHEME, 24 * 32, "NK")
    expected = q4_0_by_hand(blocks)
    # Equal as numbers; a zero may have the other sign where the code says 0 (0 * d against -0 * d).
    np.testing.assert_array_equal(found, expected)
    zeros = expected == 0
    np.testing.assert_array_equal(found[~zeros].view(np.uint32), expected[~zeros].view(np.uint32))


def test_the_way_back_gives_the_same_bytes() -> None:
    rng = np.random.default_rng(3)
    for blocks in (blocks_of_all_codes(), rng.integers(0, 256, (7, 5 * 18), np.uint8)):
        codes, scales = q4_0_codes(blocks)
        np.testing.assert_array_equal(q4_0_blocks(codes, scales), blocks)


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "IQ4_NL"])
def test_other_types_are_dequantized_by_the_gguf_package(name: str) -> None:
    quants = pytest.importorskip("gguf.quants", reason="skipped: the gguf package is not installed")
    kind = next(kind for kind in TYPES.values() if kind.name == name)
    values = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    number = quants.GGMLQuantizationType[name]
    try:
        blocks = quants.quantize(values, number)
    except NotImplementedError:  # the package only reads this type
        blocks = np.random.default_rng(0).integers(0, 60, (3, 512 // kind.block_values * kind.block_bytes), np.uint8)
    np.testing.assert_array_equal(values_of(blocks, kind), quants.dequantize(blocks, number))


def test_without_the_gguf_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf.quants", None)
    kind = next(kind for kind in TYPES.values() if kind.name == "Q6_K")
    with pytest.raises(UnsupportedError, match=r"kumquant\[gguf\]"):
        values_of(np.zeros((1, 210), np.uint8), kind)
