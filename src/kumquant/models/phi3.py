"""Phi-3: the Llama layout in names of its own, already fused in the checkpoint; LongRoPE, a window."""

from __future__ import annotations

from .family import Family
from .phi import EMBEDDING, LAYER, SOURCE
from .rules import moved, same

PHI3 = Family(
    model_type="phi3",
    tensors=(
        EMBEDDING,
        moved("attn_norm", LAYER + "ln.weight", SOURCE + "input_layernorm.weight", "plain", "hidden"),
        moved("qkv", LAYER + "mixer.qkv_proj.weight", SOURCE + "self_attn.qkv_proj.weight", "linear", "qkv", "hidden"),
        moved("o", LAYER + "mixer.out_proj.weight", SOURCE + "self_attn.o_proj.weight", "linear", "hidden", "q"),
        moved("mlp_norm", LAYER + "post_attention_layernorm.weight", SOURCE + "post_attention_layernorm.weight",
              "plain", "hidden"),
        moved("gate_up", LAYER + "mlp.gate_up_proj.weight", SOURCE + "mlp.gate_up_proj.weight", "linear",
              "ffn2", "hidden"),
        moved("down", LAYER + "mlp.down_proj.weight", SOURCE + "mlp.down_proj.weight", "linear", "hidden", "ffn"),
        moved("final_norm", "transformer.norm.weight", "model.norm.weight", "plain", "hidden"),
        same("head", "lm_head.weight", "linear", "vocab", "hidden"),
    ),
    defaults={"sliding_window": None},
    window="all layers",
    partial_rotary=True,
    refuses={"attention_bias": (None, False)},
    format_ropes=("longrope",),
    format_config=(
        "hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps",
        "num_key_value_heads", "max_position_embeddings", "position_embedding_base", "rope_scaling",
        "original_max_position_embeddings", "context_window_size", "prefill_chunk_size", "head_dim",
        "tensor_parallel_shards", "max_batch_size", "tie_word_embeddings", "partial_rotary_factor",
    ),
)
