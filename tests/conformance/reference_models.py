"""Tiny random models, the same everywhere: their logits by Transformers are stored in reference/.

No torch here: the tests make the weights again from the seed. numpy's RandomState is used because its stream
is frozen for good.
"""

from __future__ import annotations

from typing import Any

import numpy as np

_SIZES = {
    "vocab_size": 72, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def _llama(**keys: Any) -> dict[str, Any]:
    return {"model_type": "llama", **_SIZES, "rope_theta": 10000.0, **keys}


def _scaled(length: int, **rope: Any) -> dict[str, Any]:
    return _llama(max_position_embeddings=length, rope_scaling=rope)


def _factors(first: float, last: float) -> list[float]:
    return [round(float(x), 4) for x in np.linspace(first, last, 4)]


# name -> config.json. The older spelling; Transformers writes the newer one, and the tests compare the two.
MODELS: dict[str, dict[str, Any]] = {
    "llama": _llama(),
    "llama_tied": _llama(tie_word_embeddings=True, num_key_value_heads=4),
    "llama_biases": _llama(attention_bias=True, mlp_bias=True),
    "llama_head_dim": _llama(head_dim=12, num_key_value_heads=1),
    "llama_linear": _scaled(24, type="linear", factor=2.5),
    "llama_dynamic": _scaled(24, rope_type="dynamic", factor=2.0),
    "llama_yarn": _scaled(96, rope_type="yarn", factor=4.0, original_max_position_embeddings=24),
    "llama_yarn_tuned": _scaled(24, rope_type="yarn", factor=3.0, beta_fast=16, beta_slow=2, mscale=1.2,
                                mscale_all_dim=0.7, truncate=False),
    "llama_longrope": _scaled(96, rope_type="longrope", original_max_position_embeddings=24,
                              short_factor=_factors(1.0, 1.3), long_factor=_factors(1.5, 4.5)),
    "llama_longrope_short": _scaled(96, rope_type="longrope", original_max_position_embeddings=64, factor=3.0,
                                    short_factor=_factors(1.0, 1.3), long_factor=_factors(1.5, 4.5)),
    "llama_llama3": _scaled(128, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                            original_max_position_embeddings=24),
    "llama_proportional": _scaled(64, rope_type="proportional", partial_rotary_factor=0.5, factor=1.5),
    "mistral": {"model_type": "mistral", **_SIZES, "rope_theta": 1e6, "sliding_window": 9},
    "mistral_no_window": {"model_type": "mistral", **_SIZES, "rope_theta": 1e6, "sliding_window": None},
    "qwen2": {"model_type": "qwen2", **_SIZES, "rope_theta": 1e6},
    "qwen2_window": {"model_type": "qwen2", **_SIZES, "rope_theta": 1e6, "tie_word_embeddings": True,
                     "num_hidden_layers": 3, "use_sliding_window": True, "sliding_window": 7,
                     "max_window_layers": 1},
    "qwen2_layer_types": {"model_type": "qwen2", **_SIZES, "rope_theta": 1e6, "use_sliding_window": True,
                          "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "qwen3": {"model_type": "qwen3", **_SIZES, "rope_theta": 1e6, "head_dim": 12,
              "tie_word_embeddings": True},
    "qwen3_bias": {"model_type": "qwen3", **_SIZES, "rope_theta": 1e6, "head_dim": 8, "attention_bias": True},
}
NUM_TOKENS = 44
STORED_ROWS = slice(1, None, 6)


def token_ids(name: str) -> list[int]:
    return [int(i) for i in _random(name).randint(0, _SIZES["vocab_size"], NUM_TOKENS)]


def weight(model: str, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 weight ``name`` of a model: large enough that attention and positions matter."""
    values = _random(f"{model}/{name}").standard_normal(shape)
    if "norm" in name:
        values = 1 + 0.3 * values
    elif name.endswith("bias"):
        values = 0.5 * values
    else:
        values *= 1.6 / np.sqrt(shape[-1])
    return values.astype(np.float32)


def _random(text: str) -> np.random.RandomState:
    return np.random.RandomState(list(text.encode()))
