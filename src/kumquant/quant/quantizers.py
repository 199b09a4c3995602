"""The table of quantizers, and quantizing one whole weight."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ..dtypes import DTYPES
from ..errors import RequestError, UnsupportedError
from ..processors import available_processors
from ..schemes import Scheme
from .native import round_to_nearest

# Writes codes and scales of a block of rows, (rows, scheme, codes, scales) -> None. A pure function; rows do
# not depend on each other, so that a weight can be cut anywhere between rows.
RowQuantizer = Callable[[np.ndarray, Scheme, np.ndarray, np.ndarray], None]

QUANTIZERS: dict[str, RowQuantizer] = {"round-to-nearest": round_to_nearest}
# What MLC's converter does.
COMPATIBLE_QUANTIZER = "round-to-nearest"
DEFAULT_QUANTIZER = "round-to-nearest"

_ROWS_AT_A_TIME = 64


def new_outputs(rows: int, width: int, scheme: Scheme) -> tuple[np.ndarray, np.ndarray]:
    """Uninitialized codes (rows, words) uint32 and scales (rows, groups) of the model dtype."""
    codes = np.empty((rows, scheme.num_words(width)), np.uint32)
    return codes, np.empty((rows, scheme.num_groups(width)), DTYPES[scheme.model_dtype])


def quantize(weight: np.ndarray, scheme: Scheme, threads: int | None = None,
             quantizer: str = DEFAULT_QUANTIZER) -> tuple[np.ndarray, np.ndarray]:
    """Quantize ``weight`` (..., rows, width) float32, float16 or bfloat16 in groups along the last axis.

    scheme: ``for_kind`` of the tensor's kind. threads: how many to use, all cores by default; the result does
    not depend on it.
    Returns codes (..., rows, words) uint32 and scales (..., rows, groups) of the scheme's model dtype
    (float32 scales are not yet rounded to the bfloat16 that a cache stores); in layout "KN" (words, rows) and
    (groups, rows).
    Raises UnsupportedError for a mode without groups, another dtype, or experts in layout "KN"; RequestError
    for a vector.
    """
    if not scheme.has_groups:
        raise UnsupportedError("this mode has no codes in groups", where=scheme.name)
    if weight.ndim < 2:
        raise RequestError("a weight to quantize has at least two axes", found=f"shape {weight.shape}")
    if scheme.layout == "KN" and weight.ndim != 2:
        raise UnsupportedError("layout KN has no stacked experts", where=scheme.name,
                               hint=f"Choose {scheme.name.removesuffix('_0')}_1.")
    quantize_block = QUANTIZERS[quantizer]
    flat = weight.reshape(-1, weight.shape[-1])
    codes, scales = new_outputs(*flat.shape, scheme)

    def run(start: int) -> None:
        block = slice(start, start + _ROWS_AT_A_TIME)
        quantize_block(flat[block], scheme, codes[block], scales[block])

    with ThreadPoolExecutor(threads or len(available_processors())) as pool:
        list(pool.map(run, range(0, len(flat), _ROWS_AT_A_TIME)))
    if scheme.layout == "KN":
        return np.ascontiguousarray(codes.T), np.ascontiguousarray(scales.T)
    leading = weight.shape[:-1]
    return codes.reshape(*leading, codes.shape[1]), scales.reshape(*leading, scales.shape[1])
