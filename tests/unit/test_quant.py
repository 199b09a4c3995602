"""Round-to-nearest: every instruction set gives the bits of the plain twin, for every dtype and width."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from kumquant import _native
from kumquant.dtypes import DTYPES
from kumquant.errors import RequestError, UnsupportedError
from kumquant.quant import QUANTIZERS, cast, new_outputs, quantize, reference, round_to_nearest
from kumquant.schemes import SCHEMES, Scheme

ISAS = _native.isa_list()
SOURCES = [np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]
GROUP_MODES = [scheme for scheme in SCHEMES.values() if scheme.has_groups]


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16 if array.dtype.itemsize == 2 else np.uint32)


def ordinary(rows: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(rows * 1000 + width)
    values = rng.standard_normal((rows, width), dtype=np.float32)
    return values * np.exp2(rng.integers(-30, 12, (rows, 1))).astype(np.float32)


def hostile(rows: int, width: int) -> np.ndarray:
    """Zeros of both signs, subnormals, ties, huge values, infinities and NaN, strewn at random."""
    rng = np.random.default_rng(7)
    special = np.array([0.0, -0.0, 1e-45, -1e-40, 6e-8, -6e-8, 3e-7, 65504, 65520, -65536, 3.3895e38, -3.4e38,
                        np.inf, -np.inf, np.nan, -np.nan, 0.5, 1.5, 3.5, 7.0, 1.0], np.float32)
    values = rng.choice(special, (rows, width))
    mild = rng.random((rows, 1)) < 0.6  # rows without the non-finite ones
    return np.where(mild & ~np.isfinite(values), np.float32(0.25), values)


def native(values: np.ndarray, scheme: Scheme, isa: str) -> tuple[np.ndarray, np.ndarray]:
    codes, scales = new_outputs(*values.shape, scheme)
    round_to_nearest(values, scheme, codes, scales, isa)
    return codes, scales


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("scheme", GROUP_MODES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_kernels_give_the_bits_of_the_twin(isa: str, scheme: Scheme, source: np.dtype[Any]) -> None:
    samples = [ordinary(3, width) for width in (1, 7, 31, 32, 33, 39, 40, 41, 64, 101, 16 * 32, 17 * 40, 1000)]
    samples += [hostile(64, width) for width in (5, 32, 90, 161)]
    samples.append(np.zeros((0, 64), np.float32))
    with np.errstate(over="ignore"):
        samples = [sample.astype(source) for sample in samples]
    for values in samples:
        expected_codes, expected_scales = reference.quantize(values, scheme)
        codes, scales = native(values, scheme, isa)
        assert codes.dtype == np.uint32 and np.array_equal(codes, expected_codes), values.shape
        assert scales.dtype == DTYPES[scheme.model_dtype]
        # A NaN scale keeps its place, not its payload: that depends on how a cast treats payloads.
        assert np.array_equal(np.isnan(scales), np.isnan(expected_scales))
        whole = ~np.isnan(scales)
        assert np.array_equal(bits(scales)[whole], bits(expected_scales)[whole]), values.shape


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("source", SOURCES, ids=str)
@pytest.mark.parametrize("model_dtype", ["float32", "float16", "bfloat16"])
def test_casts_give_the_bits_of_the_twin(isa: str, source: np.dtype[Any], model_dtype: str) -> None:
    for values in (ordinary(40, 37), hostile(40, 37)):
        with np.errstate(over="ignore"):
            values = values.astype(source)
        result, expected = cast(values, model_dtype, isa), reference.cast(values, model_dtype)
        assert result.shape == values.shape and result.dtype == DTYPES[model_dtype]
        whole = ~np.isnan(expected)
        assert np.array_equal(np.isnan(result), ~whole)
        assert np.array_equal(bits(result)[whole], bits(expected)[whole])


def test_every_half_precision_number_casts_alike_on_every_instruction_set() -> None:
    patterns = np.arange(1 << 16, dtype=np.uint16)
    for source in (np.float16, ml_dtypes.bfloat16):
        for model_dtype in ("float32", "float16", "bfloat16"):
            results = [bits(cast(patterns.view(source), model_dtype, isa)) for isa in ISAS]
            assert all(np.array_equal(result, results[0]) for result in results)


def test_unaligned_and_strided_rows() -> None:
    scheme = SCHEMES["q4f16_1"]
    values = ordinary(6, 64).astype(np.float16)
    unaligned = np.frombuffer(b"x" + values.tobytes(), np.uint8)[1:].view(np.float16).reshape(6, 64)
    strided = np.repeat(values, 2, axis=1)[:, ::2]
    for isa in ISAS:
        for variant in (unaligned, strided):
            assert np.array_equal(native(variant, scheme, isa)[0], native(values, scheme, isa)[0])


def test_quantize_does_not_depend_on_threads() -> None:
    scheme = SCHEMES["q4f32_1"]
    weight = ordinary(300, 96).reshape(3, 100, 96)
    codes, scales = quantize(weight, scheme, threads=1)
    assert codes.shape == (3, 100, 12) and scales.shape == (3, 100, 3) and scales.dtype == np.float32
    for threads in (2, 5):
        again = quantize(weight, scheme, threads=threads)
        assert np.array_equal(again[0], codes) and np.array_equal(again[1], scales)
    expected = reference.quantize(weight.reshape(300, 96), scheme)
    assert np.array_equal(codes.reshape(300, 12), expected[0])


def test_layout_kn_is_the_transpose_but_for_the_divisor_in_bfloat16() -> None:
    weight = ordinary(50, 90)
    for mode in ("q3f16", "q4f16", "q4bf16"):
        codes, scales = quantize(weight, SCHEMES[f"{mode}_0"])
        by_rows = quantize(weight, SCHEMES[f"{mode}_1"])
        assert codes.flags.c_contiguous and np.array_equal(bits(scales.T), bits(by_rows[1]))
        assert np.array_equal(codes.T, by_rows[0]) == (mode != "q4bf16")


def test_widths_that_no_kernel_is_written_for_take_the_twin() -> None:
    scheme = Scheme("q2f16", 2, 16, "float16")
    weight = ordinary(3, 40)
    codes, _ = quantize(weight, scheme)
    assert np.array_equal(codes, reference.quantize(weight, scheme)[0])


def test_quantize_refuses_what_it_cannot_do() -> None:
    weight = np.zeros((4, 32), np.float32)
    with pytest.raises(UnsupportedError, match="q0f16"):
        quantize(weight, SCHEMES["q0f16"])
    with pytest.raises(UnsupportedError, match=r"KN has no stacked experts\nChoose q4f16_1"):
        quantize(weight.reshape(2, 2, 32), SCHEMES["q4f16_0"])
    with pytest.raises(UnsupportedError, match="found float64"):
        quantize(weight.astype(np.float64), SCHEMES["q4f16_1"])
    with pytest.raises(RequestError, match="at least two axes"):
        quantize(weight[0], SCHEMES["q4f16_1"])


def test_the_native_door_checks_sizes() -> None:
    source = np.zeros(64, np.uint8)
    codes, scales = np.zeros(16, np.uint8), np.zeros(2, np.uint8)
    for arguments in [
        (source, "float16", 1, 33, "float16", 4, False, codes, scales),
        (source, "float16", 2, 32, "float16", 4, False, codes, scales),
        (source, "float16", 1, 32, "float32", 4, False, codes, scales),
        (source, "float16", 1, 32, "float16", 4, False, codes[:8], scales),
        (source, "float16", 1, 32, "float16", 8, False, codes, scales),
        (source, "int8", 1, 32, "float16", 4, False, codes, scales),
        (source[1:], "float16", 1, 32, "float16", 4, False, codes, scales),
    ]:
        with pytest.raises(ValueError, match=r"bytes, expected|is not float32"):
            _native.quantize_rows(*arguments)
    with pytest.raises(ValueError, match="not usable"):
        _native.quantize_rows(source, "float16", 1, 32, "float16", 4, False, codes, scales, "sse9")
    for bits_ in (0, -3, 2, 5, 32, 100):
        with pytest.raises(ValueError, match="no kernel"):
            _native.quantize_rows(source, "float16", 1, 32, "float16", bits_, False, codes, scales)


def test_table_of_quantizers() -> None:
    assert QUANTIZERS["round-to-nearest"] is round_to_nearest
