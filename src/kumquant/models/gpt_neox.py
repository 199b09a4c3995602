"""GPT-NeoX: attention and MLP side by side, each behind its own layer norm; the rope on part of each head.

q, k and v come head by head and leave as all q, all k, all v. The MLP's biases are float32 in every mode.
"""

from __future__ import annotations

from dataclasses import replace

from .family import Family
from .rules import layer_norm, linear, same

LAYER = "gpt_neox.layers.{i}."
_QKV = tuple(replace(rule, row_order="q, k, v of each head")
             for rule in linear("qkv", LAYER + "attention.query_key_value", "qkv", "hidden", bias="attention_bias"))
_MLP = tuple(replace(rule, dtype="float32") if rule.role.endswith("bias") else rule for rule in (
    *linear("up", LAYER + "mlp.dense_h_to_4h", "ffn", "hidden"),
    *linear("down", LAYER + "mlp.dense_4h_to_h", "hidden", "ffn"),
))

GPT_NEOX = Family(
    model_type="gpt_neox",
    tensors=(
        same("embed", "gpt_neox.embed_in.weight", "embedding", "vocab", "hidden"),
        *layer_norm("attn_norm", LAYER + "input_layernorm"),
        *layer_norm("mlp_norm", LAYER + "post_attention_layernorm"),
        *_QKV,
        *linear("o", LAYER + "attention.dense", "hidden", "q", bias="attention_bias"),
        *_MLP,
        *layer_norm("final_norm", "gpt_neox.final_layer_norm"),
        same("head", "embed_out.weight", "linear", "vocab", "hidden"),
    ),
    aliases={"rms_norm_eps": "layer_norm_eps", "partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"},
    defaults={"hidden_act": "gelu", "rms_norm_eps": 1e-5, "partial_rotary_factor": 0.25, "attention_bias": True,
              "use_parallel_residual": True},
    flags={"attention_bias": "attention_bias"},
    partial_rotary=True,
    understands=("use_parallel_residual",),
    traits={"norm": "layer", "parallel_block": lambda keys: keys.flag("use_parallel_residual", True)},
    ties_head=False,
    ignored_names=(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias)",),
    uncounted_names=(r"gpt_neox\.layers\.\d+\.attention\.(rotary_emb\.inv_freq|masked_bias|bias)",),
    format_config=(
        "use_parallel_residual", "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers",
        "layer_norm_eps", "vocab_size", "rotary_pct", "position_embedding_base", "context_window_size", "head_dim",
        "prefill_chunk_size", "tensor_parallel_shards", "ffn_out_dtype", "max_batch_size",
    ),
)
