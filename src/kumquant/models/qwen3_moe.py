"""Qwen3-MoE: Qwen3 with a mixture of experts in every layer."""

from __future__ import annotations

from .config import ExpertKeys
from .qwen2_moe import EXPERT_KEYS, EXPERTS, MLP_ROLES
from .qwen3 import QWEN3

QWEN3_MOE = QWEN3.extend(
    "qwen3_moe",
    without=MLP_ROLES,
    add=EXPERTS,
    ties_head=False,
    experts=ExpertKeys("num_experts", "moe_intermediate_size", "norm_topk_prob"),
    aliases={"num_experts": "num_local_experts"},  # Transformers 5 calls it so
    understands=(*EXPERT_KEYS, "num_local_experts"),
    format_config=(*QWEN3.format_config, "moe_intermediate_size", "num_experts_per_tok", "num_experts",
                   "decoder_sparse_step", "norm_topk_prob"),
)
