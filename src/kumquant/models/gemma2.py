"""Gemma 2: Gemma with norms before and after each sublayer, capped scores and logits, a window in every other layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .gemma import GEMMA, around_one
from .keys import Keys
from .llama import LAYER
from .rules import same

SANDWICH_NORMS = around_one((
    same("attn_post_norm", LAYER + "post_attention_layernorm.weight", "plain", "hidden"),
    same("mlp_norm", LAYER + "pre_feedforward_layernorm.weight", "plain", "hidden"),
    same("mlp_post_norm", LAYER + "post_feedforward_layernorm.weight", "plain", "hidden"),
))


def capped(key: str, default: float) -> Callable[[Keys], float]:
    """A soft cap: null means none, a missing key the default."""
    def cap(keys: Keys) -> float:
        if keys.has(key):
            return keys.number(key)
        return 0.0 if key in keys.values else default
    return cap


def query_scale(keys: Keys) -> float:
    return float(keys.number("query_pre_attn_scalar", 256)) ** -0.5


def windows_by_pattern(source: dict[str, Any], period: int) -> dict[str, Any]:
    """Fill in layer_types: every ``period``-th layer sees everything."""
    layers = source.get("num_hidden_layers")
    if source.get("layer_types") is None and isinstance(layers, int) and not isinstance(layers, bool):
        kinds = ["sliding_attention" if (layer + 1) % period else "full_attention" for layer in range(layers)]
        return source | {"layer_types": kinds}
    return source


GEMMA2 = GEMMA.extend(
    "gemma2",
    without=("mlp_norm",),
    add=SANDWICH_NORMS,
    prepare=lambda source, where: windows_by_pattern(source, 2),
    defaults={**GEMMA.defaults, "hidden_act": "gelu_pytorch_tanh", "sliding_window": 4096},
    window="by type",
    chat_window="context",
    understands=("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
    traits={
        **GEMMA.traits, "attention_scale": query_scale,
        "attention_cap": capped("attn_logit_softcapping", 50.0), "final_cap": capped("final_logit_softcapping", 30.0),
    },
    format_config=(*GEMMA.format_config, "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar",
                   "sliding_window"),
)
