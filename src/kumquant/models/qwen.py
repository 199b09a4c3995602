"""Qwen, the first: the Llama layout in GPT-2's names, with biases on q, k and v. w1 is the MLP's up, w2 its gate."""

from __future__ import annotations

from typing import Any

from .family import Family
from .rules import fused, linear, same

LAYER = "transformer.h.{i}."


def _prepare(source: dict[str, Any], where: str) -> dict[str, Any]:
    """intermediate_size counts both halves of the gated MLP."""
    both = source.get("intermediate_size")
    return source | {"intermediate_size": both // 2 if isinstance(both, int) else both}


QWEN = Family(
    model_type="qwen",
    tensors=(
        same("embed", "transformer.wte.weight", "embedding", "vocab", "hidden"),
        same("attn_norm", LAYER + "ln_1.weight", "plain", "hidden"),
        *linear("qkv", LAYER + "attn.c_attn", "qkv", "hidden"),
        same("o", LAYER + "attn.c_proj.weight", "linear", "hidden", "q"),
        same("mlp_norm", LAYER + "ln_2.weight", "plain", "hidden"),
        fused("gate_up", LAYER + "mlp.gate_up_proj.weight", "linear",
              (LAYER + "mlp.w1.weight", "ffn", "hidden"), (LAYER + "mlp.w2.weight", "ffn", "hidden")),
        same("down", LAYER + "mlp.c_proj.weight", "linear", "hidden", "ffn"),
        same("final_norm", "transformer.ln_f.weight", "plain", "hidden"),
        same("head", "lm_head.weight", "linear", "vocab", "hidden"),
    ),
    aliases={"rms_norm_eps": "layer_norm_epsilon", "head_dim": "kv_channels", "rope_theta": "rotary_emb_base",
             "max_position_embeddings": "seq_length"},
    defaults={"rms_norm_eps": 1e-6},
    prepare=_prepare,
    # use_dynamic_ntk and use_logn_attn change nothing up to seq_length, which is the context length here.
    refuses={"rotary_pct": (None, 1), "scale_attn_weights": (None, True), "no_bias": (None, True),
             "tie_word_embeddings": (None, False)},
    traits={"gate_first": False},
    ties_head=False,
    format_config=(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_epsilon",
        "scale_attn_weights", "kv_channels", "rotary_emb_base", "intermediate_size", "context_window_size",
        "prefill_chunk_size", "tensor_parallel_shards", "max_batch_size", "head_dim",
    ),
)
