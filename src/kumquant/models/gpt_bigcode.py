"""GPT-BigCode: GPT-2 with one key/value head for all queries, names unchanged, nothing transposed."""

from __future__ import annotations

from .gpt2 import GPT2, LAYER
from .rules import layer_norm, linear, same

GPT_BIGCODE = GPT2.extend(
    "gpt_bigcode",
    without={rule.role for rule in GPT2.tensors},
    add=(
        same("embed", "transformer.wte.weight", "embedding", "vocab", "hidden"),
        same("positions", "transformer.wpe.weight", "embedding", "positions", "hidden"),
        *layer_norm("attn_norm", LAYER + "ln_1"),
        *linear("qkv", LAYER + "attn.c_attn", "qkv", "hidden"),
        *linear("o", LAYER + "attn.c_proj", "hidden", "q"),
        *layer_norm("mlp_norm", LAYER + "ln_2"),
        *linear("up", LAYER + "mlp.c_fc", "ffn", "hidden"),
        *linear("down", LAYER + "mlp.c_proj", "hidden", "ffn"),
        *layer_norm("final_norm", "transformer.ln_f"),
        same("head", "lm_head.weight", "linear", "vocab", "hidden"),
    ),
    ties_head=False,
    defaults={**GPT2.defaults, "hidden_act": "gelu_pytorch_tanh", "num_key_value_heads": 1},
    refuses={"scale_attn_weights": (None, True), "multi_query": (None, True)},
    prefixes=(("", ""),),
    uncounted_names=(),
    format_config=("n_embd", "n_inner", "n_head", "n_layer", "n_positions", "layer_norm_epsilon", "vocab_size",
                   "context_window_size", "prefill_chunk_size", "tensor_parallel_shards", "max_batch_size"),
)
