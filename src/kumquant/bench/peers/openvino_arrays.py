"""The arrays that scripts/build_openvino.py makes an OpenVINO model of."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .llama_weights import LlamaWeights


def write_arrays(weights: LlamaWeights, folder: Path) -> None:
    """config.json, frequencies.npy, norms, and each matrix as int4 pairs (.codes.npy, low bits first) and float16
    scales (.scales.npy). Raises UnsupportedError, TensorCacheError.
    """
    spec = weights.spec
    for name, role, layer, begin, end in _matrices(weights):
        matrix = weights.matrix(role, layer).rows(begin, end)
        np.save(folder / f"{name}.codes.npy", matrix.codes ^ np.uint8(0x88))  # around 8 to two's complement
        np.save(folder / f"{name}.scales.npy", matrix.scales.astype(np.float16))
    for layer in range(spec.num_layers):
        for role in ("attn_norm", "mlp_norm"):
            np.save(folder / f"{role}.{layer}.npy", weights.norm(role, layer))
    np.save(folder / "final_norm.npy", weights.norm("final_norm"))
    np.save(folder / "frequencies.npy", weights.frequencies)
    (folder / "config.json").write_text(json.dumps({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size,
        "num_hidden_layers": spec.num_layers, "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads, "head_dim": spec.head_dim, "rms_norm_eps": spec.norm_eps,
        "attention_scale": spec.attention_scale, "tie_word_embeddings": not weights.has_head,
        "bos_token_id": 1, "eos_token_id": 2,
    }))


def _matrices(weights: LlamaWeights) -> Iterator[tuple[str, str, int, int, int]]:
    """(name, role, layer, first row, last row) of each: what the cache has fused is taken apart."""
    spec = weights.spec
    yield "embed", "embed", 0, 0, spec.vocab_size
    if weights.has_head:
        yield "head", "head", 0, 0, spec.vocab_size
    for layer in range(spec.num_layers):
        for role, parts in (
            ("qkv", (("q", spec.num_heads), ("k", spec.num_kv_heads), ("v", spec.num_kv_heads))),
            ("gate_up", (("gate", 1), ("up", 1))), ("o", (("o", 1),)), ("down", (("down", 1),)),
        ):
            size = {"qkv": spec.head_dim, "gate_up": spec.intermediate_size}.get(role, spec.hidden_size)
            begin = 0
            for name, count in parts:
                yield f"{name}.{layer}", role, layer, begin, begin + count * size
                begin += count * size
