"""DecoderSpec: a decoder described by data. The native runtime executes it and knows no family names.

Everything here is JSON-able (``to_json``), because a second executor, in the browser, will read it too.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class RopeSpec:
    """Rotary position embedding.

    type: "default", "linear", "dynamic", "yarn", "longrope", "llama3", … (Transformers' names). theta: base.
    dim: rotated dimensions of each head, the first ones. parameters: the other keys of Transformers' rope
    parameters (factor, …), as found; models/rope.py turns them into frequencies.
    """

    type: str
    theta: float
    dim: int
    max_position_embeddings: int
    parameters: dict[str, Any]


@dataclass(frozen=True)
class ExpertSpec:
    """A mixture of experts in place of the MLP.

    count: experts of a layer. per_token: how many each token visits, the likeliest by softmax over all.
    inner_size: width of one. normalize: the chosen probabilities are made to sum to 1. shared_size: width of
    one more expert that every token visits (0: none), weighed by sigmoid(shared_gate) if that role exists.
    """

    count: int
    per_token: int
    inner_size: int
    normalize: bool
    shared_size: int = 0


@dataclass(frozen=True)
class DecoderSpec:
    """The forward pass of a transformer that reads tokens from left to right (or, not causal, an encoder).

    x = embed_scale * embed[token] (+ positions[position]) (+ token_types[0]), normed if there is an embed_norm.
    Each layer: x += residual_scale * attention(attn_norm(x)); x += residual_scale * mlp(mlp_norm(x)). A norm
    whose role is absent is left out; attn_post_norm and mlp_post_norm work on the sublayer's result before it
    is added. norm_after_residual: x = attn_norm(x + attention(x)) instead (BERT). parallel_block: both sublayers
    read the same x; without a mlp_norm both share attn_norm.
    Logits: final_cap * tanh(logit_scale * head(final_norm(x)) / final_cap), without the cap where it is 0.

    norm: "rms" or "layer". norm_offset: added to every norm weight at load (Nemotron). norm_has_weight: False
    means attn_norm, mlp_norm and final_norm are ones, without tensors (OLMo).
    activation: "silu", "gelu" (erf), "gelu_tanh", "relu", "relu2" (squared). The MLP is gated where the role is
    gate_up (its first half the gate; gate_first False: its second), plain where it is up.
    Attention: softmax(cap(q·k * attention_scale)), num_heads query heads sharing num_kv_heads key/value heads;
    attention_cap as final_cap. sliding_window: per layer, how many latest positions (itself included) a token
    sees; 0 means all. qk_norm: an RMS norm on queries and keys before rope, over each head's head_dim or, with
    qk_norm_over_all, over all heads at once. clip_qkv: bound on |q|, |k|, |v| after the projection; 0 for none.
    rope: None where positions are learned. local_rope: a second one. layer_rope: per layer 0 (rope), 1
    (local_rope) or -1 (none); empty means rope everywhere. rope_interleaved: pairs (2i, 2i+1), not halves.
    tensors: runtime role -> cache tensor name, or several whose rows are stacked; "{i}" stands for the layer.
    Roles: embed, positions, token_types, embed_norm, final_norm, head, head_bias; per layer attn_norm,
    attn_post_norm, mlp_norm, mlp_post_norm, q_norm, k_norm, qkv, o, gate_up or up, down, each norm and matrix
    with "_bias" for its bias; router, experts_gate_up, experts_down (stacked over experts), shared_gate_up,
    shared_down, shared_gate. Absent roles are absent. Without "head" the embedding is the head, unless the model
    is an encoder.
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
    rope: RopeSpec | None
    attention_scale: float
    context_length: int
    sliding_window: tuple[int, ...]
    qk_norm: bool
    tensors: dict[str, str | tuple[str, ...]]
    norm: str = "rms"
    norm_offset: float = 0.0
    norm_has_weight: bool = True
    norm_after_residual: bool = False
    parallel_block: bool = False
    qk_norm_over_all: bool = False
    local_rope: RopeSpec | None = None
    layer_rope: tuple[int, ...] = ()
    rope_interleaved: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    attention_cap: float = 0.0
    final_cap: float = 0.0
    clip_qkv: float = 0.0
    causal: bool = True
    gate_first: bool = True
    experts: ExpertSpec | None = None

    @property
    def is_encoder(self) -> bool:
        """Whether the model gives hidden states instead of logits."""
        return not self.causal

    @property
    def ropes(self) -> tuple[RopeSpec, ...]:
        """The ropes that layer_rope counts."""
        return tuple(rope for rope in (self.rope, self.local_rope) if rope is not None)

    @property
    def rope_of_layer(self) -> tuple[int, ...]:
        """layer_rope, filled in."""
        return self.layer_rope or (0 if self.rope is not None else -1,) * self.num_layers

    def names(self, role: str, layer: int = 0) -> tuple[str, ...]:
        """Cache tensor names behind a role, to be stacked along their rows."""
        names = self.tensors[role]
        return tuple(name.replace("{i}", str(layer)) for name in ((names,) if isinstance(names, str) else names))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
