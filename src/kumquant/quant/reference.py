"""Round-to-nearest group quantization in plain NumPy: the twin of csrc/kernels/quantize*.

Bit for bit what MLC's converter computes on a CPU, zeros, subnormals and non-finite values included.
Source: docs/format.md, "Quantization" (FORMAT.md 3.2, 4.2 to 4.5).
"""

from __future__ import annotations

import ml_dtypes
import numpy as np

from ..dtypes import DTYPES
from ..schemes import Scheme

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def cast(values: np.ndarray, model_dtype: str) -> np.ndarray:
    """``values`` in the model dtype: nearest, ties to even, overflow to infinity, subnormals kept."""
    with np.errstate(over="ignore", invalid="ignore"):
        if DTYPES[model_dtype] == values.dtype:
            return values
        return values.astype(np.float32).astype(DTYPES[model_dtype])


def quantize(weight: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Quantize the rows of ``weight``: (rows, width) float32, float16 or bfloat16.

    The values are cast to the model dtype first. Returns codes (rows, scheme.num_words(width)) uint32 and
    scales (rows, scheme.num_groups(width)) of the model dtype, row by row in every layout. The last group is
    stored whole; its codes behind the width are 0.
    """
    rows, width = weight.shape
    values = cast(weight, scheme.model_dtype)
    num_groups, size = scheme.num_groups(width), scheme.group_size
    magnitudes = np.full((rows, num_groups * size), ml_dtypes.finfo(values.dtype).min, values.dtype)
    magnitudes[:, :width] = np.abs(values)
    padded = np.zeros((rows, num_groups * size), values.dtype)
    padded[:, :width] = values
    with np.errstate(all="ignore"):  # 0/0, overflow and NaN are part of the format
        largest = _largest(magnitudes.reshape(rows, num_groups, size))
        scales, codes = _codes(padded.reshape(rows, num_groups, size), largest, scheme)
    codes = codes.reshape(rows, num_groups * size)
    codes[:, width:] = 0
    return _pack(codes, scheme), scales


def _largest(magnitudes: np.ndarray) -> np.ndarray:
    """Each group's largest magnitude, (rows, groups). A NaN is forgotten at the next element: m > a fails."""
    largest = np.full(magnitudes.shape[:2], ml_dtypes.finfo(magnitudes.dtype).min, magnitudes.dtype)
    for column in np.moveaxis(magnitudes, 2, 0):
        largest = np.where(largest > column, largest, column)
    return largest


def _codes(values: np.ndarray, largest: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Scales (rows, groups) in the model dtype and codes (rows, groups, group_size) uint32."""
    zero_point = scheme.zero_point
    if values.dtype == _BFLOAT16:  # everything in float32; only the scale is rounded
        unrounded = largest.astype(np.float32) / np.float32(zero_point)
        scales = _round_scale(unrounded)
        values, divisor = values.astype(np.float32), unrounded if scheme.layout == "KN" else scales.astype(np.float32)
    else:  # every result is rounded to the model dtype
        scales = divisor = largest / values.dtype.type(zero_point)
    quotient = values / divisor[:, :, None]
    shifted = np.rint(quotient + quotient.dtype.type(zero_point))
    shifted = np.where(shifted > 0, shifted, 0)  # NaN becomes 0
    return scales, np.minimum(shifted, 2 * zero_point).astype(np.uint32)


def _round_scale(scales: np.ndarray) -> np.ndarray:
    """float32 -> bfloat16, nearest even on the bits without special cases."""
    bits = np.ascontiguousarray(scales).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return rounded.astype(np.uint16).view(ml_dtypes.bfloat16)


def _pack(codes: np.ndarray, scheme: Scheme) -> np.ndarray:
    """(rows, k) uint32 codes -> (rows, words) uint32, the first code of a word in the lowest bits."""
    slots = codes.reshape(len(codes), codes.shape[1] // scheme.codes_per_word, scheme.codes_per_word)
    shifts = np.arange(scheme.codes_per_word, dtype=np.uint32) * np.uint32(scheme.bits)
    return np.bitwise_or.reduce(slots << shifts, axis=2)
