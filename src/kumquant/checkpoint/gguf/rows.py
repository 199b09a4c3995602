"""Blocks of a GGUF tensor as numbers, and Q4_0's as the format's own codes."""

from __future__ import annotations

import importlib
from typing import Any

import ml_dtypes
import numpy as np

from ... import _native
from ...errors import UnsupportedError
from .types import GgufType

_PLAIN: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Q4_0: a float16 scale d, then 16 bytes; byte j holds value j in its low bits and value j + 16 in its high ones.
_SCALE_BYTES, _CODE_BYTES = 2, 16
Q4_0_GROUP = 32
_Q4_0_BYTES = _SCALE_BYTES + _CODE_BYTES


def values_of(blocks: np.ndarray, kind: GgufType) -> np.ndarray:
    """Rows (n, row bytes) uint8 as (n, width) of ``kind.dtype``; plain ones uncopied.

    Raises UnsupportedError for a type without an arithmetic here, or without the gguf package.
    """
    if kind.name in _PLAIN:
        return blocks.view(_PLAIN[kind.name])
    if _native.has_dequantizer(kind.name):
        values = np.empty((len(blocks), blocks.shape[1] // kind.block_bytes * kind.block_values), np.float32)
        _native.dequantize(kind.name, np.ascontiguousarray(blocks).reshape(-1), values.reshape(-1).view(np.uint8))
        return values
    quants = gguf_quants(kind.name)
    try:
        number = quants.GGMLQuantizationType[kind.name]
        return np.asarray(quants.dequantize(blocks, number), np.float32)
    except (KeyError, NotImplementedError) as reason:
        raise UnsupportedError("tensors of this type cannot be dequantized", where=kind.name) from reason


def q4_0_codes(blocks: np.ndarray, order: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, row bytes) uint8 of Q4_0 as codes (m, width / 8) uint32 and scales (m, width / 32) float16.

    order: int64 (m,), which of the rows, and in which order; None: all as they are.
    Bit for bit the same numbers: d * (q - 8) is -d * (15 - q - 7), for every q and every d, -0, subnormals and
    infinities included.
    """
    rows, groups = len(blocks) if order is None else len(order), blocks.shape[1] // _Q4_0_BYTES
    codes, scales = np.empty((rows, 4 * groups), np.uint32), np.empty((rows, groups), np.float16)
    if codes.size:
        _native.q4_0_codes(np.ascontiguousarray(blocks).reshape(-1), order, groups, codes.reshape(-1).view(np.uint8),
                           scales.reshape(-1).view(np.uint8))
    return codes, scales


def q4_0_blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """The way back: codes (n, width / 8) uint32 and scales (n, width / 32) float16 -> rows (n, row bytes) uint8."""
    rows, num_groups = scales.shape
    packed = np.ascontiguousarray(codes).view(np.uint8).reshape(rows, num_groups, _CODE_BYTES)
    half = _CODE_BYTES // 2
    low, high = ~packed[:, :, :half], ~packed[:, :, half:]
    blocks = np.empty((rows, num_groups, _SCALE_BYTES + _CODE_BYTES), np.uint8)
    negated = np.ascontiguousarray(scales).view(np.uint16) ^ np.uint16(0x8000)
    blocks[:, :, :_SCALE_BYTES] = negated[:, :, None].view(np.uint8)
    blocks[:, :, _SCALE_BYTES::2] = (low & 0x0F) | (high << 4)
    blocks[:, :, _SCALE_BYTES + 1 :: 2] = (low >> 4) | (high & 0xF0)
    return blocks.reshape(rows, -1)


def gguf_quants(what: str) -> Any:
    """The gguf package's arithmetic. Raises UnsupportedError that says how to get it."""
    try:
        return importlib.import_module("gguf.quants")
    except ImportError as reason:
        raise UnsupportedError("needs the package gguf", where=what,
                               hint='Install it: pip install "kumquant[gguf]".') from reason
