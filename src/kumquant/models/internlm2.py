"""InternLM2: the Llama layout in names of its own; q, k, v come fused, for each kv head its queries, key and value."""

from __future__ import annotations

from dataclasses import replace

from ..errors import UnsupportedError
from .family import Family
from .keys import Keys
from .llama import LAYER
from .rules import fused, linear, same

_QKV, _QKV_BIAS = linear("qkv", LAYER + "attention.wqkv", "qkv", "hidden", bias="bias")


def _runs(keys: Keys) -> str:
    """MLC reorders the rows of wqkv and not its bias, which no published model has; such a cache is not run."""
    if keys.flag("bias", False):
        raise UnsupportedError("the format stores this bias in an order that does not fit its matrix",
                               where=f"{keys.where}: bias", found="true", hint="The model converts, but does not run.")
    return "rms"


INTERNLM2 = Family(
    model_type="internlm2",
    tensors=(
        same("embed", "model.tok_embeddings.weight", "embedding", "vocab", "hidden"),
        same("attn_norm", LAYER + "attention_norm.weight", "plain", "hidden"),
        replace(_QKV, row_order="q, k, v of each kv head"), _QKV_BIAS,
        *linear("o", LAYER + "attention.wo", "hidden", "q", bias="bias"),
        same("mlp_norm", LAYER + "ffn_norm.weight", "plain", "hidden"),
        fused("gate_up", LAYER + "feed_forward.gate_up_proj.weight", "linear",
              (LAYER + "feed_forward.w1.weight", "ffn", "hidden"), (LAYER + "feed_forward.w3.weight", "ffn", "hidden")),
        same("down", LAYER + "feed_forward.w2.weight", "linear", "hidden", "ffn"),
        same("final_norm", "model.norm.weight", "plain", "hidden"),
        same("head", "output.weight", "linear", "vocab", "hidden"),
    ),
    flags={"bias": "bias"},
    traits={"norm": _runs},
    ties_head=False,
    format_config=(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps",
        "intermediate_size", "bias", "use_cache", "rope_theta", "pad_token_id", "bos_token_id", "eos_token_id",
        "context_window_size", "prefill_chunk_size", "tensor_parallel_shards", "max_batch_size", "head_dim",
    ),
)
