"""MiniCPM: the Llama layout with scaled embeddings, sublayers and logits; some models have experts."""

from __future__ import annotations

from dataclasses import replace

from .config import ExpertKeys
from .keys import Keys
from .llama import LAYER, LLAMA
from .mixtral import experts
from .rules import same


def _residual_scale(keys: Keys) -> float:
    return keys.number("scale_depth", 1.0) / keys.count("num_hidden_layers") ** 0.5


def _logit_scale(keys: Keys) -> float:
    return keys.number("dim_model_base", 1.0) / keys.count("hidden_size")


_MLP = ("gate_up", "down")
_EXPERTS = (
    same("router", LAYER + "mlp.gate.weight", "router", "experts", "hidden"),
    *experts(LAYER + "mlp.e1_e3.weight", LAYER + "mlp.e2.weight", LAYER + "mlp.experts.{e}.", "w1", "w3", "w2"),
)

MINICPM = LLAMA.extend(
    "minicpm",
    rename={"qkv_proj": "wqkv_pack"},
    without=("gate_up_bias", "down_bias", "qkv_bias", "o_bias"),
    flags={},
    refuses={"attention_bias": (None, False)},
    not_in_format=(),
    experts=ExpertKeys("num_experts", "intermediate_size", normalize=True),
    understands=("scale_emb", "scale_depth", "dim_model_base", "num_experts", "num_experts_per_tok"),
    traits={"embed_scale": lambda keys: keys.number("scale_emb", 1.0), "residual_scale": _residual_scale,
            "logit_scale": _logit_scale},
    uncounted_names=(),
    format_config=(
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
        "rms_norm_eps", "intermediate_size", "scale_emb", "scale_depth", "dim_model_base", "use_cache", "bos_token_id",
        "eos_token_id", "tie_word_embeddings", "rope_theta", "context_window_size", "prefill_chunk_size",
        "tensor_parallel_shards", "head_dim", "max_batch_size", "num_experts_per_tok", "num_experts",
    ),
)
MINICPM = replace(MINICPM, tensors=(
    *(replace(rule, when="not experts") if rule.role in _MLP else rule for rule in MINICPM.tensors),
    *(replace(rule, when="experts") for rule in _EXPERTS),
))
