"""Cohere (Command R): attention and MLP side by side behind one norm, ropes on neighboring pairs, scaled logits."""

from __future__ import annotations

from .llama import LAYER, LLAMA
from .rules import moved, same

COHERE = LLAMA.extend(
    "cohere",
    without=("head", "mlp_norm", "o", "o_bias", "gate_up", "gate_up_bias", "down_bias"),
    add=(
        moved("o", LAYER + "self_attn.out_proj.weight", LAYER + "self_attn.o_proj.weight", "linear", "hidden", "q"),
        same("gate_up", LAYER + "mlp.gate_proj.weight", "linear", "ffn", "hidden"),
        same("gate_up", LAYER + "mlp.up_proj.weight", "linear", "ffn", "hidden"),
    ),
    aliases={"rms_norm_eps": "layer_norm_eps"},
    defaults={"rms_norm_eps": 1e-5, "tie_word_embeddings": True, "rope_theta": 500000.0},
    flags={},
    refuses={"attention_bias": (None, False)},
    understands=("logit_scale",),
    traits={"norm": "layer", "parallel_block": True, "rope_interleaved": True,
            "logit_scale": lambda keys: keys.number("logit_scale", 0.0625)},
    uncounted_names=(),
    not_in_chat_config=("logit_scale",),
    format_config=(
        "hidden_size", "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "layer_norm_eps", "position_embedding_base", "context_window_size", "prefill_chunk_size",
        "head_dim", "tensor_parallel_shards", "max_batch_size", "logit_scale",  # the last is ours: MLC has no such key
    ),
)
