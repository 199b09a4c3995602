"""Phi: attention and MLP side by side behind one layer norm, biases everywhere, the rope on part of each head."""

from __future__ import annotations

from .family import Family
from .rules import layer_norm, linear, moved, qkv

LAYER, SOURCE = "transformer.h.{i}.", "model.layers.{i}."
EMBEDDING = moved("embed", "transformer.embd.weight", "model.embed_tokens.weight", "embedding", "vocab", "hidden")

PHI = Family(
    model_type="phi",
    tensors=(
        EMBEDDING,
        *layer_norm("attn_norm", LAYER + "ln", SOURCE + "input_layernorm"),
        *qkv(LAYER + "mixer.Wqkv", SOURCE + "self_attn."),
        *linear("o", LAYER + "mixer.out_proj", "hidden", "q", SOURCE + "self_attn.dense"),
        *linear("up", LAYER + "mlp.fc1", "ffn", "hidden", SOURCE + "mlp.fc1"),
        *linear("down", LAYER + "mlp.fc2", "hidden", "ffn", SOURCE + "mlp.fc2"),
        *layer_norm("final_norm", "lm_head.ln", "model.final_layernorm"),
        *linear("head", "lm_head.linear", "vocab", "hidden", "lm_head"),
    ),
    aliases={"rms_norm_eps": "layer_norm_eps"},
    defaults={"hidden_act": "gelu_new", "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5},
    partial_rotary=True,
    traits={"norm": "layer", "parallel_block": True},
    ties_head=False,
    uncounted_names=(r"model\.layers\.\d+\.mixer\.rotary_emb\.inv_freq",),
    format_config=(
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps",
        "position_embedding_base", "partial_rotary_factor", "num_key_value_heads", "context_window_size",
        "prefill_chunk_size", "head_dim", "tensor_parallel_shards", "max_batch_size",
    ),
)
