"""OLMo 2: norms behind the sublayers instead of before them, and over all query and key heads at once."""

from __future__ import annotations

from .llama import LAYER, LLAMA
from .olmo import OLMO
from .rules import same

OLMO2 = LLAMA.extend(
    "olmo2",
    without=("attn_norm", "mlp_norm"),
    add=(
        same("attn_post_norm", LAYER + "post_attention_layernorm.weight", "plain", "hidden"),
        same("mlp_post_norm", LAYER + "post_feedforward_layernorm.weight", "plain", "hidden"),
        same("q_norm", LAYER + "self_attn.q_norm.weight", "plain", "q"),
        same("k_norm", LAYER + "self_attn.k_norm.weight", "plain", "kv"),
    ),
    flags={"qkv_bias": "attention_bias", "o_bias": "attention_bias"},
    traits={"qk_norm_over_all": True},
    format_config=(*OLMO.format_config[:-1], "rms_norm_eps"),
)
