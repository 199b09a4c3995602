"""Rotary position embedding: from config keys to inverse frequencies, for every scaling that llama may have.

The arithmetic follows Transformers 5.23 (modeling_rope_utils.py) operation by operation in float32. One step
differs on purpose: theta**x is computed in double and rounded once, so that every machine gets the same bits;
torch's own float32 power is within one unit in the last place of that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from .keys import Keys
from .spec import RopeSpec

_DEFAULT_THETA = 10000.0
_WITH_ORIGINAL_LENGTH = ("yarn", "longrope", "llama3")
_LENGTH_DEPENDENT = ("dynamic", "longrope")
_MAX_FACTOR = 1e6  # far beyond any model
_OLDER_NAMES = {"su": "longrope"}


def rope_from_config(config: Keys, head_dim: int, max_position_embeddings: int,
                     can_be_partial: bool = False) -> RopeSpec:
    """The rope of a config in either spelling, by Transformers' precedence.

    A non-empty ``rope_scaling`` replaces ``rope_parameters``; ``rope_theta`` inside the object wins over the
    one beside it; ``rope_type`` wins over the older ``type``; ``original_max_position_embeddings`` beside the
    object wins over the one inside and defaults to ``max_position_embeddings``. can_be_partial: whether the family
    rotates only the first partial_rotary_factor of each head.
    Raises UnsupportedError for an unknown rope type or a partial rotation, CheckpointError for missing or
    senseless parameters.
    """
    table = dict(config.table("rope_scaling") or config.table("rope_parameters") or {})
    inside = Keys(table, f"{config.where} (rope parameters)")
    rope_type = inside.text("rope_type", inside.text("type", "default"))
    rope_type = _OLDER_NAMES.get(rope_type, rope_type)
    if rope_type not in _INVERSE_FREQUENCIES:
        raise UnsupportedError(
            "unknown rope type", where=inside.where, found=repr(rope_type),
            expected=", ".join(_INVERSE_FREQUENCIES),
            hint="The model needs another position embedding than the ones above.",
        )
    theta = inside.number("rope_theta", config.number("rope_theta", _DEFAULT_THETA))
    parameters = {key: value for key, value in table.items()
                  if key not in ("rope_type", "type", "rope_theta") and value is not None}
    partial = inside.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dim = head_dim
    if rope_type == "proportional":
        parameters["partial_rotary_factor"] = partial
    elif can_be_partial:
        parameters.pop("partial_rotary_factor", None)
        dim = int(head_dim * partial)
        if partial > 1.0 or dim < 2 or dim % 2:
            raise UnsupportedError("rotates no even part of each head", where=f"{config.where}: partial_rotary_factor",
                                   found=f"{partial} of {head_dim}")
    elif partial != 1.0:
        raise UnsupportedError(
            "only whole heads can be rotated", where=f"{config.where}: partial_rotary_factor", found=partial,
            expected="1.0", hint="This model rotates a part of each head, which no supported family does.",
        )
    if rope_type in _WITH_ORIGINAL_LENGTH:
        inner = inside.count("original_max_position_embeddings", max_position_embeddings)
        parameters["original_max_position_embeddings"] = config.count("original_max_position_embeddings",
                                                                      inner)
    spec = RopeSpec(rope_type, theta, dim, max_position_embeddings, parameters)
    _check_parameters(spec, inside.where)
    return spec


def extended_length(rope: RopeSpec) -> int:
    """Positions the model is meant for: max_position_embeddings, or the original length times the factor.

    ``linear`` and ``dynamic`` configs keep max_position_embeddings at the length before scaling
    (Transformers' documentation asks for it); the others usually give the extended length already.
    """
    original = rope.parameters.get("original_max_position_embeddings", rope.max_position_embeddings)
    factor = rope.parameters.get("factor", 1.0) if rope.type in _SCALED else 1.0
    return max(rope.max_position_embeddings, int(original * factor))


def depends_on_length(rope: RopeSpec) -> bool:
    """Whether the frequencies change with the length of the sequence (dynamic, longrope)."""
    return rope.type in _LENGTH_DEPENDENT


def inverse_frequencies(rope: RopeSpec, seq_len: int) -> tuple[np.ndarray, float]:
    """Angles per position and the factor on their cosines and sines.

    seq_len: tokens in the sequence so far, the newest included; only dynamic and longrope look at it.
    Returns float32 (dim / 2,) radians per position, and the attention factor that multiplies cos and sin.
    """
    return _INVERSE_FREQUENCIES[rope.type](rope, seq_len)


def _power(base: float, width: int, count: int | None = None) -> np.ndarray:
    """base ** (2i / width) for i below count (width / 2), float32. See the module's docstring on rounding."""
    exponents = np.arange(0, width if count is None else 2 * count, 2).astype(np.float32) / np.float32(width)
    rounded = float(np.float32(base))
    return np.array([math.pow(rounded, float(x)) for x in exponents], dtype=np.float32)


def _default(rope: RopeSpec, seq_len: int) -> tuple[np.ndarray, float]:
    return np.float32(1.0) / _power(rope.theta, rope.dim), 1.0


def _linear(rope: RopeSpec, seq_len: int) -> tuple[np.ndarray, float]:
    frequencies, attention_factor = _default(rope, seq_len)
    return frequencies / np.float32(rope.parameters["factor"]), attention_factor


def _dynamic(rope: RopeSpec, seq_len: int) -> tuple[np.ndarray, float]:
    """NTK scaling: up to the original length nothing changes, beyond it the base grows with the sequence."""
    limit, factor = rope.max_position_embeddings, float(rope.parameters["factor"])
    exponent = rope.dim / (rope.dim - 2)
    if seq_len <= limit:
        base = rope.theta * (factor * limit / limit - (factor - 1)) ** exponent
    else:  # Transformers has the length in a float32 tensor here
        stretch = np.float32(factor) * np.float32(seq_len) / np.float32(limit) - np.float32(factor - 1)
        base = float(np.float32(rope.theta) * np.float32(math.pow(float(stretch),
                                                                  float(np.float32(exponent)))))
    return np.float32(1.0) / _power(base, rope.dim), 1.0


def _yarn(rope: RopeSpec, seq_len: int) -> tuple[np.ndarray, float]:
    """YaRN: high frequencies stay, low ones are divided by the factor, a linear ramp lies between."""
    given, dim = rope.parameters, rope.dim
    factor, original = float(given["factor"]), given["original_max_position_embeddings"]
    attention_factor = given.get("attention_factor")
    if attention_factor is None:
        if given.get("mscale") and given.get("mscale_all_dim"):
            attention_factor = _mscale(factor, given["mscale"]) / _mscale(factor, given["mscale_all_dim"])
        else:
            attention_factor = _mscale(factor, 1.0)

    def correction_dim(num_rotations: float) -> float:
        return dim * math.log(original / (num_rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = correction_dim(given.get("beta_fast") or 32), correction_dim(given.get("beta_slow") or 1)
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # Transformers' own guard against a division by zero
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    kept = np.float32(1.0) - np.clip(ramp, np.float32(0.0), np.float32(1.0))
    powers = _power(rope.theta, dim)
    extrapolated = np.float32(1.0) / powers
    interpolated = np.float32(1.0) / (np.float32(factor) * powers)
    return interpolated * (np.float32(1.0) - kept) + extrapolated * kept, float(attention_factor)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _longrope(rope: RopeSpec, seq_len: int) -> tuple[np.ndarray, float]:
    """LongRoPE: one divisor per frequency; the long set serves sequences beyond the original length."""
    given = rope.parameters
    original = given["original_max_position_embeddings"]
    factor = given.get("factor")
    if factor is None:
        factor = rope.max_position_embeddings / original
    attention_factor = given.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0 if factor <= 1.0 else math.sqrt(1 + math.log(factor) / math.log(original))
    divisors = np.array(given["long_factor" if seq_len > original else "short_factor"], dtype=np.float32)
    return np.float32(1.0) / (divisors * _power(rope.theta, rope.dim)), float(attention_factor)


def _llama3(rope: RopeSpec, seq_len: int) -> tuple[np.ndarray, float]:
    """Llama 3.1: long wavelengths are divided by the factor, medium ones blended, short ones kept."""
    given = rope.parameters
    factor, low, high = given["factor"], given["low_freq_factor"], given["high_freq_factor"]
    original = given["original_max_position_embeddings"]
    frequencies = _default(rope, seq_len)[0]
    wavelengths = np.float32(2 * math.pi) / frequencies
    is_long = wavelengths > np.float32(original / low)
    is_medium = ~(wavelengths < np.float32(original / high)) & ~is_long
    scaled = np.where(is_long, frequencies / np.float32(factor), frequencies)
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    blended = (np.float32(1.0) - smooth) * scaled / np.float32(factor) + smooth * scaled
    return np.where(is_medium, blended, scaled), 1.0


def _proportional(rope: RopeSpec, seq_len: int) -> tuple[np.ndarray, float]:
    """The first part of each head turns, the rest stands still (frequency zero)."""
    num_rotated = int(rope.parameters["partial_rotary_factor"] * rope.dim // 2)
    frequencies = np.zeros(rope.dim // 2, dtype=np.float32)
    frequencies[:num_rotated] = np.float32(1.0) / _power(rope.theta, rope.dim, num_rotated)
    return frequencies / np.float32(rope.parameters.get("factor", 1.0)), 1.0


_INVERSE_FREQUENCIES: dict[str, Callable[[RopeSpec, int], tuple[np.ndarray, float]]] = {
    "default": _default, "linear": _linear, "dynamic": _dynamic, "yarn": _yarn, "longrope": _longrope,
    "llama3": _llama3, "proportional": _proportional,
}
_SCALED = ("linear", "dynamic", "yarn", "longrope", "llama3")
_REQUIRED: dict[str, tuple[str, ...]] = {
    "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
_OPTIONAL = ("factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def _check_parameters(rope: RopeSpec, where: str) -> None:
    given: dict[str, Any] = rope.parameters
    keys = Keys(given, f"{where}, rope_type {rope.type}")
    for key in _REQUIRED.get(rope.type, ()):
        keys.number(key)
    if rope.type != "default":
        for key in _OPTIONAL:
            keys.number(key, 1.0)
        keys.flag("truncate", True)
    if rope.type == "longrope":
        keys.numbers("short_factor", rope.dim // 2)
        keys.numbers("long_factor", rope.dim // 2)
    if rope.type == "llama3" and given["high_freq_factor"] <= given["low_freq_factor"]:
        raise UnsupportedError(
            "high_freq_factor must be above low_freq_factor", where=keys.where,
            found=f'{given["high_freq_factor"]} and {given["low_freq_factor"]}',
        )
    limits = {  # beyond these the formulas above divide by zero or take more frequencies than there are
        "the head width": (rope.type == "dynamic" and rope.dim <= 2, rope.dim, "4 or more"),
        "rope_theta": (rope.type == "yarn" and rope.theta <= 1, rope.theta, "above 1"),
        "original_max_position_embeddings": (given.get("original_max_position_embeddings") == 1, 1,
                                             "above 1"),
        "partial_rotary_factor": (given.get("partial_rotary_factor", 1.0) > 1.0,
                                  given.get("partial_rotary_factor"), "at most 1"),
        "factor": (rope.type != "default" and (given.get("factor") or 1.0) > _MAX_FACTOR, given.get("factor"),
                   f"at most {_MAX_FACTOR:,.0f}"),
    }
    for what, (is_broken, found, expected) in limits.items():
        if is_broken:
            raise UnsupportedError(f"{what} is out of range", where=keys.where, found=found,
                                   expected=expected)
