"""A cache's weights as other runtimes take them: four-bit groups of 32, around eight."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import TensorCacheError, UnsupportedError
from ...models import DecoderSpec, TensorCache, inverse_frequencies

GROUP = 32
_BITS = 4
_PLAIN_LLAMA = {
    "norm": "rms", "norm_offset": 0.0, "norm_has_weight": True, "norm_after_residual": False, "parallel_block": False,
    "qk_norm": False, "local_rope": None, "layer_rope": (), "rope_interleaved": False, "embed_scale": 1.0,
    "residual_scale": 1.0, "logit_scale": 1.0, "attention_cap": 0.0, "final_cap": 0.0, "clip_qkv": 0.0, "causal": True,
    "gate_first": True, "experts": None, "activation": "silu",
}
_ROLES = {"embed", "final_norm", "head", "attn_norm", "mlp_norm", "qkv", "o", "gate_up", "down"}
_FIXED_ROPES = {"default", "linear", "llama3"}  # whose angles depend on nothing but the position


@dataclass(frozen=True)
class PackedMatrix:
    """codes: (rows, width / 2) uint8, two codes 1 to 15 a byte, the first in the low bits; value = (code - 8) * scale.
    scales: (rows, width / 32) float32.
    """

    codes: np.ndarray
    scales: np.ndarray

    def rows(self, begin: int, end: int) -> PackedMatrix:
        return PackedMatrix(self.codes[begin:end], self.scales[begin:end])


class LlamaWeights:
    """The weights of a cache that holds a plain Llama in four-bit groups of 32 along the input axis.

    frequencies: float32 (head_dim / 2,) radians per position. Raises UnsupportedError for any other model.
    """

    def __init__(self, cache: TensorCache) -> None:
        self._cache = cache
        self.spec = cache.spec
        scheme = cache.scheme
        if scheme is None or (scheme.bits, scheme.group_size, scheme.layout) != (_BITS, GROUP, "NK"):
            raise _unsupported("mode", None if scheme is None else scheme.name, "q4f16_1 or q4f32_1")
        _check_plain(self.spec)
        assert self.spec.rope is not None  # _check_plain
        self.frequencies, factor = inverse_frequencies(self.spec.rope, self.spec.context_length)
        if factor != 1.0:
            raise _unsupported("rope attention factor", factor, "1")

    def matrix(self, role: str, layer: int = 0) -> PackedMatrix:
        """A linear, the embedding or the head. Raises TensorCacheError for a code that eight more cannot hold."""
        stem = self._name(role, layer).removesuffix(".weight")
        if f"{stem}.q_weight" not in self._cache:
            raise _unsupported("tensor", f"{stem} without groups", "every matrix quantized")
        codes = np.ascontiguousarray(self._cache[f"{stem}.q_weight"]).view(np.uint8)
        if ((codes & 0xF) == 0xF).any() or (codes >= 0xF0).any():  # MLC writes 0 to 14, around 7
            raise TensorCacheError("a code of 15, which no quantizer of MLC writes", where=f"{stem}.q_weight")
        return PackedMatrix(codes + np.uint8(0x11), np.asarray(self._cache[f"{stem}.q_scale"]).astype(np.float32))

    def norm(self, role: str, layer: int = 0) -> np.ndarray:
        """(hidden,) float32."""
        return np.asarray(self._cache[self._name(role, layer)]).astype(np.float32)

    @property
    def has_head(self) -> bool:
        return "head" in self.spec.tensors

    def _name(self, role: str, layer: int) -> str:
        (name,) = self.spec.names(role, layer)
        return name


def _check_plain(spec: DecoderSpec) -> None:
    for field, plain in _PLAIN_LLAMA.items():
        if getattr(spec, field) != plain:
            raise _unsupported(field, getattr(spec, field), plain)
    if extra := spec.tensors.keys() - _ROLES:
        raise _unsupported("tensors", ", ".join(sorted(extra)), "none but Llama's")
    if spec.rope is None or spec.rope.type not in _FIXED_ROPES or spec.rope.dim != spec.head_dim:
        raise _unsupported("rope", None if spec.rope is None else spec.rope.type, "one of the whole head")
    if any(spec.sliding_window):
        raise _unsupported("sliding_window", spec.sliding_window, "none")
    if spec.hidden_size % GROUP or spec.intermediate_size % GROUP or spec.num_heads * spec.head_dim % GROUP:
        raise _unsupported("widths", (spec.hidden_size, spec.intermediate_size), f"multiples of {GROUP}")


def _unsupported(where: str, found: object, expected: object) -> UnsupportedError:
    return UnsupportedError(
        "only plain Llama models in four-bit groups of 32 are written for this peer", where=where, found=found,
        expected=expected, hint="Give the peer's own folder of the model instead: --compare PEER=FOLDER.",
    )
