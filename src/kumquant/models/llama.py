"""Llama: RMS norms, rotary attention with grouped heads, SwiGLU. The other families build on it."""

from __future__ import annotations

from .family import Family
from .rules import fused, linear, qkv, same

LAYER = "model.layers.{i}."
MODEL = (
    same("embed", "model.embed_tokens.weight", "embedding", "vocab", "hidden"),
    same("final_norm", "model.norm.weight", "plain", "hidden"),
    same("head", "lm_head.weight", "linear", "vocab", "hidden"),
)
NORMS = (
    same("attn_norm", LAYER + "input_layernorm.weight", "plain", "hidden"),
    same("mlp_norm", LAYER + "post_attention_layernorm.weight", "plain", "hidden"),
)
ATTENTION = (
    *qkv(LAYER + "self_attn.qkv_proj", LAYER + "self_attn.", bias="qkv_bias"),
    *linear("o", LAYER + "self_attn.o_proj", "hidden", "q", bias="o_bias"),
)
GATED_MLP = (
    fused("gate_up", LAYER + "mlp.gate_up_proj.weight", "linear",
          (LAYER + "mlp.gate_proj.weight", "ffn", "hidden"), (LAYER + "mlp.up_proj.weight", "ffn", "hidden")),
    fused("gate_up_bias", LAYER + "mlp.gate_up_proj.bias", "plain",
          (LAYER + "mlp.gate_proj.bias", "ffn"), (LAYER + "mlp.up_proj.bias", "ffn"), when="mlp_bias"),
    *linear("down", LAYER + "mlp.down_proj", "hidden", "ffn", bias="mlp_bias"),
)

LLAMA = Family(
    model_type="llama",
    tensors=(*MODEL, *NORMS, *ATTENTION, *GATED_MLP),
    flags={"qkv_bias": "attention_bias", "o_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    not_in_format=("qkv_bias", "o_bias", "mlp_bias"),
    uncounted_names=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    format_ropes=("llama3",),
    format_config=(
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps",
        "vocab_size", "tie_word_embeddings", "position_embedding_base", "rope_scaling", "context_window_size",
        "prefill_chunk_size", "num_key_value_heads", "head_dim", "tensor_parallel_shards",
        "pipeline_parallel_stages", "max_batch_size", "disaggregation",
    ),
)
