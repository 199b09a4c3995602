"""ChatGLM (2 and 3): RMS norms, few key/value heads, ropes on neighboring pairs of half of each head."""

from __future__ import annotations

from typing import Any

from ..errors import UnsupportedError
from .family import Family
from .rules import linear, moved, same

LAYER = "transformer.encoder.layers.{i}."


# The longest model of a rope without a ratio, of those whose name does not tell.
_PLAIN_LENGTH = 8192


def _prepare(source: dict[str, Any], where: str) -> dict[str, Any]:
    """MLC's file never has rope_ratio: beyond a length it does not tell which rope the model has."""
    heads = source.get("num_attention_heads")
    is_shared = source.get("multi_query_attention", False)
    length = source.get("max_position_embeddings")
    if source.get("rope_ratio") is None and "seq_length" not in source and isinstance(length, int) and (
            length > _PLAIN_LENGTH):
        raise UnsupportedError('"rope_ratio" is needed, and the file does not have it', where=where,
                               hint="Put the model's original config.json into the folder.")
    ratio = source.get("rope_ratio") or 1
    theta = 10000.0 * ratio
    return source | {
        "rope_ratio": ratio,
        "num_key_value_heads": source.get("multi_query_group_num") if is_shared else heads,
        "rope_theta": source.get("rope_theta") or theta,
        "qkv_bias": bool(source.get("add_qkv_bias") or source.get("add_bias_linear")),
    }


CHATGLM = Family(
    model_type="chatglm",
    tensors=(
        moved("embed", "transformer.embedding.weight", "transformer.embedding.word_embeddings.weight", "embedding",
              "vocab", "hidden"),
        same("attn_norm", LAYER + "input_layernorm.weight", "plain", "hidden"),
        *linear("qkv", LAYER + "self_attention.query_key_value", "qkv", "hidden", bias="qkv_bias"),
        *linear("o", LAYER + "self_attention.dense", "hidden", "q", bias="bias"),
        same("mlp_norm", LAYER + "post_attention_layernorm.weight", "plain", "hidden"),
        same("gate_up", LAYER + "mlp.dense_h_to_4h.weight", "linear", "ffn2", "hidden"),
        same("gate_up_bias", LAYER + "mlp.dense_h_to_4h.bias", "plain", "ffn2", when="bias"),
        *linear("down", LAYER + "mlp.dense_4h_to_h", "hidden", "ffn", bias="bias"),
        same("final_norm", "transformer.encoder.final_layernorm.weight", "plain", "hidden", when="post_layer_norm"),
        same("head", "transformer.output_layer.weight", "linear", "vocab", "hidden"),
    ),
    aliases={
        "num_hidden_layers": "num_layers", "intermediate_size": "ffn_hidden_size", "head_dim": "kv_channels",
        "rms_norm_eps": "layernorm_epsilon", "max_position_embeddings": "seq_length", "vocab_size": "padded_vocab_size",
    },
    defaults={"partial_rotary_factor": 0.5, "rope_theta": 10000.0, "post_layer_norm": True, "rms_norm_eps": 1e-5},
    prepare=_prepare,
    flags={"qkv_bias": "qkv_bias", "bias": "add_bias_linear", "post_layer_norm": "post_layer_norm"},
    partial_rotary=True,
    refuses={"rmsnorm": (None, True), "apply_residual_connection_post_layernorm": (None, False),
             "original_rope": (None, True), "pre_seq_len": (None, 0), "tie_word_embeddings": (None, False)},
    traits={"rope_interleaved": True},
    ties_head=False,
    format_config=(
        "hidden_size", "num_layers", "kv_channels", "num_attention_heads", "ffn_hidden_size", "layernorm_epsilon",
        "post_layer_norm", "rmsnorm", "add_bias_linear", "add_qkv_bias", "apply_query_key_layer_scaling",
        "multi_query_attention", "multi_query_group_num", "vocab_size", "context_window_size", "prefill_chunk_size",
        "tensor_parallel_shards", "head_dim", "max_batch_size", "rope_ratio",  # the last is ours: MLC has no such key
    ),
)
