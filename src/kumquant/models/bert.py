"""BERT: an encoder. Learned positions, layer norms after each residual, a plain MLP, no head.

bert-bge is the same model under the name that MLC's tools want for BGE; no config.json says so.
"""

from __future__ import annotations

from .family import Family
from .rules import fused, layer_norm, linear, same

LAYER = "encoder.layer.{i}."
SELF = LAYER + "attention.self."
QKV = (("query", "q"), ("key", "kv"), ("value", "kv"))

BERT = Family(
    model_type="bert",
    aliases={"rms_norm_eps": "layer_norm_eps"},
    defaults={"rms_norm_eps": 1e-12, "hidden_act": "gelu", "type_vocab_size": 2},
    refuses={"position_embedding_type": (None, "absolute"), "is_decoder": (None, False)},
    learned_positions=True,
    tensors=(
        same("embed", "embeddings.word_embeddings.weight", "embedding", "vocab", "hidden"),
        same("positions", "embeddings.position_embeddings.weight", "embedding", "positions", "hidden"),
        same("token_types", "embeddings.token_type_embeddings.weight", "embedding", "token_types", "hidden"),
        *layer_norm("embed_norm", "embeddings.LayerNorm"),
        fused("qkv", SELF + "qkv.weight", "linear", *((f"{SELF}{part}.weight", rows, "hidden") for part, rows in QKV)),
        fused("qkv_bias", SELF + "qkv.bias", "plain", *((f"{SELF}{part}.bias", rows) for part, rows in QKV)),
        *linear("o", LAYER + "attention.output.dense", "hidden", "q"),
        *layer_norm("attn_norm", LAYER + "attention.output.LayerNorm"),
        *linear("up", LAYER + "intermediate.dense", "ffn", "hidden"),
        *linear("down", LAYER + "output.dense", "hidden", "ffn"),
        *layer_norm("mlp_norm", LAYER + "output.LayerNorm"),
    ),
    traits={"norm": "layer", "norm_after_residual": True, "causal": False},
    pooling="cls",
    prefixes=(("", ""), ("", "bert.")),
    # Heads of the training tasks, which no hidden state passes through.
    ignored_names=(r"(bert\.)?pooler\.dense\.(weight|bias)", r"cls\.(predictions|seq_relationship)\..+"),
    format_config=(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
        "layer_norm_eps", "context_window_size", "prefill_chunk_size", "tensor_parallel_shards", "head_dim",
        "max_batch_size",
    ),
)

BERT_BGE = BERT.extend(
    "bert-bge", uncounted_names=(r"pooler\.dense\.(weight|bias)", r"embeddings\.position_ids"),
)
