"""The demo model in PyTorch: a Llama decoder, exact 4-bit fake quantization, and batched greedy decoding.

Only `train.py` uses this file. Names and shapes are those of Hugging Face's `LlamaForCausalLM`, so that
`state_dict()` is the checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor] | None]  # keys and values so far, (batch, kv heads, length, head_dim), by layer

GROUP_SIZE = 32  # weights that share a scale in q4f16_1, along the input axis
MAX_CODE = 7  # symmetric 4-bit codes: -7..7, stored as 0..14


@dataclass(frozen=True)
class Config:
    """The keys of `config.json` that decide the shape of the model."""

    vocab_size: int = 1536
    hidden_size: int = 256
    intermediate_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 32
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


def quantize_q4f16_1(weight: Tensor) -> Tensor:
    """The values that a reader of MLC's q4f16_1 sees for this weight, as float32.

    weight: (out_features, in_features), in_features a multiple of 32. It is first rounded to bfloat16 (the
    checkpoint's dtype), then to float16, and everything after that is float16 arithmetic with one rounding
    per operation: scale = max|x| / 7, code = clamp(round_half_even(x / scale + 7), 0, 14).
    """
    half = weight.detach().to(torch.bfloat16).to(torch.float16)
    groups = half.unflatten(-1, (-1, GROUP_SIZE))
    scale = groups.abs().amax(dim=-1, keepdim=True) / MAX_CODE
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    codes = ((groups / safe) + MAX_CODE).round().clamp(0, 2 * MAX_CODE) - MAX_CODE
    return (codes.float() * scale.float()).flatten(-2)


def straight_through(weight: Tensor) -> Tensor:
    """Quantized values forward, identity backward: what quantization-aware training multiplies by."""
    return weight + (quantize_q4f16_1(weight) - weight).detach()


class Attention(nn.Module):
    """Causal grouped-query attention within one document of a packed row."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        width, kv_width = (
            config.num_attention_heads * config.head_dim,
            config.num_key_value_heads * config.head_dim,
        )
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        batch, length, _ = x.shape
        head_dim = self.config.head_dim
        q = rotate(self.q_proj(x).view(batch, length, -1, head_dim), cos, sin).transpose(1, 2)
        k = rotate(self.k_proj(x).view(batch, length, -1, head_dim), cos, sin).transpose(1, 2)
        v = self.v_proj(x).view(batch, length, -1, head_dim).transpose(1, 2)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        now = (k, v)
        repeat = self.config.num_attention_heads // self.config.num_key_value_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        scores = (q @ k.transpose(-1, -2)) * head_dim**-0.5 + mask
        out = scores.softmax(dim=-1).to(v.dtype) @ v
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1)), now


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """One pre-norm decoder layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        attended, now = self.self_attn(self.input_layernorm(x), cos, sin, mask, past)
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x)), now


class Decoder(nn.Module):
    """Embedding, layers, final norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Llama(nn.Module):
    """`LlamaForCausalLM` with a tied head."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                fan_in = parameter.shape[1]
                deep = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.05 if "embed" in name else fan_in**-0.5 * (0.3 if deep else 1.0) * 0.6
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache | None = None) -> Tensor:
        """Final hidden states (batch, length, hidden_size).

        tokens, positions: (batch, length) int64. mask: broadcastable to (batch, heads, length, past + length),
        added to the scores. cache: one entry a layer, None before the first call; extended in place.
        """
        inverse = 1.0 / self.config.rope_theta ** (torch.arange(0, self.config.head_dim, 2) / self.config.head_dim)
        angles = (positions[..., None].float() * inverse)[:, :, None, :]  # one axis for heads
        cos, sin = angles.cos(), angles.sin()
        x = self.model.embed_tokens(tokens)
        for index, layer in enumerate(self.model.layers):
            x, now = layer(x, cos, sin, mask, cache[index] if cache is not None else None)
            if cache is not None:
                cache[index] = now
        return self.model.norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits for hidden states of any leading shape."""
        return F.linear(hidden, self.model.embed_tokens.weight)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding in Llama's layout: the two halves of a head are the real and imaginary parts.

    x: (batch, length, heads, head_dim); cos, sin: (batch, length, 1, head_dim / 2).
    """
    real, imaginary = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((real * cos - imaginary * sin, imaginary * cos + real * sin), dim=-1)


def document_mask(documents: Tensor) -> Tensor:
    """Additive mask (batch, 1, length, length): a token sees earlier tokens of its own document only.

    documents: (batch, length), the number of the document that each token of a packed row belongs to.
    """
    length = documents.shape[1]
    visible = documents[:, :, None] == documents[:, None, :]
    visible = visible & torch.ones(length, length, dtype=torch.bool).tril()
    return torch.zeros(visible.shape).masked_fill(~visible, -1e4)[:, None]
