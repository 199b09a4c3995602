"""Codes and scales back to numbers: value = (code - zero point) * scale, the exact product in float32.

Codes come in groups (``decode_groups``), in AWQ's order with zero points of their own (``decode_awq``), or as float8
numbers with one scale, none, or one for each block (``decode_blocks``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from ..errors import RequestError, TensorCacheError
from ..schemes import Scheme

# Records that are only a part of a parameter.
PART_SUFFIXES = (".q_weight", ".q_scale", ".q_calibration_scale", ".qweight", ".qzeros", ".scales",
                 ".weight_scale_inv", ".activation_scale")
# What block-scaled float8 checkpoints use.
DEFAULT_BLOCK = (128, 128)
_AWQ_SLOTS = (0, 4, 1, 5, 2, 6, 3, 7)


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


def decode_awq(codes: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> npt.NDArray[np.float32]:
    """Decode a linear as AWQ's "gemm" version packs it.

    codes: uint32 (inputs, outputs / 8), zeros: uint32 (groups, outputs / 8), scales: float16 (groups, outputs).
    Output column j stands in the 4-bit slot (j % 8) % 2 * 4 + (j % 8) // 2 of word j // 8. Returns float32
    (outputs, inputs), (code - zero) * scale. Raises TensorCacheError when the shapes contradict each other.
    Source: docs/modes.md, "AWQ".
    """
    fits = codes.ndim == zeros.ndim == scales.ndim == 2 and codes.shape[1] == zeros.shape[1]
    if not fits or len(zeros) != len(scales) or scales.shape[1] > codes.shape[1] * len(_AWQ_SLOTS):
        _refuse("codes, zero points and scales do not belong together", codes, scales)
    inputs, outputs = len(codes), scales.shape[1]
    if not len(scales) or inputs % len(scales):
        _refuse("the groups do not divide the inputs", codes, scales)
    group_size = inputs // len(scales)
    values = _awq_columns(codes, outputs) - np.repeat(_awq_columns(zeros, outputs), group_size, axis=0)
    with np.errstate(invalid="ignore", over="ignore"):
        values *= np.repeat(scales.astype(np.float32), group_size, axis=0)
    return np.ascontiguousarray(values.T)


def _awq_columns(words: np.ndarray, outputs: int) -> npt.NDArray[np.float32]:
    """(rows, words) -> the codes (rows, outputs) in the order of the outputs."""
    shifts = 4 * np.array(_AWQ_SLOTS, np.uint32)
    codes = (words[:, :, np.newaxis] >> shifts) & np.uint32(15)
    return codes.reshape(len(words), -1)[:, :outputs].astype(np.float32)


def decode_blocks(values: np.ndarray, scales: np.ndarray,
                  block_size: tuple[int, int] = DEFAULT_BLOCK) -> npt.NDArray[np.float32]:
    """Decode float8 numbers that share a scale in blocks of rows and columns.

    values: float8 (..., rows, width). scales: (..., ceil(rows / block rows), ceil(width / block columns)).
    Returns float32, value * scale. Raises TensorCacheError when the shapes contradict the block size.
    """
    blocks = tuple(-(-extent // size) for extent, size in zip(values.shape[-2:], block_size, strict=True))
    if scales.shape != (*values.shape[:-2], *blocks):
        raise TensorCacheError(
            f"shapes do not fit blocks of {block_size[0]} by {block_size[1]}",
            found=f"values {values.shape}, scales {scales.shape}", expected=f"scales {(*values.shape[:-2], *blocks)}",
            hint='The block size is "weight_block_size" in the model\'s config.',
        )
    result = values.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        for row in range(blocks[0]):
            strip = result[..., row * block_size[0] : (row + 1) * block_size[0], :]
            of_columns = np.repeat(scales[..., row, :].astype(np.float32), block_size[1], axis=-1)
            strip *= of_columns[..., np.newaxis, : values.shape[-1]]
    return result


def dequantize_record(
    tensors: Mapping[str, np.ndarray],
    name: str,
    scheme: Scheme | None,
    width: int | None = None,
    layout: str | None = None,
    block_size: tuple[int, int] = DEFAULT_BLOCK,
) -> npt.NDArray[np.float32]:
    """The parameter ``name`` ("model.norm.weight") as float32, however it is stored.

    scheme: the cache's mode, needed for codes in groups only. width, layout: as for ``decode_groups``.
    block_size: of float8 weights with a scale for each block.
    Raises TensorCacheError for a name that is not there, RequestError for codes in groups without a scheme.
    """
    stem = name.removesuffix(".weight")
    codes_name, scales_name = f"{stem}.q_weight", f"{stem}.q_scale"
    owner = name.rpartition(".")[0]
    if name.endswith(PART_SUFFIXES) and name in tensors and any(
            f"{owner}.{codes}" in tensors for codes in ("q_weight", "qweight", "weight")):
        hint = f"Ask for {owner}.weight instead."
        raise RequestError("this record is only a part of a parameter", where=name, hint=hint)
    if f"{stem}.weight_scale_inv" in tensors and name in tensors:
        return decode_blocks(tensors[name], tensors[f"{stem}.weight_scale_inv"], block_size)
    if name in tensors:
        return tensors[name].astype(np.float32)
    if f"{stem}.qweight" in tensors:
        return decode_awq(*(_part(tensors, name, f"{stem}.{part}") for part in ("qweight", "qzeros", "scales")))
    codes = _part(tensors, name, codes_name, f"a record of that name, or {codes_name} and {scales_name}")
    if codes.dtype.name.startswith("float8"):
        scale = tensors[scales_name].astype(np.float16).astype(np.float32) if scales_name in tensors else np.float32(1)
        return codes.astype(np.float32) * scale
    scales = _part(tensors, name, scales_name, f"a record of that name, or {codes_name} and {scales_name}")
    if scheme is None or not scheme.has_groups:
        raise RequestError(
            "this parameter is quantized, and its mode is not known", where=name,
            found=None if scheme is None else scheme.name,
            hint='Say which mode wrote the cache: TensorCache.open(folder, quantization="q4f16_1").',
        )
    return decode_groups(codes, scales, scheme, width, layout)


def _part(tensors: Mapping[str, np.ndarray], name: str, part: str, expected: str | None = None) -> np.ndarray:
    if part not in tensors:
        raise TensorCacheError("no such parameter", where=name, expected=expected or f"a record called {part}",
                               hint="kumquant inspect lists the records of a cache.")
    return tensors[part]


def _refuse(what: str, codes: np.ndarray, scales: np.ndarray) -> NoReturn:
    raise TensorCacheError(
        what, found=f"codes {codes.shape}, scales {scales.shape}",
        hint="Check the quantization mode and the model's config against the cache.",
    )
