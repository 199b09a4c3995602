"""A cache as a model folder of ONNX Runtime GenAI: what its own builder makes with ``-p int4 -e cpu``.

Operations of the domain "com.microsoft" are described in ONNX Runtime's docs/ContribOperators.md.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ...models import TensorCache
from .llama_weights import GROUP, LlamaWeights, PackedMatrix
from .onnx_file import FLOAT, INT64, OnnxWriter

MICROSOFT = "com.microsoft"
_INT8_ACTIVATIONS = 4  # MatMulNBits' accuracy_level
_MAX_ROTARY_POSITIONS = 8192 + 1024  # as long as a comparison's contexts get


def write_onnx_folder(cache: TensorCache, folder: Path) -> None:
    """model.onnx, model.onnx.data and genai_config.json. Raises UnsupportedError, TensorCacheError."""
    weights = LlamaWeights(cache)
    with OnnxWriter(folder / "model.onnx") as onnx:
        _Graph(onnx, weights).write()
    (folder / "genai_config.json").write_text(json.dumps(_genai_config(weights), indent=2))


class _Graph:
    def __init__(self, onnx: OnnxWriter, weights: LlamaWeights) -> None:
        self._onnx, self._weights, self._spec = onnx, weights, weights.spec

    def write(self) -> None:
        onnx, spec = self._onnx, self._spec
        ids = onnx.input("input_ids", INT64, ("batch", "length"))
        self._lengths(onnx.input("attention_mask", INT64, ("batch", "total")))
        self._rotary()
        head = embed = self._weights.matrix("embed")
        stored = (onnx.store(embed.codes), onnx.store(embed.scales))
        data = onnx.constant("embed.codes", embed.codes, stored[0])
        scales = onnx.constant("embed.scales", embed.scales, stored[1])
        x = onnx.node("GatherBlockQuantized", (data, ids, scales), ("embedded",), MICROSOFT, bits=4, block_size=GROUP,
                      gather_axis=0, quantize_axis=1)
        normed = onnx.node("SimplifiedLayerNormalization", (x, self._norm("attn_norm", 0)), ("normed.0",), axis=-1,
                           epsilon=float(spec.norm_eps), stash_type=1)
        for layer in range(spec.num_layers):
            mixed = self._attention(normed, layer)
            x, normed = self._skip_norm(x, mixed, "mlp_norm", layer)
            mixed = self._mlp(normed, layer)
            is_last = layer + 1 == spec.num_layers
            x, normed = self._skip_norm(x, mixed, *(("final_norm", 0) if is_last else ("attn_norm", layer + 1)))
        if self._weights.has_head:
            head = self._weights.matrix("head")
            stored = (onnx.store(head.codes), onnx.store(head.scales))
        self._matmul(normed, "logits", head, stored)
        onnx.output("logits", FLOAT, ("batch", "length", len(head.codes)))

    def _lengths(self, mask: str) -> None:
        """The last position of each sequence, and the length of the longest, as int32."""
        onnx = self._onnx
        one = onnx.small_constant("one", np.array([1], np.int64))
        counted = onnx.node("ReduceSum", (mask, one), ("mask.sum",), keepdims=0)
        last = onnx.node("Sub", (counted, one), ("mask.last",))
        onnx.node("Cast", (last,), ("last",), to=6)
        shape = onnx.node("Shape", (mask,), ("mask.shape",))
        at = onnx.small_constant("at_total", np.array(1, np.int64))
        onnx.node("Cast", (onnx.node("Gather", (shape, at), ("mask.total",), axis=0),), ("total",), to=6)

    def _rotary(self) -> None:
        positions = np.arange(_MAX_ROTARY_POSITIONS, dtype=np.float32)
        angles = positions[:, None] * self._weights.frequencies[None]
        self._onnx.constant("cos", np.cos(angles))
        self._onnx.constant("sin", np.sin(angles))

    def _attention(self, normed: str, layer: int) -> str:
        onnx, spec = self._onnx, self._spec
        qkv = self._linear(normed, f"qkv.{layer}", self._weights.matrix("qkv", layer))
        cache = ("batch", spec.num_kv_heads, "past", spec.head_dim)
        grown = ("batch", spec.num_kv_heads, "total", spec.head_dim)
        past = [onnx.input(f"past_key_values.{layer}.{kind}", FLOAT, cache) for kind in ("key", "value")]
        present = [onnx.output(f"present.{layer}.{kind}", FLOAT, grown) for kind in ("key", "value")]
        mixed = onnx.node(
            "GroupQueryAttention", (qkv, "", "", *past, "last", "total", "cos", "sin"), (f"mixed.{layer}", *present),
            MICROSOFT, num_heads=spec.num_heads, kv_num_heads=spec.num_kv_heads, scale=float(spec.attention_scale),
            do_rotary=1, rotary_interleaved=0, local_window_size=-1)
        return self._linear(mixed, f"o.{layer}", self._weights.matrix("o", layer))

    def _mlp(self, normed: str, layer: int) -> str:
        onnx, both = self._onnx, self._weights.matrix("gate_up", layer)
        width = self._spec.intermediate_size
        gate = self._linear(normed, f"gate.{layer}", both.rows(0, width))
        up = self._linear(normed, f"up.{layer}", both.rows(width, 2 * width))
        sigmoid = onnx.node("Sigmoid", (gate,), (f"sigmoid.{layer}",))
        silu = onnx.node("Mul", (gate, sigmoid), (f"silu.{layer}",))
        inner = onnx.node("Mul", (silu, up), (f"inner.{layer}",))
        return self._linear(inner, f"down.{layer}", self._weights.matrix("down", layer))

    def _skip_norm(self, x: str, added: str, role: str, layer: int) -> tuple[str, str]:
        """The residual stream after adding, and normed."""
        outputs = (f"{added}.normed", "", "", f"{added}.sum")
        self._onnx.node("SkipSimplifiedLayerNormalization", (x, added, self._norm(role, layer)), outputs, MICROSOFT,
                        epsilon=float(self._spec.norm_eps))
        return outputs[3], outputs[0]

    def _norm(self, role: str, layer: int) -> str:
        return self._onnx.constant(f"{role}.{layer}", self._weights.norm(role, layer))

    def _linear(self, x: str, name: str, matrix: PackedMatrix) -> str:
        return self._matmul(x, name, matrix, (self._onnx.store(matrix.codes), self._onnx.store(matrix.scales)))

    def _matmul(self, x: str, name: str, matrix: PackedMatrix, stored: tuple[tuple[int, int], tuple[int, int]]) -> str:
        rows, groups = matrix.scales.shape
        codes = self._onnx.constant(f"{name}.codes", matrix.codes.reshape(rows, groups, GROUP // 2), stored[0])
        scales = self._onnx.constant(f"{name}.scales", matrix.scales.reshape(-1), stored[1])
        return self._onnx.node("MatMulNBits", (x, codes, scales), (name,), MICROSOFT, K=groups * GROUP, N=rows, bits=4,
                               block_size=GROUP, accuracy_level=_INT8_ACTIVATIONS)


def _genai_config(weights: LlamaWeights) -> dict[str, object]:
    spec = weights.spec
    return {
        "model": {
            "type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "vocab_size": spec.vocab_size,
            "context_length": _MAX_ROTARY_POSITIONS,
            "decoder": {
                "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
                "filename": "model.onnx", "head_size": spec.head_dim, "hidden_size": spec.hidden_size,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                           "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                            "present_value_names": "present.%d.value"},
                "num_attention_heads": spec.num_heads, "num_hidden_layers": spec.num_layers,
                "num_key_value_heads": spec.num_kv_heads,
            },
        },
        "search": {"do_sample": False, "max_length": _MAX_ROTARY_POSITIONS, "min_length": 0, "num_beams": 1,
                   "past_present_share_buffer": True},
    }
