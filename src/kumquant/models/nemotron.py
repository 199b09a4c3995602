"""Nemotron: layer norms around 1, squared ReLU without a gate, the rope on part of each head."""

from __future__ import annotations

from .llama import ATTENTION, LAYER, LLAMA, MODEL
from .rules import layer_norm, linear

NEMOTRON = LLAMA.extend(
    "nemotron",
    without={rule.role for rule in LLAMA.tensors},
    add=(
        *(rule for rule in MODEL if rule.role != "final_norm"),
        *layer_norm("final_norm", "model.norm"),
        *layer_norm("attn_norm", LAYER + "input_layernorm"),
        *layer_norm("mlp_norm", LAYER + "post_attention_layernorm"),
        *ATTENTION,
        *linear("up", LAYER + "mlp.up_proj", "ffn", "hidden", bias="mlp_bias"),
        *linear("down", LAYER + "mlp.down_proj", "hidden", "ffn", bias="mlp_bias"),
    ),
    aliases={"rms_norm_eps": "norm_eps"},
    defaults={"rms_norm_eps": 1e-5, "partial_rotary_factor": 0.5, "hidden_act": "relu2"},
    not_in_format=("qkv_bias", "o_bias"),
    partial_rotary=True,
    traits={"norm": "layer", "norm_offset": 1.0},
    format_config=(
        "vocab_size", "max_position_embeddings", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "rope_theta", "partial_rotary_factor", "rope_scaling",
        "norm_eps", "head_dim", "tie_word_embeddings", "mlp_bias", "context_window_size", "prefill_chunk_size",
        "tensor_parallel_shards", "pipeline_parallel_stages", "max_batch_size", "disaggregation",
    ),
)
