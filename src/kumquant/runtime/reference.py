"""The whole forward pass in plain NumPy, float32: the twin that the native core is tested against.

It executes a DecoderSpec and nothing else, one operation after another, as Transformers computes it. Nothing
here is fast; order of summation is whatever NumPy does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..models import DecoderSpec, inverse_frequencies

Array = np.ndarray  # always float32


def forward(spec: DecoderSpec, weights: Mapping[str, np.ndarray], token_ids: Sequence[int]) -> Array:
    """Logits of one sequence from position 0.

    weights: cache tensor name ("model.norm.weight") -> float32, matrices (out, in).
    Returns float32 (tokens, vocab_size).
    """
    embedding = weights[spec.tensors["embed"]]
    hidden = embedding[np.asarray(token_ids)].astype(np.float32)
    cos, sin = _rotation(spec, len(token_ids))
    for layer in range(spec.num_layers):
        tensors = {role: weights[name.replace("{i}", str(layer))] for role, name in spec.tensors.items()}
        normed = _rms_norm(hidden, tensors["attn_norm"], spec.norm_eps)
        hidden = hidden + _attention(spec, layer, tensors, normed, cos, sin)
        normed = _rms_norm(hidden, tensors["mlp_norm"], spec.norm_eps)
        hidden = hidden + _mlp(tensors, normed)
    normed = _rms_norm(hidden, weights[spec.tensors["final_norm"]], spec.norm_eps)
    return _linear(normed, weights[spec.tensors.get("head", spec.tensors["embed"])])


def _linear(x: Array, weight: np.ndarray, bias: np.ndarray | None = None) -> Array:
    y = x @ weight.T
    return y if bias is None else y + bias


def _rms_norm(x: Array, weight: np.ndarray, eps: float) -> Array:
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return weight * (x / np.sqrt(mean_square + np.float32(eps)))


def _rotation(spec: DecoderSpec, num_tokens: int) -> tuple[Array, Array]:
    """cos and sin, (tokens, 1, head_dim): every frequency twice, for the two halves of a head."""
    frequencies, attention_factor = inverse_frequencies(spec.rope, num_tokens)
    angles = np.arange(num_tokens, dtype=np.float32)[:, None] * frequencies
    angles = np.concatenate([angles, angles], axis=-1)[:, None, :]
    return np.cos(angles) * np.float32(attention_factor), np.sin(angles) * np.float32(attention_factor)


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    """x: (tokens, heads, head_dim); the first half of a head is paired with the second."""
    first, second = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-second, first], axis=-1) * sin


def _attention(spec: DecoderSpec, layer: int, tensors: Mapping[str, np.ndarray], x: Array, cos: Array,
               sin: Array) -> Array:
    num_tokens = len(x)
    rows = (spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim)
    qkv = _linear(x, tensors["qkv"], tensors.get("qkv_bias"))
    queries, keys, values = (
        part.reshape(num_tokens, -1, spec.head_dim) for part in np.split(qkv, [rows[0], rows[0] + rows[1]],
                                                                         axis=-1)
    )
    if spec.qk_norm:
        queries = _rms_norm(queries, tensors["q_norm"], spec.norm_eps)
        keys = _rms_norm(keys, tensors["k_norm"], spec.norm_eps)
    queries, keys = _rotate(queries, cos, sin), _rotate(keys, cos, sin)
    sharing = spec.num_heads // spec.num_kv_heads
    keys, values = np.repeat(keys, sharing, axis=1), np.repeat(values, sharing, axis=1)
    scores = np.einsum("qhd,khd->hqk", queries, keys) * np.float32(spec.attention_scale)
    scores = np.where(_visible(num_tokens, spec.sliding_window[layer]), scores, np.float32(-np.inf))
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed = np.einsum("hqk,khd->qhd", scores, values).reshape(num_tokens, -1)
    return _linear(mixed, tensors["o"], tensors.get("o_bias"))


def _visible(num_tokens: int, window: int) -> npt.NDArray[np.bool_]:
    """(query, key): a token sees itself and earlier ones, of which the latest ``window`` (0: all)."""
    distance = np.arange(num_tokens)[:, None] - np.arange(num_tokens)[None, :]
    return (distance >= 0) & ((distance < window) | (window == 0))


def _mlp(tensors: Mapping[str, np.ndarray], x: Array) -> Array:
    """SwiGLU. Gate rows stand before up rows."""
    gate, up = np.split(_linear(x, tensors["gate_up"], tensors.get("gate_up_bias")), 2, axis=-1)
    with np.errstate(over="ignore"):  # exp of a large number is infinite, and the quotient is rightly 0
        silu = gate / (1 + np.exp(-gate))
    return _linear(silu * up, tensors["down"], tensors.get("down_bias"))
