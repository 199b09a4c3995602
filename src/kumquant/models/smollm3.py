"""SmolLM3: the Llama layout with every fourth layer without positions. MLC has no such family."""

from __future__ import annotations

from ..errors import CheckpointError
from .keys import Keys
from .llama import LLAMA


def _layer_rope(keys: Keys) -> tuple[int, ...]:
    """no_rope_layers says 1 for a layer that has a rope; else every no_rope_layer_interval-th has none."""
    layers, given = keys.count("num_hidden_layers"), keys.values.get("no_rope_layers")
    if given is None:
        period = keys.count("no_rope_layer_interval", 4)
        given = [int((layer + 1) % period != 0) for layer in range(layers)]
    if not isinstance(given, list) or len(given) != layers or any(has_rope not in (0, 1) for has_rope in given):
        raise CheckpointError('the key "no_rope_layers" has a value that makes no sense', where=keys.where,
                              found=repr(given)[:80], expected=f"{layers} entries, each of 0, 1")
    return tuple(0 if has_rope else -1 for has_rope in given)


SMOLLM3 = LLAMA.extend(
    "smollm3",
    defaults={"tie_word_embeddings": True, "rope_theta": 2e6},
    window="by type",
    refuses={"use_sliding_window": (None, False)},
    understands=("no_rope_layers", "no_rope_layer_interval"),
    layer_rope=_layer_rope,
    not_in_format=(),
    in_format=False,
    format_config=(*LLAMA.format_config, "attention_bias", "mlp_bias", "no_rope_layers", "no_rope_layer_interval"),
)
