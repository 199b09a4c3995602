"""Q4_0 to the format's codes and back: bit for bit the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from kumquant import _native
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


def plain_q4_0_codes(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The twin of csrc/convert/ggml_blocks.cpp's: value by value."""
    groups = blocks.reshape(-1, 18)
    codes = 15 - np.concatenate([groups[:, 2:] & 15, groups[:, 2:] >> 4], axis=1).astype(np.uint32)
    words = np.bitwise_or.reduce(codes.reshape(-1, 4, 8) << (4 * np.arange(8, dtype=np.uint32)), axis=2)
    scales = groups[:, :2].copy().view(np.uint16) ^ np.uint16(0x8000)
    return words.reshape(len(blocks), -1), scales.view(np.float16).reshape(len(blocks), -1)


@pytest.mark.parametrize("order", [None, [6, 0, 3, 3]])
def test_the_kernel_is_its_plain_twin_in_every_order_of_rows(order: list[int] | None) -> None:
    blocks = np.random.default_rng(5).integers(0, 256, (7, 3 * 18), np.uint8)
    rows = None if order is None else np.array(order, np.int64)
    codes, scales = q4_0_codes(blocks, rows)
    expected = plain_q4_0_codes(blocks if rows is None else blocks[rows])
    np.testing.assert_array_equal(codes, expected[0])
    np.testing.assert_array_equal(scales.view(np.uint16), expected[1].view(np.uint16))


def test_the_kernels_refuse_what_does_not_fit() -> None:
    blocks, codes, scales = np.zeros(36, np.uint8), np.zeros(32, np.uint8), np.zeros(4, np.uint8)
    for order, groups in ((np.array([0, 1]), 2), (np.array([-1]), 2), (None, 0), (None, 5)):
        with pytest.raises(ValueError, match=r"order|blocks"):
            _native.q4_0_codes(blocks, order, groups, codes, scales)
    with pytest.raises(ValueError, match="codes: 32 bytes, expected 64"):
        _native.q4_0_codes(blocks, np.array([0, 0]), 2, codes, scales)
    for name, size in (("Q9_X", 128), ("Q8_0", 128)):
        with pytest.raises(ValueError, match=r"Q9_X|blocks"):
            _native.dequantize(name, blocks, np.zeros(size, np.uint8))


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"])
def test_the_native_dequantizers_are_the_gguf_package_bit_for_bit(name: str) -> None:
    quants = pytest.importorskip("gguf.quants", reason="skipped: the gguf package is not installed")
    kind = next(kind for kind in TYPES.values() if kind.name == name)
    assert _native.has_dequantizer(name)
    blocks = np.random.default_rng(1).integers(0, 256, (5, 40 * kind.block_bytes), np.uint8)  # scales of every kind
    with np.errstate(all="ignore"):
        expected = quants.dequantize(blocks, quants.GGMLQuantizationType[name])
    found = values_of(blocks, kind)
    known = ~np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(found), ~known)
    np.testing.assert_array_equal(found.view(np.uint32)[known], expected.view(np.uint32)[known])


@pytest.mark.parametrize("name", ["Q4_0", "Q5_0", "Q8_0", "Q4_K", "Q6_K", "Q2_K", "IQ4_NL"])
def test_every_type_is_dequantized_as_by_the_gguf_package(name: str) -> None:
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
    kind = next(kind for kind in TYPES.values() if kind.name == "Q2_K")
    with pytest.raises(UnsupportedError, match=r"kumquant\[gguf\]"):
        values_of(np.zeros((1, 84), np.uint8), kind)
