"""decode_groups and dequantize_record: the exact product, in every layout."""

import ml_dtypes
import numpy as np
import pytest

from kumquant.errors import RequestError, TensorCacheError
from kumquant.schemes import Scheme, scheme_named
from kumquant.tensor_cache import StoredTensors, decode_groups, dequantize_record, write_cache

RNG = np.random.default_rng(5)
Q4F16 = scheme_named("q4f16_1")


def plain_twin(codes, scales, scheme, width):
    """Element by element, in Python integers and floats: slow and obviously right."""
    per_word, bits = scheme.codes_per_word, scheme.bits
    values = np.empty((codes.shape[0], width), np.float32)
    for row in range(codes.shape[0]):
        for k in range(width):
            code = (int(codes[row, k // per_word]) >> (bits * (k % per_word))) & (2**bits - 1)
            values[row, k] = (code - scheme.zero_point) * float(scales[row, k // scheme.group_size])
    return values


def random_groups(scheme, rows, width, dtype=np.float16):
    codes = RNG.integers(0, 2**32, (rows, scheme.num_words(width)), np.uint32)
    return codes, RNG.standard_normal((rows, scheme.num_groups(width))).astype(dtype)


@pytest.mark.parametrize("width", [32, 64, 7, 101, 1])
@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        (Q4F16, np.float16),
        (scheme_named("q4bf16_1"), ml_dtypes.bfloat16),
        (scheme_named("q4f32_1"), np.float32),
        (Scheme("three bits", 3, 40, "float16"), np.float16),
        (Scheme("eight bits", 8, 32, "float16"), np.float16),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_equals_the_plain_twin(scheme, dtype, width):
    codes, scales = random_groups(scheme, 5, width, dtype)
    expected = plain_twin(codes, scales, scheme, width)
    decoded = decode_groups(codes, scales, scheme, width)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, expected)
    transposed = decode_groups(codes.T, scales.T, scheme, width, layout="KN")
    np.testing.assert_array_equal(transposed, expected)


def test_experts_keep_their_leading_axis():
    codes, scales = random_groups(Q4F16, 6, 70)
    stacked = decode_groups(codes.reshape(2, 3, -1), scales.reshape(2, 3, -1), Q4F16, 70)
    np.testing.assert_array_equal(stacked.reshape(6, 70), decode_groups(codes, scales, Q4F16, 70))


def test_all_codes_are_legal_and_zero_groups_decode_to_minus_zero():
    codes = np.array([[0xFEDCBA98, 0x76543210, 0, 0]], np.uint32)
    values = decode_groups(codes, np.array([[2.0]], np.float16), Q4F16, 32)[0]
    np.testing.assert_array_equal(values[:16], 2.0 * (np.r_[8:16, 0:8] - 7))
    zeros = decode_groups(np.zeros((1, 4), np.uint32), np.zeros((1, 1), np.float16), Q4F16, 32)
    assert np.signbit(zeros).all() and not zeros.any()
    sevens = np.full((1, 4), 0x77777777, np.uint32)
    assert np.isnan(decode_groups(sevens, np.array([[np.inf]], np.float16), Q4F16, 32)).all()


def test_without_a_width_the_whole_groups_come_back():
    codes, scales = random_groups(Q4F16, 3, 40)
    assert decode_groups(codes, scales, Q4F16).shape == (3, 64)


@pytest.mark.parametrize(
    ("codes", "scales", "width", "message"),
    [
        ((3, 8), (3, 2), 65, "shapes do not fit a width of 65"),
        ((3, 8), (3, 2), 32, "shapes do not fit a width of 32"),
        ((3, 8), (3, 2), -1, "shapes do not fit a width of -1"),
        ((3, 8), (2, 2), 64, "codes and scales do not belong together"),
        ((3, 8), (3,), 64, "codes and scales do not belong together"),
        ((8,), (2,), 64, "codes and scales do not belong together"),
        ((3, 9), (3, 2), 64, r"shapes do not fit the mode q4f16_1; found codes \(3, 9\), scales \(3, 2\)"),
    ],
)
def test_shapes_that_contradict_each_other(codes, scales, width, message):
    with pytest.raises(TensorCacheError, match=message):
        decode_groups(np.zeros(codes, np.uint32), np.zeros(scales, np.float16), Q4F16, width)


@pytest.fixture
def cache(tmp_path):
    codes, scales = random_groups(Q4F16, 4, 40)
    write_cache(tmp_path, {
        "pad": np.zeros(1, np.uint8),  # makes every record after it unaligned
        "up.q_weight": codes,
        "up.q_scale": scales,
        "norm.weight": RNG.standard_normal(5).astype(ml_dtypes.bfloat16),
        "wide.weight": np.array([1.0, 2.0**-30], np.float32),
        "half.q_weight": codes,
    })
    return StoredTensors.open(tmp_path)


def test_dequantize_record(cache):
    expected = decode_groups(cache["up.q_weight"], cache["up.q_scale"], Q4F16, 40)
    np.testing.assert_array_equal(dequantize_record(cache, "up.weight", Q4F16, 40), expected)
    assert dequantize_record(cache, "up.weight", Q4F16).shape == (4, 64)
    for scheme in (None, Q4F16):
        plain = dequantize_record(cache, "norm.weight", scheme)
        assert plain.dtype == np.float32 and plain.flags.writeable
        np.testing.assert_array_equal(plain, cache["norm.weight"].astype(np.float32))
    np.testing.assert_array_equal(dequantize_record(cache, "wide.weight", None), np.float32([1.0, 2.0**-30]))


def test_dequantize_record_refusals(cache):
    with pytest.raises(RequestError, match=r"up\.weight: this parameter is quantized, and its mode") as e:
        dequantize_record(cache, "up.weight", None)
    assert "quantization=" in e.value.hint
    with pytest.raises(RequestError, match="found q0f16"):
        dequantize_record(cache, "up.weight", scheme_named("q0f16"))
    with pytest.raises(RequestError, match="only a part of a parameter") as e:
        dequantize_record(cache, "up.q_scale", Q4F16)
    assert "up.weight" in e.value.hint
    for name in ("nothing.weight", "half.weight"):
        with pytest.raises(TensorCacheError, match="no such parameter; expected a record of that name, or"):
            dequantize_record(cache, name, Q4F16)
