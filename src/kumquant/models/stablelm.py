"""StableLM: the Llama layout with layer norms and the rope on part of each head."""

from __future__ import annotations

from .llama import ATTENTION, GATED_MLP, LAYER, LLAMA, MODEL
from .rules import layer_norm

STABLELM = LLAMA.extend(
    "stablelm",
    without={rule.role for rule in LLAMA.tensors},
    add=(
        *(rule for rule in MODEL if rule.role != "final_norm"),
        *layer_norm("final_norm", "model.norm"),
        *layer_norm("attn_norm", LAYER + "input_layernorm"),
        *layer_norm("mlp_norm", LAYER + "post_attention_layernorm"),
        *ATTENTION, *GATED_MLP,
    ),
    aliases={"rms_norm_eps": "layer_norm_eps"},
    defaults={"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
    flags={"qkv_bias": "use_qkv_bias"},
    not_in_format=(),
    partial_rotary=True,
    traits={"norm": "layer"},
    ties_head=False,
    uncounted_names=(),
    format_config=(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "layer_norm_eps", "partial_rotary_factor", "rope_theta", "intermediate_size", "use_qkv_bias", "head_dim",
        "context_window_size", "prefill_chunk_size", "tensor_parallel_shards", "max_batch_size",
    ),
)
