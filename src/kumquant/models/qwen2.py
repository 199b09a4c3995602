"""Qwen2: the Llama layout with a bias on queries, keys and values; later layers may have a window."""

from __future__ import annotations

from .llama import LLAMA

QWEN2 = LLAMA.extend(
    "qwen2",
    rename={"qkv_proj": "c_attn"},
    flags={"qkv_bias": True},
    not_in_format=(),
    window="by layer",
    defaults={"sliding_window": 4096, "max_window_layers": 28},
    format_config=(
        "hidden_act", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
        "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size", "tie_word_embeddings",
        "context_window_size", "prefill_chunk_size", "tensor_parallel_shards", "head_dim", "dtype",
        "max_batch_size",
    ),
)
