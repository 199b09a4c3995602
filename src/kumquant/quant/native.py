"""Round-to-nearest on the native kernels, a block of rows at a time, without the interpreter lock."""

from __future__ import annotations

import numpy as np

from .. import _native
from ..dtypes import DTYPES, dtype_name
from ..errors import UnsupportedError
from ..schemes import Scheme
from . import reference

SOURCE_DTYPES = ("float32", "float16", "bfloat16")
# What the kernels are written for, (bits, group size); other schemes take the NumPy twin.
_KERNELS = ((3, 40), (4, 32), (8, 32))


def round_to_nearest(rows: np.ndarray, scheme: Scheme, codes: np.ndarray, scales: np.ndarray,
                     isa: str = "") -> None:
    """Quantize ``rows`` (n, width) float32, float16 or bfloat16 into ``codes`` and ``scales``.

    codes: (n, scheme.num_words(width)) uint32. scales: (n, scheme.num_groups(width)) of the model dtype. Both
    are C-contiguous and written whole, row by row in every layout: whoever stores "KN" transposes them. The
    values are cast to the model dtype first. isa: an instruction set of ``_native.isa_list()``, by default
    KUMQUANT_ISA's or the best; the result is the same.
    Source: MLC group quantization on CPU, bit for bit (quant/reference.py).
    """
    if (scheme.bits, scheme.group_size) not in _KERNELS:
        codes[...], scales[...] = reference.quantize(rows, scheme)
        return
    count, width = rows.shape
    _native.quantize_rows(as_bytes(rows), source_dtype(rows), count, width, scheme.model_dtype, scheme.bits,
                          scheme.layout == "KN", as_bytes(codes), as_bytes(scales), isa)


def cast(values: np.ndarray, model_dtype: str, isa: str = "") -> np.ndarray:
    """``values`` (float32, float16 or bfloat16, any shape) in ``model_dtype``, uncopied if they are already.

    Nearest, ties to even, overflow to infinity, subnormals kept: what the format does before all else.
    """
    if values.dtype == DTYPES[model_dtype]:
        return values
    result = np.empty(values.shape, DTYPES[model_dtype])
    _native.cast_values(as_bytes(values), source_dtype(values), model_dtype, as_bytes(result), isa)
    return result


def source_dtype(values: np.ndarray) -> str:
    """The dtype's name. Raises UnsupportedError for one that weights cannot have."""
    name = dtype_name(values.dtype) if values.dtype in DTYPES.values() else str(values.dtype)
    if name not in SOURCE_DTYPES:
        raise UnsupportedError("weights of this dtype cannot be converted", found=name,
                               expected=", ".join(SOURCE_DTYPES))
    return name


def as_bytes(values: np.ndarray) -> np.ndarray:
    """A flat uint8 view; a copy first where the memory is not contiguous or not aligned for the kernels."""
    return np.require(values, requirements=["C", "A"]).reshape(-1).view(np.uint8)
