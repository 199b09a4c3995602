"""Baichuan: the Llama layout, q, k and v already fused in the checkpoint."""

from __future__ import annotations

from ..errors import UnsupportedError
from .keys import Keys
from .llama import LAYER, LLAMA
from .rules import same


def _runs(keys: Keys) -> str:
    """The second generation, told by z_loss_weight, normalizes the rows of its head as it multiplies."""
    if keys.values.get("z_loss_weight") is not None:
        raise UnsupportedError("Baichuan 2 has a normalized head, which is not in the forward pass",
                               where=f"{keys.where}: z_loss_weight", hint="The model converts, but does not run.")
    return "rms"


BAICHUAN = LLAMA.extend(
    "baichuan",
    without=("qkv", "qkv_bias", "o_bias", "gate_up_bias", "down_bias"),
    add=(same("qkv", LAYER + "self_attn.W_pack.weight", "linear", "qkv", "hidden"),),
    flags={},
    not_in_format=(),
    ties_head=False,
    defaults={"rope_theta": 10000.0},  # the model's code has it, no config says it
    traits={"norm": _runs},
    uncounted_names=(),
    format_config=(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "initializer_range",
        "intermediate_size", "rms_norm_eps", "use_cache", "pad_token_id", "bos_token_id", "eos_token_id",
        "tie_word_embeddings", "context_window_size", "prefill_chunk_size", "tensor_parallel_shards",
        "max_batch_size", "head_dim",
    ),
)
