"""Blocks of a GGUF tensor as numbers, and Q4_0's as the format's own codes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from ...errors import UnsupportedError
from .types import GgufType

_PLAIN: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Q4_0: a float16 scale d, then 16 bytes; byte j holds value j in its low bits and value j + 16 in its high ones.
_SCALE_BYTES, _CODE_BYTES = 2, 16
Q4_0_GROUP = 32
# Few enough to stay in a core's cache.
_GROUPS_AT_A_TIME = 8192
_Q4_0_BLOCK = np.dtype([("scale", "<u2"), ("codes", "<u8", (2,))])


def values_of(blocks: np.ndarray, kind: GgufType) -> np.ndarray:
    """Rows (n, row bytes) uint8 as (n, width) of ``kind.dtype``; plain ones uncopied.

    Raises UnsupportedError for a type without an arithmetic here, or without the gguf package.
    """
    if kind.name in _PLAIN:
        return blocks.view(_PLAIN[kind.name])
    if kind.name in _SIMPLE:
        groups = np.ascontiguousarray(blocks).reshape(-1, kind.block_bytes)
        return _SIMPLE[kind.name](groups).reshape(len(blocks), -1)
    quants = gguf_quants(kind.name)
    try:
        number = quants.GGMLQuantizationType[kind.name]
        return np.asarray(quants.dequantize(blocks, number), np.float32)
    except (KeyError, NotImplementedError) as reason:
        raise UnsupportedError("tensors of this type cannot be dequantized", where=kind.name) from reason


def _half_bytes(groups: np.ndarray) -> np.ndarray:
    """(groups, 16) uint8 -> float32 (groups, 32): the low halves of all bytes, then the high ones."""
    values = np.empty((len(groups), 2 * groups.shape[1]), np.float32)
    values[:, : groups.shape[1]] = groups & 0x0F
    values[:, groups.shape[1] :] = groups >> 4
    return values


def _halves(groups: np.ndarray, begin: int) -> np.ndarray:
    """The float16 at byte ``begin`` of each group as float32 (groups, 1)."""
    return groups[:, begin : begin + 2].copy().view("<f2").astype(np.float32)


def _q4_0(groups: np.ndarray) -> np.ndarray:
    values = _half_bytes(groups[:, 2:])
    values -= np.float32(8)
    values *= _halves(groups, 0)
    return values


def _q4_1(groups: np.ndarray) -> np.ndarray:
    """A float16 scale and a float16 minimum before the codes."""
    values = _half_bytes(groups[:, 4:])
    values *= _halves(groups, 0)
    values += _halves(groups, 2)
    return values


def _q8_0(groups: np.ndarray) -> np.ndarray:
    return groups[:, 2:].copy().view(np.int8).astype(np.float32) * _halves(groups, 0)


# Types simple and common enough to need no package. Source: ggml's block_q4_0, block_q4_1, block_q8_0.
_SIMPLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {"Q4_0": _q4_0, "Q4_1": _q4_1, "Q8_0": _q8_0}


def q4_0_codes(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, row bytes) uint8 of Q4_0 as codes (n, width / 8) uint32 and scales (n, width / 32) float16.

    Bit for bit the same numbers: d * (q - 8) is -d * (15 - q - 7), for every q and every d, -0, subnormals and
    infinities included.
    """
    groups = np.ascontiguousarray(blocks).reshape(-1).view(_Q4_0_BLOCK)
    codes = np.empty((len(groups), 2, 2), np.uint32)
    scales = np.empty(len(groups), np.uint16)
    low, high, scratch = (np.empty((_GROUPS_AT_A_TIME, 2), np.uint64) for _ in range(3))
    for begin in range(0, len(groups), _GROUPS_AT_A_TIME):
        part = slice(begin, begin + _GROUPS_AT_A_TIME)
        count = len(groups[part])
        scales[part] = groups["scale"][part]
        np.invert(groups["codes"][part], out=low[:count])  # 15 - q in every half byte
        np.right_shift(low[:count], np.uint64(4), out=high[:count])
        codes[part, 0] = _squeezed(low[:count], scratch[:count])
        codes[part, 1] = _squeezed(high[:count], scratch[:count])
    scales ^= np.uint16(0x8000)
    return codes.reshape(len(blocks), -1), scales.view(np.float16).reshape(len(blocks), -1)


def _squeezed(words: np.ndarray, scratch: np.ndarray) -> np.ndarray:
    """The low halves of the eight bytes of each uint64, side by side in its low 32 bits. Overwrites both."""
    words &= np.uint64(0x0F0F0F0F0F0F0F0F)
    for shift, kept in ((4, 0x00FF00FF00FF00FF), (8, 0x0000FFFF0000FFFF), (16, 0x00000000FFFFFFFF)):
        np.right_shift(words, np.uint64(shift), out=scratch)
        words |= scratch
        words &= np.uint64(kept)
    return words


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
