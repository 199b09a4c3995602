"""Mistral: the Llama layout with one sliding window for all layers, no biases, always a head of its own."""

from __future__ import annotations

from .llama import LLAMA

MISTRAL = LLAMA.extend(
    "mistral",
    flags={},
    not_in_format=(),
    window="all layers",
    chat_window="instead",
    sink_size=4,
    ties_head=False,
    defaults={"sliding_window": 4096},
    format_config=(
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps",
        "vocab_size", "position_embedding_base", "num_key_value_heads", "head_dim", "context_window_size",
        "sliding_window_size", "prefill_chunk_size", "attention_sink_size", "tensor_parallel_shards",
        "max_batch_size",
    ),
)
