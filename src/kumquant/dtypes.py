"""Element types of the tensor cache: manifest names, NumPy types, and the format's float rounding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt

# Every dtype name a manifest may use. Source: docs/format.md; MLC itself writes the first four.
DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "uint32": np.dtype(np.uint32),
    "uint8": np.dtype(np.uint8),
    "int32": np.dtype(np.int32),
    "int64": np.dtype(np.int64),
    "int8": np.dtype(np.int8),
    "bool": np.dtype(np.bool_),
    "float64": np.dtype(np.float64),
    "float8_e4m3fn": np.dtype(ml_dtypes.float8_e4m3fn),
    "float8_e5m2": np.dtype(ml_dtypes.float8_e5m2),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

# From the largest finite bfloat16 on (infinities and NaN included) the format truncates instead of rounding.
_TRUNCATE_FROM = np.uint32(0x7F7F0000)
# Elements converted at a time: the temporaries (4 bytes each) stay in the L2 cache.
_BLOCK = 1 << 16


def itemsize(dtype: str) -> int:
    """Bytes of one element of the manifest dtype ``dtype``. Raises KeyError for an unknown name."""
    return DTYPES[dtype].itemsize


def f32_to_bf16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Round float32 to bfloat16 as the ``f32-to-bf16`` encoder does; returns the bit patterns, same shape.

    Nearest, ties to even, but finite values of at least 0x7F7F0000 are truncated and never become infinite;
    NaN is truncated too, and becomes infinite when its payload sits only in the low 16 bits.
    Not the cast of a checkpoint to a model dtype: that one overflows to infinity (``astype(bfloat16)``).
    Source: MLC's converter; docs/format.md, "Rounding to bfloat16".
    """
    bits = np.ascontiguousarray(values, dtype=np.float32).reshape(-1).view(np.uint32)
    result = np.empty(bits.size, dtype=np.uint16)
    for start in range(0, bits.size, _BLOCK):
        block = bits[start : start + _BLOCK]
        rounded = block >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += block
        rounded >>= np.uint32(16)
        magnitude = block & np.uint32(0x7FFFFFFF)
        if magnitude.max() >= _TRUNCATE_FROM:
            huge = magnitude >= _TRUNCATE_FROM
            rounded[huge] = block[huge] >> np.uint32(16)
        result[start : start + _BLOCK] = rounded
    return result.reshape(np.shape(values))


def dtype_name(dtype: np.dtype) -> str:
    """The manifest's name of a NumPy dtype. Raises KeyError for one the format does not have."""
    return _NAMES[dtype]
