"""dtypes.py: the names of the format, and its rounding to bfloat16."""

import ml_dtypes
import numpy as np
import pytest

from kumquant.dtypes import DTYPES, dtype_name, f32_to_bf16_bits, itemsize


def test_every_name_maps_to_a_numpy_dtype_and_back():
    assert [dtype_name(dtype) for dtype in DTYPES.values()] == list(DTYPES)
    assert {name: itemsize(name) for name in DTYPES} == {
        "float32": 4, "float16": 2, "bfloat16": 2, "uint32": 4, "uint8": 1, "int32": 4, "int64": 8, "int8": 1,
        "bool": 1, "float64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1,
    }


def test_unknown_names_are_key_errors():
    with pytest.raises(KeyError):
        itemsize("float31")
    with pytest.raises(KeyError):
        dtype_name(np.dtype(np.complex64))


@pytest.mark.parametrize(
    ("bits", "expected"),
    [
        (0x00000000, 0x0000),
        (0x80000000, 0x8000),  # -0 keeps its sign
        (0x3F808000, 0x3F80),  # a tie goes to even: down
        (0x3F818000, 0x3F82),  # and up
        (0x3F808001, 0x3F81),
        (0x00000001, 0x0000),  # subnormals round like any value
        (0x00018000, 0x0002),
        (0x7F7EFFFF, 0x7F7F),  # the last value that is rounded
        (0x7F7FFFFF, 0x7F7F),  # the largest float32 does not become infinite
        (0xFF7FFFFF, 0xFF7F),
        (0x7F800000, 0x7F80),
        (0xFF800000, 0xFF80),
        (0x7F800001, 0x7F80),  # a NaN with a low payload becomes infinite
        (0x7FC00000, 0x7FC0),
        (0xFFC12345, 0xFFC1),
    ],
)
def test_f32_to_bf16_bits(bits, expected):
    value = np.array([bits], np.uint32).view(np.float32)
    assert f32_to_bf16_bits(value)[0] == expected


def test_f32_to_bf16_bits_equals_the_nearest_even_cast_on_ordinary_values_of_any_shape():
    values = np.random.default_rng(0).standard_normal((300, 701)).astype(np.float32)  # several blocks
    expected = values.astype(ml_dtypes.bfloat16).view(np.uint16)
    np.testing.assert_array_equal(f32_to_bf16_bits(values), expected)
    np.testing.assert_array_equal(f32_to_bf16_bits(values.T), expected.T)  # not contiguous
    assert f32_to_bf16_bits(np.float32(1.5).reshape(())).shape == ()
    assert f32_to_bf16_bits(np.empty((0, 3), np.float32)).shape == (0, 3)
