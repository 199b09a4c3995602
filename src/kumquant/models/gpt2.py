"""GPT-2: layer norms, learned positions, biases everywhere; matrices stand transposed in the checkpoint.

The cache holds the embedding twice, the second time as the head.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from .family import Family
from .rules import TensorRule, layer_norm, linear, moved

LAYER, SOURCE = "transformer.h.{i}.", "h.{i}."


def own_inner_size(source: dict[str, Any], where: str) -> dict[str, Any]:
    """n_inner may be null or -1: four times the width."""
    width = source.get("n_embd")
    if source.get("n_inner") in (None, -1) and isinstance(width, int):
        return source | {"n_inner": 4 * width}
    return source


def _transposed(role: str, name: str, rows: str, columns: str) -> tuple[TensorRule, TensorRule]:
    weight, bias = linear(role, LAYER + name, rows, columns, SOURCE + name)
    return replace(weight, sources=(replace(weight.sources[0], axes=(columns, rows)),), transposed=True), bias


GPT2 = Family(
    model_type="gpt2",
    tensors=(
        moved("head", "lm_head.weight", "wte.weight", "linear", "vocab", "hidden"),
        moved("embed", "transformer.wte.weight", "wte.weight", "embedding", "vocab", "hidden"),
        moved("positions", "transformer.wpe.weight", "wpe.weight", "embedding", "positions", "hidden"),
        *layer_norm("attn_norm", LAYER + "ln_1", SOURCE + "ln_1"),
        *_transposed("qkv", "attn.c_attn", "qkv", "hidden"),
        *_transposed("o", "attn.c_proj", "hidden", "q"),
        *layer_norm("mlp_norm", LAYER + "ln_2", SOURCE + "ln_2"),
        *_transposed("up", "mlp.c_fc", "ffn", "hidden"),
        *_transposed("down", "mlp.c_proj", "hidden", "ffn"),
        *layer_norm("final_norm", "transformer.ln_f", "ln_f"),
    ),
    aliases={
        "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
        "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
    defaults={"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
    prepare=own_inner_size,
    learned_positions=True,
    refuses={"scale_attn_weights": (None, True), "scale_attn_by_inverse_layer_idx": (None, False),
             "tie_word_embeddings": (True,)},
    traits={"norm": "layer"},
    prefixes=(("", ""), ("", "transformer.")),
    ignored_names=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),
    uncounted_names=(r"(transformer\.)?h\.\d+\.attn\.bias",),
    format_config=(
        "vocab_size", "n_embd", "n_layer", "n_head", "layer_norm_epsilon", "n_inner", "context_window_size",
        "prefill_chunk_size", "scale_attn_by_inverse_layer_idx", "tensor_parallel_shards", "head_dim",
        "max_batch_size",
    ),
)
