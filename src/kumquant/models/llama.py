"""Llama: RMS norms, rotary attention with grouped heads, SwiGLU. The other families build on it."""

from __future__ import annotations

from .family import Family, Source, TensorRule

LAYER = "model.layers.{i}."


def _same(role: str, name: str, kind: str, *axes: str, when: str | None = None) -> TensorRule:
    """A tensor that has the same name in checkpoint and cache."""
    return TensorRule(role, name, kind, (Source(name, axes),), when)  # type: ignore[arg-type]


LLAMA = Family(
    model_type="llama",
    tensors=(
        _same("embed", "model.embed_tokens.weight", "embedding", "vocab", "hidden"),
        _same("attn_norm", LAYER + "input_layernorm.weight", "plain", "hidden"),
        TensorRule("qkv", LAYER + "self_attn.qkv_proj.weight", "linear", (
            Source(LAYER + "self_attn.q_proj.weight", ("q", "hidden")),
            Source(LAYER + "self_attn.k_proj.weight", ("kv", "hidden")),
            Source(LAYER + "self_attn.v_proj.weight", ("kv", "hidden")),
        )),
        TensorRule("qkv_bias", LAYER + "self_attn.qkv_proj.bias", "plain", (
            Source(LAYER + "self_attn.q_proj.bias", ("q",)),
            Source(LAYER + "self_attn.k_proj.bias", ("kv",)),
            Source(LAYER + "self_attn.v_proj.bias", ("kv",)),
        ), when="qkv_bias"),
        _same("o", LAYER + "self_attn.o_proj.weight", "linear", "hidden", "q"),
        _same("o_bias", LAYER + "self_attn.o_proj.bias", "plain", "hidden", when="o_bias"),
        _same("mlp_norm", LAYER + "post_attention_layernorm.weight", "plain", "hidden"),
        TensorRule("gate_up", LAYER + "mlp.gate_up_proj.weight", "linear", (
            Source(LAYER + "mlp.gate_proj.weight", ("ffn", "hidden")),
            Source(LAYER + "mlp.up_proj.weight", ("ffn", "hidden")),
        )),
        TensorRule("gate_up_bias", LAYER + "mlp.gate_up_proj.bias", "plain", (
            Source(LAYER + "mlp.gate_proj.bias", ("ffn",)),
            Source(LAYER + "mlp.up_proj.bias", ("ffn",)),
        ), when="mlp_bias"),
        _same("down", LAYER + "mlp.down_proj.weight", "linear", "hidden", "ffn"),
        _same("down_bias", LAYER + "mlp.down_proj.bias", "plain", "hidden", when="mlp_bias"),
        _same("final_norm", "model.norm.weight", "plain", "hidden"),
        _same("head", "lm_head.weight", "linear", "vocab", "hidden"),
    ),
    biases={"qkv_bias": "attention_bias", "o_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    format_has_biases=False,
    uncounted_names=(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",),
    format_config=(
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "rms_norm_eps",
        "vocab_size", "tie_word_embeddings", "position_embedding_base", "rope_scaling", "context_window_size",
        "prefill_chunk_size", "num_key_value_heads", "head_dim", "tensor_parallel_shards",
        "pipeline_parallel_stages", "max_batch_size", "disaggregation",
    ),
)
