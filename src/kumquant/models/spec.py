"""DecoderSpec: a decoder described by data. The native runtime executes it and knows no family names.

Everything here is JSON-able (``to_json``), because a second executor, in the browser, will read it too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding.

    type: "default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional" (Transformers' names).
    theta: base.
    dim: rotated dimensions of each head; the first half is paired with the second ("rotate_half").
    parameters: the other keys of Transformers' rope parameters (factor, …), as found; models/rope.py turns
    them into frequencies.
    """

    type: str
    theta: float
    dim: int
    max_position_embeddings: int
    parameters: dict[str, Any]


@dataclass(frozen=True)
class DecoderSpec:
    """The forward pass of a decoder-only transformer, as data.

    Attention: softmax(q·k * attention_scale) with num_heads query heads sharing num_kv_heads key/value heads.
    sliding_window: per layer, how many latest positions (itself included) a token sees; 0 means all.
    qk_norm: an RMS norm over head_dim on every query and key head before rope.
    tensors: runtime role -> cache tensor name; "{i}" stands for the layer. Roles: embed, final_norm, head;
    attn_norm, qkv, qkv_bias, q_norm, k_norm, o, o_bias, mlp_norm, gate_up, gate_up_bias, down, down_bias.
    Absent roles are absent; without "head" the embedding is the head.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    activation: str
    rope: RopeSpec
    attention_scale: float
    context_length: int
    sliding_window: tuple[int, ...]
    qk_norm: bool
    tensors: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
