"""OLMo: the Llama layout with layer norms that have no weights, and bounded queries, keys and values."""

from __future__ import annotations

from .keys import Keys
from .llama import LLAMA


def _clip(keys: Keys) -> float:
    return keys.number("clip_qkv") if keys.has("clip_qkv") else 0.0


_KEYS = ("vocab_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim",
         "position_embedding_base", "rope_scaling", "intermediate_size", "hidden_act", "num_hidden_layers")
_SIZES = ("context_window_size", "prefill_chunk_size", "tensor_parallel_shards", "pipeline_parallel_stages",
          "max_batch_size")

OLMO = LLAMA.extend(
    "olmo",
    without=("attn_norm", "mlp_norm", "final_norm"),
    flags={"qkv_bias": "attention_bias", "o_bias": "attention_bias"},
    defaults={"rms_norm_eps": 1e-5},  # fixed in the model's code
    understands=("clip_qkv",),
    traits={"norm": "layer", "norm_has_weight": False, "clip_qkv": _clip},
    format_config=(*_KEYS, "tie_word_embeddings", *_SIZES, "clip_qkv"),
)
