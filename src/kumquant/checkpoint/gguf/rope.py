"""Rope scaling as GGUF says it, in the words of config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedError
from .metadata import Metadata, shortest

# Tensors that divide the frequencies: one for every length, or one below the original length and one beyond.
ROPE_DIVISORS = {"all": "rope_freqs.weight", "short": "rope_factors_short.weight", "long": "rope_factors_long.weight"}

# What every Llama 3.x has; llama.cpp's converter writes only the divisors that follow from them.
_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR = 1.0, 4.0
_ORIGINAL_LENGTHS = (8192, 4096, 2048, 16384, 32768)
_YARN_KEYS = {"yarn_beta_fast": "beta_fast", "yarn_beta_slow": "beta_slow"}
_YARN_MIX = (1.0, -1.0)  # "yarn_ext_factor": all of YaRN, or whatever the program takes for granted


def rope_scaling(metadata: Metadata, theta: float, dim: int,
                 divisors: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """"rope_scaling" of config.json, None for plain positions.

    theta, dim: base and rotated dimensions of a head. divisors: of the frequencies, float32 (dim / 2,), by the keys of
    ``ROPE_DIVISORS``. Those for all lengths are Llama 3's if its formula gives the same; others are carried as they
    are. A file that gives a factor and no type means linear scaling. Raises UnsupportedError for another type.
    """
    if any(len(row) != dim // 2 for row in divisors.values()):
        raise CheckpointError("the divisors of the rope's frequencies do not fit its dimensions", where=metadata.where,
                              found=[len(row) for row in divisors.values()], expected=dim // 2)
    kind = metadata.values.get(f"{metadata.architecture}.rope.scaling.type", "linear")
    if kind == "yarn" and not divisors:
        return _yarn(metadata)
    if kind not in ("none", "linear", "longrope") or (kind == "longrope" and not divisors):
        raise UnsupportedError("a rope scaling that is not known", where=metadata.where, found=repr(kind)[:80],
                               expected="none, linear or yarn")
    factor = _linear_factor(metadata) if kind == "linear" else 1.0
    magnitude = metadata.number("rope.scaling.attn_factor", 1.0)
    if not divisors and magnitude == 1.0:
        return None if factor == 1.0 else {"rope_type": "linear", "factor": factor}
    if "all" in divisors and factor == magnitude == 1.0:
        llama3 = _llama3(theta, dim, divisors["all"])
        if llama3 is not None:
            return llama3
    rows = [divisors.get(length, divisors.get("all")) for length in ("short", "long")]
    plain = np.ones(dim // 2, np.float32)
    short, long = (plain if row is None else row for row in rows)
    return _carried(metadata, short * np.float32(factor), long * np.float32(factor), magnitude)


def _linear_factor(metadata: Metadata) -> float:
    """By which positions are divided; files from 2023 have another name for it. 0 says the same as 1."""
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        if metadata.has(key):
            return metadata.number(key) if metadata.values[f"{metadata.architecture}.{key}"] else 1.0
    return 1.0


def _yarn(metadata: Metadata) -> dict[str, Any]:
    """llama.cpp multiplies its own attention factor, which is Transformers' default, by "attn_factor"."""
    mix = metadata.values.get(f"{metadata.architecture}.rope.scaling.yarn_ext_factor", 1.0)
    if mix not in _YARN_MIX:
        raise UnsupportedError("a mixture of YaRN and something else", where=metadata.where, found=repr(mix)[:40])
    factor = metadata.number("rope.scaling.factor")
    scaling = {"rope_type": "yarn", "factor": factor,
               "original_max_position_embeddings": metadata.count("rope.scaling.original_context_length",
                                                                  metadata.count("context_length"))}
    magnitude = metadata.number("rope.scaling.attn_factor", 1.0)
    if magnitude != 1.0:
        scaling["attention_factor"] = magnitude * yarn_attention_factor(factor)
    return scaling | {name: metadata.number(f"rope.scaling.{key}") for key, name in _YARN_KEYS.items()
                      if metadata.has(f"rope.scaling.{key}")}


def yarn_attention_factor(factor: float) -> float:
    """What YaRN multiplies cosines and sines by where nothing else is said."""
    return 1.0 if factor <= 1.0 else 0.1 * math.log(factor) + 1.0


def llama3_divisors(theta: float, dim: int, factor: float, low: float, high: float, original: int) -> np.ndarray:
    """What Llama 3.1 divides each frequency by: float32 (dim / 2,). Source: llama.cpp's converter."""
    frequencies = 1.0 / (theta ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)))
    wavelengths = 2 * math.pi / frequencies
    smooth = (original / wavelengths - low) / (high - low)
    blended = 1 / ((1 - smooth) / factor + smooth)
    result = np.where(wavelengths < original / high, 1.0, np.where(wavelengths > original / low, factor, blended))
    return result.astype(np.float32)


def _llama3(theta: float, dim: int, divisors: np.ndarray) -> dict[str, Any] | None:
    factor = shortest(float(divisors.max()))
    for original in _ORIGINAL_LENGTHS:
        expected = llama3_divisors(theta, dim, factor, _LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR, original)
        if np.allclose(divisors, expected, rtol=1e-5, atol=0):
            return {"rope_type": "llama3", "factor": factor, "low_freq_factor": _LOW_FREQ_FACTOR,
                    "high_freq_factor": _HIGH_FREQ_FACTOR, "original_max_position_embeddings": original}
    return None


def _carried(metadata: Metadata, short: np.ndarray, long: np.ndarray, magnitude: float) -> dict[str, Any]:
    """LongRoPE; also for divisors that no formula explains, with the same ones at every length."""
    return {"rope_type": "longrope", "short_factor": [float(divisor) for divisor in short],
            "long_factor": [float(divisor) for divisor in long],
            "attention_factor": magnitude,
            "original_max_position_embeddings": metadata.count("rope.scaling.original_context_length",
                                                               metadata.count("context_length"))}
