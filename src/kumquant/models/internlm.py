"""InternLM: the Llama layout, with biases on the attention's matrices if "bias" says so."""

from __future__ import annotations

from .llama import LLAMA

INTERNLM = LLAMA.extend(
    "internlm",
    rename={"qkv_proj": "wqkv_pack"},
    flags={"qkv_bias": "bias", "o_bias": "bias"},
    not_in_format=(),
    ties_head=False,
    defaults={"rope_theta": 10000.0},  # the model's code has it, no config says it
    format_config=(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps", "intermediate_size",
        "bias", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id", "context_window_size",
        "prefill_chunk_size", "tensor_parallel_shards", "max_batch_size", "head_dim",
    ),
)
