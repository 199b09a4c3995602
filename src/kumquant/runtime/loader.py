"""Brings weights into the native core: one resident copy, in panels.

Mapped source pages go back to the system as they are consumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import TensorCacheError, UnsupportedError
from ..models import DecoderSpec

MATRIX_ROLES = ("qkv", "o", "gate_up", "down")
VECTOR_ROLES = (
    "attn_norm",
    "mlp_norm",
    "q_norm",
    "k_norm",
    "qkv_bias",
    "o_bias",
    "gate_up_bias",
    "down_bias",
)
GROUP = 32


def role_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Logical shape of every role: (out, in) for matrices, (n,) for vectors."""
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size
    return {
        "embed": (spec.vocab_size, hidden),
        "head": (spec.vocab_size, hidden),
        "final_norm": (hidden,),
        "attn_norm": (hidden,),
        "mlp_norm": (hidden,),
        "q_norm": (spec.head_dim,),
        "k_norm": (spec.head_dim,),
        "qkv": (q + 2 * kv, hidden),
        "o": (hidden, q),
        "gate_up": (2 * inner, hidden),
        "down": (hidden, inner),
        "qkv_bias": (q + 2 * kv,),
        "o_bias": (hidden,),
        "gate_up_bias": (2 * inner,),
        "down_bias": (hidden,),
    }


class Loader:
    """Copies the tensors of one cache into one native model.

    tensors: record name -> array as stored. release: the arrays are views of a read-only file mapping whose
    pages may be dropped once packed.
    """

    def __init__(
        self, native: Any, spec: DecoderSpec, tensors: Mapping[str, np.ndarray], release: bool
    ) -> None:
        self.native, self.spec, self.tensors, self.release = native, spec, tensors, release
        self.shapes = role_shapes(spec)

    def load_all(self) -> None:
        spec = self.spec
        tied = "head" not in spec.tensors
        # The largest first: its mapped pages are gone before the rest becomes resident.
        self._matrix("head", 0, spec.tensors["embed" if tied else "head"])
        if tied:
            self.native.tie_embedding()
        else:
            self._embedding(spec.tensors["embed"])
        self._vector("final_norm", 0, spec.tensors["final_norm"])
        for layer in range(spec.num_layers):
            for role in MATRIX_ROLES + VECTOR_ROLES:
                if role not in spec.tensors:
                    continue
                name = spec.tensors[role].format(i=layer)
                (self._matrix if role in MATRIX_ROLES else self._vector)(role, layer, name)
        self.native.check()

    def _matrix(self, role: str, layer: int, name: str) -> None:
        rows, inputs = self.shapes[role]
        if self._is_quantized(name):
            codes, scales = self._groups(name, rows, inputs)
            self.native.set_quantized(
                role, layer, as_bytes(codes), as_bytes(scales), scales.dtype.name, rows, inputs, self.release
            )
        else:
            values = self._plain(name, (rows, inputs))
            self.native.set_plain(
                role, layer, as_bytes(values), values.dtype.name, rows, inputs, self.release
            )

    def _embedding(self, name: str) -> None:
        rows, inputs = self.shapes["embed"]
        if self._is_quantized(name):
            codes, scales = self._groups(name, rows, inputs)
            self.native.set_embedding_quantized(
                as_bytes(codes), as_bytes(scales), scales.dtype.name, rows, inputs
            )
        else:
            values = self._plain(name, (rows, inputs))
            self.native.set_embedding_plain(as_bytes(values), values.dtype.name, rows, inputs)

    def _vector(self, role: str, layer: int, name: str) -> None:
        values = self._plain(name, self.shapes[role])
        self.native.set_vector(role, layer, np.ascontiguousarray(values, dtype=np.float32))

    def _is_quantized(self, name: str) -> bool:
        return name not in self.tensors and name.removesuffix(".weight") + ".q_weight" in self.tensors

    def _groups(self, name: str, rows: int, inputs: int) -> tuple[np.ndarray, np.ndarray]:
        stem = name.removesuffix(".weight")
        codes, scales = self._record(stem + ".q_weight"), self._record(stem + ".q_scale")
        groups = -(-inputs // GROUP)
        for record, array, shape in (
            (".q_weight", codes, (rows, groups * 4)),
            (".q_scale", scales, (rows, groups)),
        ):
            if array.shape != shape:
                raise UnsupportedError(
                    "does not have the shape of a 4-bit tensor in groups of 32",
                    where=stem + record,
                    found=array.shape,
                    expected=shape,
                    hint="Only 4-bit groups of 32 and plain modes run; is the config this cache's own?",
                )
        if scales.dtype.name not in ("float16", "bfloat16", "float32"):
            raise UnsupportedError(
                "scales of this dtype cannot be run", where=stem + ".q_scale", found=scales.dtype.name
            )
        return codes, scales

    def _plain(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        values = self._record(name)
        if values.shape != shape:
            raise TensorCacheError(
                "the shape contradicts the model's config", where=name, found=values.shape, expected=shape
            )
        if values.dtype.name not in ("float16", "bfloat16", "float32"):
            raise UnsupportedError("weights of this dtype cannot be run", where=name, found=values.dtype.name)
        return values

    def _record(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise TensorCacheError(
                "the cache lacks a tensor that its model needs",
                where=name,
                hint="The cache is incomplete or its config belongs to another model.",
            )
        return self.tensors[name]


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The array's bytes, (nbytes,) uint8, without copying where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
