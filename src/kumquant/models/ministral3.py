"""Ministral 3: the Llama layout; checkpoints of the model that also sees put "language_model." before its names."""

from __future__ import annotations

from typing import Any

from .keys import Keys
from .llama import LLAMA


def _prepare(source: dict[str, Any], where: str) -> dict[str, Any]:
    text = source.get("text_config")
    return {**source, **text} if isinstance(text, dict) else source


def _context_length(keys: Keys) -> int:
    """Beyond the original length queries grow with their position (llama_4_scaling_beta), which is not described."""
    rope = keys.table("rope_parameters") or keys.table("rope_scaling") or {}
    length = keys.count("context_window_size", keys.count("max_position_embeddings"))
    original = Keys(rope, keys.where).count("original_max_position_embeddings", length)
    return min(length, original) if rope.get("llama_4_scaling_beta") else length


MINISTRAL3 = LLAMA.extend(
    "ministral3",
    flags={},
    not_in_format=(),
    window="all layers",
    chat_window="beside",
    sink_size=0,
    prepare=_prepare,
    defaults={"sliding_window": None},
    refuses={"attention_bias": (None, False)},
    understands=("text_config", "vision_config"),
    traits={"context_length": _context_length},
    prefixes=(("", ""), ("", "language_model."), ("model.", "model.language_model.")),
    ignored_names=(r"(model\.)?(vision_tower|multi_modal_projector)\..*",),
    format_config=(
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps", "vocab_size",
        "attention_sink_size", "context_window_size", "dtype", "head_dim", "hidden_act", "max_batch_size",
        "num_key_value_heads", "position_embedding_base", "prefill_chunk_size", "rope_parameters",
        "sliding_window_size", "tensor_parallel_shards", "tie_word_embeddings", "weight_block_size",
        "modules_to_not_convert",
    ),
)
