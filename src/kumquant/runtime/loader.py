"""Brings weights into the native core: one resident copy, in panels.

Mapped source pages go back to the system as they are consumed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import TensorCacheError, UnsupportedError
from ..models import DecoderSpec
from ..schemes import SCHEMES, Scheme
from ..tensor_cache import StoredTensors

ENDS = ("head", "embed", "positions", "token_types")
MATRICES = ("qkv", "o", "gate_up", "up", "down", "router", "shared_gate_up", "shared_down", "shared_gate")
EXPERTS = ("experts_gate_up", "experts_down")
NORMS = ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "q_norm", "k_norm")
BIASES = (
    "attn_norm_bias", "attn_post_norm_bias", "mlp_norm_bias", "mlp_post_norm_bias",
    "qkv_bias", "o_bias", "gate_up_bias", "up_bias", "down_bias",
)  # fmt: skip
STEP_VECTORS = ("final_norm", "final_norm_bias", "embed_norm", "embed_norm_bias", "head_bias")
FLOATS = ("float16", "bfloat16", "float32")
LAYOUTS = {"NK": 0, "KN": 1, "AWQ": 2}
DEFAULT_SCHEME = SCHEMES["q4f16_1"]


def role_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Logical shape of every role: (out, in) for matrices, (experts, out, in), (n,) for vectors."""
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    hidden, inner = spec.hidden_size, spec.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "embed": (spec.vocab_size, hidden), "head": (spec.vocab_size, hidden), "head_bias": (spec.vocab_size,),
        "positions": (spec.context_length, hidden), "token_types": (2, hidden),
        "qkv": (q + 2 * kv, hidden), "o": (hidden, q), "qkv_bias": (q + 2 * kv,), "o_bias": (hidden,),
        "gate_up": (2 * inner, hidden), "up": (inner, hidden), "down": (hidden, inner),
        "gate_up_bias": (2 * inner,), "up_bias": (inner,), "down_bias": (hidden,),
        "q_norm": (q if spec.qk_norm_over_all else spec.head_dim,),
        "k_norm": (kv if spec.qk_norm_over_all else spec.head_dim,),
    }  # fmt: skip
    for norm in ("attn_norm", "attn_post_norm", "mlp_norm", "mlp_post_norm", "final_norm", "embed_norm"):
        shapes[norm] = shapes[f"{norm}_bias"] = (hidden,)
    if spec.experts is not None:
        count, width, shared = spec.experts.count, spec.experts.inner_size, spec.experts.shared_size
        shapes |= {
            "router": (count, hidden), "shared_gate": (1, hidden),
            "experts_gate_up": (count, 2 * width, hidden), "experts_down": (count, hidden, width),
            "shared_gate_up": (2 * shared, hidden), "shared_down": (hidden, shared),
        }  # fmt: skip
    return shapes


class Loader:
    """Copies the tensors of one cache into one native model.

    tensors: record name -> array as stored. scheme: the mode of quantized tensors. release: the arrays are
    views of a read-only file mapping whose pages may be dropped once packed. packed: the native model has its panels
    already, so that matrices are described to it but not read. The order of the matrices is part of the panels' layout
    (_native.PANEL_LAYOUT).
    """

    def __init__(self, native: Any, spec: DecoderSpec, tensors: Mapping[str, np.ndarray], scheme: Scheme | None,
                 release: bool, packed: bool = False) -> None:
        self.native, self.spec, self.tensors, self.release = native, spec, tensors, release
        self.packed = packed
        self.scheme = scheme if scheme is not None and scheme.is_quantized else DEFAULT_SCHEME
        self.shapes = role_shapes(spec)

    def load_all(self) -> None:
        spec = self.spec
        # The largest first: its mapped pages are gone before the rest becomes resident.
        if "head" in spec.tensors:
            self._matrix("head", 0)
        elif not spec.is_encoder:
            self._tied_head()
        for role in ("embed", "positions", "token_types"):
            if role in spec.tensors and not (role == "embed" and "head" not in spec.tensors and not spec.is_encoder):
                self._table(role)
        for role in STEP_VECTORS:
            if role in spec.tensors:
                self._vector(role, 0)
        if not spec.norm_has_weight:
            self.native.set_vector("final_norm", 0, np.ones(spec.hidden_size, np.float32))
        for layer in range(spec.num_layers):
            self._layer(layer)
        self.native.check()

    def _layer(self, layer: int) -> None:
        present = self.spec.tensors
        for role in MATRICES:
            if role in present:
                self._matrix(role, layer)
        for role in EXPERTS:
            if role in present:
                self._experts(role, layer)
        for role in NORMS + BIASES:
            if role in present:
                self._vector(role, layer)
        if not self.spec.norm_has_weight:
            for role in ("attn_norm", "mlp_norm"):
                self.native.set_vector(role, layer, np.ones(self.spec.hidden_size, np.float32))

    def _matrix(self, role: str, layer: int) -> None:
        names = self.spec.names(role, layer)
        inputs = self.shapes[role][-1]
        if names[0].removesuffix(".weight") + ".qweight" in self.tensors:
            self._awq(role, layer, names, inputs)
            return
        if self._is_quantized(names[0]):
            groups = [self._groups(name, inputs, self.scheme.layout) for name in names]
            self._check_rows(role, names, sum(rows for _, _, rows in groups))
            if role == "gate_up" and not self.spec.gate_first and not self.packed:
                groups = [half for whole in groups for half in gate_before_up(*whole, self.scheme.layout)]
            self._set_quantized(role, layer, -1, groups, inputs, self.scheme.layout)
            return
        values = [self._plain(name) for name in names]
        for name, value in zip(names, values, strict=True):
            self._expect(name, value.shape[1:], (inputs,))
        self._check_rows(role, names, sum(len(value) for value in values))
        if role == "gate_up" and not self.spec.gate_first:
            values = [half for value in values for half in reversed(np.split(value, 2))]
        self._set_plain(role, layer, -1, values, inputs)

    def _awq(self, role: str, layer: int, names: tuple[str, ...], inputs: int) -> None:
        """A matrix in AWQ's layout: codes (inputs, rows / 8), zero points (groups, rows / 8), scales (groups, rows)."""
        if role == "gate_up" and not self.spec.gate_first:
            raise UnsupportedError("AWQ codes whose gate comes second cannot be run", where=names[0])
        parts, all_zeros = [], []
        for name in names:
            stem = name.removesuffix(".weight")
            codes, zeros, scales = (self._record(f"{stem}.{part}") for part in ("qweight", "qzeros", "scales"))
            rows, groups = scales.shape[-1], self.scheme.num_groups(inputs)
            words = -(-rows // self.scheme.codes_per_word)
            self._expect(f"{stem}.qweight", codes.shape, (inputs, words))
            self._expect(f"{stem}.qzeros", zeros.shape, (groups, words))
            self._expect(f"{stem}.scales", scales.shape, (groups, rows))
            self._check_float(f"{stem}.scales", scales)
            parts.append((codes, scales, rows))
            all_zeros.append(zeros)
        self._check_rows(role, names, sum(rows for _, _, rows in parts))
        self._set_quantized(role, layer, -1, parts, inputs, "AWQ", all_zeros)

    def _tied_head(self) -> None:
        """The embedding's panels are the head, and its rows are looked up there."""
        name, inputs = self.spec.names("embed")[0], self.spec.hidden_size
        if self._is_quantized(name):
            groups = self._groups(name, inputs, "NK")
            self._check_rows("embed", (name,), groups[2])
            self._set_quantized("head", 0, -1, [groups], inputs, "NK")
        else:
            values = self._plain(name)
            self._expect(name, values.shape, self.shapes["embed"])
            self._set_plain("head", 0, -1, [values], inputs)
        self.native.tie_embedding()

    def _experts(self, role: str, layer: int) -> None:
        name, (count, rows, inputs) = self.spec.names(role, layer)[0], self.shapes[role]
        if not self._is_quantized(name):
            values = self._plain(name)
            self._expect(name, values.shape, (count, rows, inputs))
            for expert in range(count):
                self._set_plain(role, layer, expert, [values[expert]], inputs)
            return
        stem = name.removesuffix(".weight")
        codes, scales = self._record(f"{stem}.q_weight"), self._record(f"{stem}.q_scale")
        self._expect(f"{stem}.q_weight", codes.shape, (count, rows, self.scheme.num_words(inputs)))
        self._expect(f"{stem}.q_scale", scales.shape, (count, rows, self.scheme.num_groups(inputs)))
        for expert in range(count):
            self._set_quantized(role, layer, expert, [(codes[expert], scales[expert], rows)], inputs, "NK")

    def _table(self, role: str) -> None:
        name, inputs = self.spec.names(role)[0], self.spec.hidden_size
        if self._is_quantized(name):
            codes, scales, rows = self._groups(name, inputs, "NK")
            scheme = self.scheme
            self.native.set_embedding_quantized(role, as_bytes(codes), as_bytes(scales), scales.dtype.name, rows,
                                                inputs, scheme.bits, scheme.group_size)
            stem = name.removesuffix(".weight")
            self._read_rows_from_file(role, f"{stem}.q_weight", f"{stem}.q_scale")
        else:
            values = self._plain(name)
            self._expect(name, values.shape[1:], (inputs,))
            rows = len(values)
            self.native.set_embedding_plain(role, as_bytes(values), values.dtype.name, rows, inputs)
            self._read_rows_from_file(role, name, name)
        if role == "embed":
            self._check_rows(role, (name,), rows)

    def _read_rows_from_file(self, role: str, codes: str, scales: str) -> None:
        """Rows of a mapped table are read, not touched: a touched row makes 64 KiB around it resident.

        Positions and token types are small, and every token needs them: a call each would only cost time.
        """
        if role != "embed" or not isinstance(self.tensors, StoredTensors):
            return
        (path, codes_at), (scales_path, scales_at) = self.tensors.location(codes), self.tensors.location(scales)
        if path == scales_path:
            self.native.set_embedding_file(role, str(path), codes_at, scales_at)

    def _vector(self, role: str, layer: int) -> None:
        parts = [self._plain(name) for name in self.spec.names(role, layer)]
        values = np.concatenate([part.astype(np.float32).reshape(-1) for part in parts])
        self._expect(" + ".join(self.spec.names(role, layer)), values.shape, self.shapes[role])
        if role.endswith("_norm") and self.spec.norm_offset:
            values = values + np.float32(self.spec.norm_offset)
        self.native.set_vector(role, layer, values)

    def _set_quantized(self, role: str, layer: int, expert: int, parts: list[tuple[np.ndarray, np.ndarray, int]],
                       inputs: int, layout: str, zeros: list[np.ndarray] | None = None) -> None:
        """parts: codes, scales and rows of each. zeros: their zero points, where the layout has them."""
        dtype = parts[0][1].dtype.name
        native = [(as_bytes(codes), as_bytes(scales), as_bytes(zeros[i]) if zeros else None, rows)
                  for i, (codes, scales, rows) in enumerate(parts)]
        try:
            self.native.set_quantized(role, layer, expert, native, dtype, inputs, self.scheme.bits,
                                      self.scheme.group_size, LAYOUTS[layout], self.release)
        except ValueError as error:
            raise UnsupportedError(str(error), where=f"{role} of layer {layer}") from None

    def _set_plain(self, role: str, layer: int, expert: int, parts: list[np.ndarray], inputs: int) -> None:
        native = [(as_bytes(values), len(values)) for values in parts]
        try:
            self.native.set_plain(role, layer, expert, native, parts[0].dtype.name, inputs, self.release)
        except ValueError as error:
            raise UnsupportedError(str(error), where=f"{role} of layer {layer}") from None

    def _is_quantized(self, name: str) -> bool:
        return name not in self.tensors and name.removesuffix(".weight") + ".q_weight" in self.tensors

    def _groups(self, name: str, inputs: int, layout: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Codes, scales and rows of a group-quantized matrix, its shapes checked."""
        stem = name.removesuffix(".weight")
        codes, scales = self._record(f"{stem}.q_weight"), self._record(f"{stem}.q_scale")
        row_axis = 0 if layout == "NK" else -1
        rows = codes.shape[row_axis]
        for record, array, width in ((".q_weight", codes, self.scheme.num_words(inputs)),
                                     (".q_scale", scales, self.scheme.num_groups(inputs))):
            shape = (rows, width) if layout == "NK" else (width, rows)
            if array.shape != shape:
                raise UnsupportedError(
                    f"does not have the shape of a {self.scheme.name} tensor", where=stem + record,
                    found=array.shape, expected=shape,
                    hint="Is the quantization mode this cache's own, and the config its model's?",
                )
        self._check_float(f"{stem}.q_scale", scales)
        return codes, scales, rows

    def _plain(self, name: str) -> np.ndarray:
        values = self._record(name)
        self._check_float(name, values)
        return values

    def _record(self, name: str) -> np.ndarray:
        if name not in self.tensors:
            raise TensorCacheError(
                "the cache lacks a tensor that its model needs", where=name,
                hint="The cache is incomplete or its config belongs to another model.",
            )
        return self.tensors[name]

    def _check_float(self, name: str, values: np.ndarray) -> None:
        if values.dtype.name not in FLOATS:
            raise UnsupportedError("numbers of this dtype cannot be run", where=name, found=values.dtype.name,
                                   expected=", ".join(FLOATS))

    def _check_rows(self, role: str, names: tuple[str, ...], rows: int) -> None:
        self._expect(" + ".join(names), (rows,), self.shapes[role][:1])

    @staticmethod
    def _expect(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if tuple(found) != tuple(expected):
            raise TensorCacheError("the shape contradicts the model's config", where=name, found=tuple(found),
                                   expected=tuple(expected))


def gate_before_up(codes: np.ndarray, scales: np.ndarray, rows: int,
                   layout: str) -> list[tuple[np.ndarray, np.ndarray, int]]:
    """The two halves of a matrix whose second half is the gate, the gate first."""
    axis, half = (0 if layout == "NK" else 1), rows // 2
    return [(np.take(codes, part, axis), np.take(scales, part, axis), half)
            for part in (np.arange(half, rows), np.arange(half))]


def as_bytes(array: np.ndarray) -> np.ndarray:
    """The array's bytes, (nbytes,) uint8, without copying where it is contiguous."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
