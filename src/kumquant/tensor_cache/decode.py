"""Codes and scales back to numbers: value = (code - zero point) * scale, the exact product in float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import RequestError, TensorCacheError
from ..schemes import Scheme


def decode_groups(
    codes: np.ndarray, scales: np.ndarray, scheme: Scheme, width: int | None = None, layout: str | None = None
) -> npt.NDArray[np.float32]:
    """Decode group-quantized weights.

    codes: uint32 (..., rows, words), scales: (..., rows, groups) in any float dtype; (words, rows) and
    (groups, rows) in layout "KN". layout: by default what the shapes say, for a mode of layout "KN" has
    embeddings in "NK".
    width: the logical input width; default every position of the last group.
    Returns float32 (..., rows, width), not rounded to the model dtype; with 16-bit scales every product is
    exact.
    Raises TensorCacheError when the shapes contradict each other or the scheme.
    Source: docs/format.md, "Decoding".
    """
    if layout is None:
        layout = "NK" if codes.shape[:-1] == scales.shape[:-1] else scheme.layout
    if layout == "KN":
        codes, scales = codes.T, scales.T
    if codes.ndim < 2 or scales.ndim != codes.ndim or codes.shape[:-1] != scales.shape[:-1]:
        _refuse("codes and scales do not belong together", codes, scales)
    *rows, num_words = codes.shape
    num_groups = scales.shape[-1]
    padded = num_groups * scheme.group_size
    if num_words * scheme.codes_per_word != padded:
        _refuse(f"shapes do not fit the mode {scheme.name}", codes, scales)
    if width is None:
        width = padded
    if width < 0 or scheme.num_groups(width) != num_groups:
        _refuse(f"shapes do not fit a width of {width} in the mode {scheme.name}", codes, scales)
    values = np.empty((*rows, num_groups, scheme.group_size), np.float32)
    slots = values.reshape(*rows, num_words, scheme.codes_per_word)
    mask = np.uint32(2**scheme.bits - 1)
    for slot in range(scheme.codes_per_word):
        slots[..., slot] = (codes >> np.uint32(slot * scheme.bits)) & mask
    values -= np.float32(scheme.zero_point)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite and NaN scales are legal
        values *= scales.astype(np.float32)[..., np.newaxis]
    return values.reshape(*rows, padded)[..., :width]


def dequantize_record(
    tensors: Mapping[str, np.ndarray],
    name: str,
    scheme: Scheme | None,
    width: int | None = None,
    layout: str | None = None,
) -> npt.NDArray[np.float32]:
    """The parameter ``name`` ("model.norm.weight") as float32, whether stored plain or as codes and scales.

    scheme: the cache's mode, needed for quantized parameters only. width, layout: as for ``decode_groups``.
    Raises TensorCacheError for a name that is not there, RequestError for quantized data without a scheme.
    """
    stem = name.removesuffix(".weight")
    codes_name, scales_name = f"{stem}.q_weight", f"{stem}.q_scale"
    if name.endswith((".q_weight", ".q_scale")) and name in tensors:
        hint = f"Ask for {name.rpartition('.')[0]}.weight instead."
        raise RequestError("this record is one half of a parameter", where=name, hint=hint)
    if name in tensors:
        return tensors[name].astype(np.float32)
    if codes_name not in tensors or scales_name not in tensors:
        raise TensorCacheError(
            "no such parameter", where=name,
            expected=f"a record of that name, or {codes_name} and {scales_name}",
            hint="kumquant inspect lists the records of a cache.",
        )
    if scheme is None or not scheme.is_quantized:
        raise RequestError(
            "this parameter is quantized, and its mode is not known", where=name,
            found=None if scheme is None else scheme.name,
            hint='Say which mode wrote the cache: TensorCache.open(folder, quantization="q4f16_1").',
        )
    return decode_groups(tensors[codes_name], tensors[scales_name], scheme, width, layout)


def _refuse(what: str, codes: np.ndarray, scales: np.ndarray) -> NoReturn:
    raise TensorCacheError(
        what, found=f"codes {codes.shape}, scales {scales.shape}",
        hint="Check the quantization mode and the model's config against the cache.",
    )
