"""Qwen3: Qwen2 with an RMS norm on each query and key head, and biases only if the config says so."""

from __future__ import annotations

from .llama import LAYER
from .qwen2 import QWEN2
from .rules import same

HEAD_NORMS = tuple(same(role, f"{LAYER}self_attn.{role}.weight", "plain", "head") for role in ("q_norm", "k_norm"))

QWEN3 = QWEN2.extend(
    "qwen3",
    add=HEAD_NORMS,
    flags={"qkv_bias": "attention_bias", "o_bias": "attention_bias"},
    uncounted_names=(),
    format_config=(
        "hidden_act", "hidden_size", "intermediate_size", "attention_bias", "num_attention_heads",
        "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "rope_theta", "vocab_size",
        "tie_word_embeddings", "context_window_size", "prefill_chunk_size", "tensor_parallel_shards",
        "head_dim", "dtype", "max_batch_size", "weight_block_size",
    ),
)
