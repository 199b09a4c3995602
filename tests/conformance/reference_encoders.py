"""Tiny random encoders, the same everywhere: their hidden states by Transformers are stored in reference/.

No torch here: the tests make the weights again from the seed, as in reference_models.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def _bert(**keys: Any) -> dict[str, Any]:
    return {
        "model_type": "bert", "vocab_size": 72, "hidden_size": 30, "intermediate_size": 44, "num_hidden_layers": 2,
        "num_attention_heads": 3, "max_position_embeddings": 80, "type_vocab_size": 2, "hidden_act": "gelu",
        "layer_norm_eps": 1e-12, **keys,
    }


# name -> config.json. Heads of 10, 6 and 44 dimensions; nothing is a multiple of a vector register.
ENCODERS: dict[str, dict[str, Any]] = {
    "bert": _bert(),
    "bert_gelu_new": _bert(hidden_act="gelu_new", num_attention_heads=5, layer_norm_eps=1e-5, type_vocab_size=3),
    "bert_relu": _bert(hidden_act="relu", num_attention_heads=1, hidden_size=44, num_hidden_layers=3),
}
LENGTHS = (1, 7, 73)  # the last one needs a second page


def token_ids(name: str, length: int) -> list[int]:
    return [int(i) for i in _random(f"{name}/{length}").randint(0, 72, length)]


def weight(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The weight ``name`` of a model, float32 that fits bfloat16; large enough that attention and positions matter."""
    values = _random(f"{model}/{name}").standard_normal(shape)
    if name.endswith("bias"):
        values = 0.5 * values
    elif "LayerNorm" in name:
        values = 1 + 0.3 * values
    elif "embeddings" not in name:
        values *= 1.6 / np.sqrt(shape[-1])
    return (values.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _random(text: str) -> np.random.RandomState:
    return np.random.RandomState(list(text.encode()))
