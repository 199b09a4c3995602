"""What a GGUF file says about a model: config.json in llama.cpp's keys, and the tensors that stand for formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import (
    GGUF_FAMILIES,
    GGUF_ROPE_DIVISORS,
    GgufFamily,
    config_from_gguf,
    llama3_divisors,
    yarn_attention_factor,
)
from ..errors import UnsupportedError
from ..models import DecoderSpec, ModelConfig, RopeSpec, family_of, inverse_frequencies

# Families that llama.cpp has under another name.
_SAME_AS = {"mistral": "llama", "gemma3": "gemma3_text"}
_QUANTIZATION_VERSION = 2

# Architectures that llama.cpp gives one set of divisors, or one for short and one for long texts.
_WITH_DIVISORS = frozenset(("llama", "granite"))
_WITH_TWO_SETS = frozenset(("llama", "granite", "phi3"))

# What a forward pass may have differently without computing differently, or is compared in a way of its own.
_NAMES = frozenset(("model_type", "tensors", "context_length", "sliding_window", "rope", "local_rope", "layer_rope"))
_TOLERANCE = 1e-6  # of numbers that the file has in float32


def architecture_of(model_type: str) -> tuple[str, GgufFamily]:
    """llama.cpp's name of a family and its tensors. Raises UnsupportedError for one that is not known there."""
    wanted = _SAME_AS.get(model_type, model_type)
    for name, family in GGUF_FAMILIES.items():
        if family.model_type == wanted:
            return name, family
    known = sorted({family.model_type for family in GGUF_FAMILIES.values()} | set(_SAME_AS))
    raise UnsupportedError("this family cannot be exported to GGUF", where=model_type, expected=", ".join(known),
                           hint="Export it to safetensors.")


def model_metadata(architecture: str, config: ModelConfig, spec: DecoderSpec, name: str,
                   file_type: int) -> dict[str, Any]:
    """The keys "general.*" and "<architecture>.*". file_type: llama.cpp's number of the commonest tensor type."""
    epsilon = "layer_norm_rms_epsilon" if spec.norm == "rms" else "layer_norm_epsilon"
    keys: dict[str, Any] = {
        "context_length": config.max_position_embeddings, "embedding_length": spec.hidden_size,
        "block_count": spec.num_layers, "feed_forward_length": spec.intermediate_size,
        "attention.head_count": spec.num_heads, "attention.head_count_kv": spec.num_kv_heads,
        "attention.key_length": spec.head_dim, "attention.value_length": spec.head_dim,
        f"attention.{epsilon}": float(spec.norm_eps), "vocab_size": spec.vocab_size,
        **_rope_keys(architecture, spec.rope),
        **_OWN_KEYS.get(architecture, lambda spec: {})(spec),
    }
    return {"general.architecture": architecture, "general.name": name, "general.file_type": file_type,
            "general.quantization_version": _QUANTIZATION_VERSION,
            **{f"{architecture}.{key}": value for key, value in keys.items()}}


def rope_divisors(architecture: str, rope: RopeSpec | None) -> dict[str, np.ndarray]:
    """By the keys of ``GGUF_ROPE_DIVISORS`` what the frequencies are divided by, float32 (dim / 2,).

    Raises UnsupportedError for an architecture that llama.cpp gives no such tensors.
    """
    if rope is None or rope.type not in ("llama3", "longrope"):
        return {}
    given = rope.parameters
    if rope.type == "llama3":
        found = {"all": llama3_divisors(rope.theta, rope.dim, given["factor"], given["low_freq_factor"],
                                        given["high_freq_factor"], given["original_max_position_embeddings"])}
    elif given["short_factor"] == given["long_factor"] and architecture in _WITH_DIVISORS:
        found = {"all": np.array(given["long_factor"], np.float32)}
    else:
        found = {length: np.array(given[f"{length}_factor"], np.float32) for length in ("short", "long")}
    if architecture not in (_WITH_DIVISORS if "all" in found else _WITH_TWO_SETS):
        raise _unknown_rope(rope.type)
    return found


def _rope_keys(architecture: str, rope: RopeSpec | None) -> dict[str, Any]:
    if rope is None:
        return {}
    keys: dict[str, Any] = {"rope.dimension_count": rope.dim, "rope.freq_base": float(rope.theta)}
    given = rope.parameters
    if rope.type in ("linear", "yarn"):
        keys |= {"rope.scaling.type": rope.type, "rope.scaling.factor": float(given["factor"])}
    elif rope.type not in ("default", "llama3", "longrope"):
        raise _unknown_rope(rope.type)
    if rope.type in ("yarn", "longrope"):
        keys["rope.scaling.original_context_length"] = given["original_max_position_embeddings"]
        magnitude = inverse_frequencies(rope, 1)[1]
        if rope.type == "yarn":  # llama.cpp has a factor of its own, and multiplies
            magnitude /= yarn_attention_factor(given["factor"])
        if not math.isclose(magnitude, 1.0, rel_tol=_TOLERANCE):
            keys["rope.scaling.attn_factor"] = magnitude
        for key in ("beta_fast", "beta_slow"):
            if given.get(key) is not None:
                keys[f"rope.scaling.yarn_{key}"] = float(given[key])
    if "short" in rope_divisors(architecture, rope):
        keys["rope.scaling.type"] = "longrope"
    return keys


def _unknown_rope(rope_type: str) -> UnsupportedError:
    return UnsupportedError("llama.cpp's file cannot say this rope scaling", where=rope_type,
                            hint="Export it to safetensors.")


def _window_keys(spec: DecoderSpec, period: int) -> dict[str, Any]:
    """The window, and which layers have one if that is not all but every ``period``-th."""
    has_window = [window > 0 for window in spec.sliding_window]
    keys: dict[str, Any] = {"attention.sliding_window": max(spec.sliding_window)}
    if has_window != [layer % period < period - 1 for layer in range(spec.num_layers)]:
        keys["attention.sliding_window_pattern"] = has_window
    return keys


def _gemma2_keys(spec: DecoderSpec) -> dict[str, Any]:
    return {**_window_keys(spec, 2), "attn_logit_softcapping": float(spec.attention_cap),
            "final_logit_softcapping": float(spec.final_cap)}


def _gemma3_keys(spec: DecoderSpec) -> dict[str, Any]:
    keys = _window_keys(spec, 6) if any(spec.sliding_window) else {}
    if spec.local_rope is not None:
        keys["rope.freq_base_swa"] = float(spec.local_rope.theta)
    return keys | ({"final_logit_softcapping": float(spec.final_cap)} if spec.final_cap else {})


# Architecture -> the keys that it has beside those of all.
_OWN_KEYS: Mapping[str, Callable[[DecoderSpec], dict[str, Any]]] = {
    "gemma2": _gemma2_keys, "gemma3": _gemma3_keys,
    "granite": lambda spec: {
        "attention.scale": float(spec.attention_scale), "embedding_scale": float(spec.embed_scale),
        "logit_scale": 1.0 / spec.logit_scale, "residual_scale": float(spec.residual_scale)},
    "phi3": lambda spec: {"attention.sliding_window": max(spec.sliding_window)},
}


def check_reads_back(metadata: Mapping[str, Any], divisors: Mapping[str, np.ndarray], names: Collection[str],
                     spec: DecoderSpec, where: Path) -> list[str]:
    """Read the model back from what the file will say about it, as llama.cpp understands it, and compare.

    names: the file's tensors. Returns warnings: what llama.cpp will compute otherwise although the file is right.
    Raises UnsupportedError where the file would mean another model.
    """
    shown = {name: divisors[key] for key, name in GGUF_ROPE_DIVISORS.items() if key in divisors}
    config_json = config_from_gguf(metadata, {*names, *shown}, spec.vocab_size, divisors, where)
    family = family_of(config_json)
    found = family.spec(family.config(config_json, str(where)))
    wrong = [field.name for field in fields(DecoderSpec)
             if field.name not in _NAMES and not _same(getattr(found, field.name), getattr(spec, field.name))]
    wrong += ["rope"] if not _same_ropes(found, spec) else []
    wrong += ["tensors"] if found.tensors.keys() != spec.tensors.keys() else []
    if wrong:
        raise UnsupportedError("llama.cpp would compute another model from the file", where=spec.model_type,
                               found=", ".join(f"{name}: {getattr(found, name)!r} instead of {getattr(spec, name)!r}"
                                               for name in wrong)[:300],
                               hint="Export it to safetensors.")
    if _windows(found) != _windows(spec) or (family.model_type == "phi3" and any(_windows(spec))):
        return ["llama.cpp will let every token see all earlier ones: it has no window for this family."]
    return []


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=_TOLERANCE)
    return bool(one == other)


def _same_ropes(one: DecoderSpec, other: DecoderSpec) -> bool:
    """Whether every layer turns its heads alike, in short texts and in the longest ones."""
    def frequencies(spec: DecoderSpec, number: int, length: int) -> np.ndarray:
        if number < 0:
            return np.zeros(0, np.float32)
        divided, magnitude = inverse_frequencies(spec.ropes[number], length)
        return np.append(divided, np.float32(magnitude))

    for numbers in set(zip(one.rope_of_layer, other.rope_of_layer, strict=True)):
        for length in (1, other.context_length):
            found, wanted = (frequencies(*pair, length) for pair in zip((one, other), numbers, strict=True))
            if found.shape != wanted.shape or not np.allclose(found, wanted, rtol=1e-5, atol=0):
                return False
    return True


def _windows(spec: DecoderSpec) -> tuple[int, ...]:
    """Those that a text of the whole context notices."""
    return tuple(window if window < spec.context_length else 0 for window in spec.sliding_window)
