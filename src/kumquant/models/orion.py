"""Orion: the Llama layout with layer norms."""

from __future__ import annotations

from .stablelm import STABLELM

ORION = STABLELM.extend(
    "orion",
    aliases={},
    defaults={"rms_norm_eps": 1e-5},
    flags={},
    partial_rotary=False,
    refuses={"attention_bias": (None, False)},
    uncounted_names=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    format_config=(
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps", "vocab_size",
        "position_embedding_base", "context_window_size", "prefill_chunk_size", "num_key_value_heads", "head_dim",
        "tensor_parallel_shards", "max_batch_size",
    ),
)
