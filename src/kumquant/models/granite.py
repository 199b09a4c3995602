"""Granite: the Llama layout with scaled embeddings, sublayers, attention and logits. MLC has no such family."""

from __future__ import annotations

from .llama import LLAMA

GRANITE = LLAMA.extend(
    "granite",
    understands=("embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling"),
    traits={
        "embed_scale": lambda keys: keys.number("embedding_multiplier", 1.0),
        "residual_scale": lambda keys: keys.number("residual_multiplier", 1.0),
        "attention_scale": lambda keys: keys.number("attention_multiplier", 1.0),
        "logit_scale": lambda keys: 1.0 / keys.number("logits_scaling", 1.0),
    },
    not_in_format=(),
    in_format=False,
    format_config=(*LLAMA.format_config, "attention_bias", "mlp_bias", "embedding_multiplier", "residual_multiplier",
                   "attention_multiplier", "logits_scaling"),
)
