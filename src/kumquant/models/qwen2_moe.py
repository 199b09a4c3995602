"""Qwen2-MoE: Qwen2 with a mixture of experts and one shared expert that every token visits."""

from __future__ import annotations

from .config import ExpertKeys
from .llama import LAYER
from .mixtral import experts
from .qwen2 import QWEN2
from .rules import fused, same

EXPERTS = (
    same("router", LAYER + "mlp.gate.weight", "router", "experts", "hidden"),
    *experts(LAYER + "mlp.moe_gate_up_proj.weight", LAYER + "mlp.moe_down_proj.weight", LAYER + "mlp.experts.{e}.",
             "gate_proj", "up_proj", "down_proj"),
)
SHARED_EXPERT = (
    same("shared_gate", LAYER + "mlp.shared_expert_gate.weight", "router", "one", "hidden"),
    fused("shared_gate_up", LAYER + "mlp.shared_expert.gate_up_proj.weight", "linear",
          (LAYER + "mlp.shared_expert.gate_proj.weight", "shared_ffn", "hidden"),
          (LAYER + "mlp.shared_expert.up_proj.weight", "shared_ffn", "hidden")),
    same("shared_down", LAYER + "mlp.shared_expert.down_proj.weight", "linear", "hidden", "shared_ffn"),
)
MLP_ROLES = ("gate_up", "gate_up_bias", "down", "down_bias")
EXPERT_KEYS = ("moe_intermediate_size", "num_experts_per_tok", "num_experts")

QWEN2_MOE = QWEN2.extend(
    "qwen2_moe",
    without=MLP_ROLES,
    add=(*EXPERTS, *SHARED_EXPERT),
    ties_head=False,
    experts=ExpertKeys("num_experts", "moe_intermediate_size", "norm_topk_prob", "shared_expert_intermediate_size"),
    understands=EXPERT_KEYS,
    refuses={"qkv_bias": (None, True)},
    uncounted_names=(),
    format_config=(*QWEN2.format_config, "moe_intermediate_size", "shared_expert_intermediate_size",
                   "num_experts_per_tok", "num_experts", "decoder_sparse_step", "norm_topk_prob"),
)
