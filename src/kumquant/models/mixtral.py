"""Mixtral: Mistral with a mixture of experts in place of the MLP."""

from __future__ import annotations

from .config import ExpertKeys
from .llama import LAYER, LLAMA
from .rules import TensorRule, fused, moved


def experts(gate_up: str, down: str, sources: str, gate: str, up: str, down_source: str) -> tuple[TensorRule, ...]:
    """Gate and up, and down, of all experts stacked. sources: what stands before the three, "{e}" the expert."""
    return (
        fused("experts_gate_up", gate_up, "experts",
              (f"{sources}{gate}.weight", "expert_ffn", "hidden"), (f"{sources}{up}.weight", "expert_ffn", "hidden")),
        moved("experts_down", down, f"{sources}{down_source}.weight", "experts", "hidden", "expert_ffn"),
    )


MIXTRAL = LLAMA.extend(
    "mixtral",
    without=("gate_up", "gate_up_bias", "down", "down_bias"),
    add=(
        moved("router", LAYER + "moe.gate.weight", LAYER + "block_sparse_moe.gate.weight", "router",
              "experts", "hidden"),
        *experts(LAYER + "moe.e1_e3.weight", LAYER + "moe.e2.weight", LAYER + "block_sparse_moe.experts.{e}.",
                 "w1", "w3", "w2"),
    ),
    flags={},
    not_in_format=(),
    experts=ExpertKeys("num_local_experts", "intermediate_size", normalize=True),
    defaults={"num_local_experts": 8, "num_experts_per_tok": 2, "rope_theta": 1e6},
    understands=("num_local_experts", "num_experts_per_tok"),
    window="all layers",
    format_config=(*LLAMA.format_config, "num_local_experts", "num_experts_per_tok"),
)
