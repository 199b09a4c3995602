"""Linear layers packed as GPTQ, AWQ and compressed-tensors document it, one code after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which column is in which slot of a word, as AutoAWQ says it


@dataclass(frozen=True)
class Quantized:
    """codes (N, K) 0 to 15, zeros (N, G), scales (N, G), group size."""

    codes: np.ndarray
    zeros: np.ndarray
    scales: np.ndarray
    group: int

    @property
    def values(self) -> np.ndarray:
        column = np.arange(self.codes.shape[1]) // self.group
        return ((self.codes.astype(np.float32) - self.zeros[:, column])
                * self.scales.astype(np.float32)[:, column])


def random_layer(rng: np.random.Generator, outputs: int, inputs: int, group: int, *, symmetric: bool = True,
                 dtype: object = np.float16) -> Quantized:
    """Every code, both signs of scale, zero and denormal scales."""
    groups = -(-inputs // group)
    codes = rng.integers(0, 16, (outputs, inputs), dtype=np.uint8)
    scales = (rng.standard_normal((outputs, groups)) * 0.01).astype(dtype)
    scales[0, 0], scales[1, 0] = 0, np.float16(2e-7)
    zeros = np.full((outputs, groups), 8, np.uint8) if symmetric else rng.integers(1, 16, (outputs, groups), np.uint8)
    return Quantized(codes, zeros, scales, group)


def pack_words(codes: np.ndarray) -> np.ndarray:
    """(rows, k) -> (rows, ceil(k / 8)) int32, the first code in the lowest bits."""
    rows, count = codes.shape
    words = np.zeros((rows, -(-count // 8)), np.uint32)
    for column in range(count):
        words[:, column // 8] |= codes[:, column].astype(np.uint32) << np.uint32(column % 8 * 4)
    return words.view(np.int32)


def gptq(layer: Quantized, stem: str, zero_offset: int = 1, order: np.ndarray | None = None) -> dict[str, np.ndarray]:
    inputs = layer.codes.shape[1]
    return {
        f"{stem}.g_idx": (np.arange(inputs) // layer.group if order is None else order).astype(np.int32),
        f"{stem}.qweight": np.ascontiguousarray(pack_words(layer.codes).T),
        f"{stem}.qzeros": pack_words((layer.zeros.T - zero_offset) & 15),
        f"{stem}.scales": np.ascontiguousarray(layer.scales.T),
    }


def awq(layer: Quantized, stem: str) -> dict[str, np.ndarray]:
    def pack(columns: np.ndarray) -> np.ndarray:
        rows, count = columns.shape
        return pack_words(columns.reshape(rows, count // 8, 8)[:, :, list(AWQ_ORDER)].reshape(rows, count))

    return {f"{stem}.qweight": pack(layer.codes.T), f"{stem}.qzeros": pack(layer.zeros.T),
            f"{stem}.scales": np.ascontiguousarray(layer.scales.T)}


def compressed_tensors(layer: Quantized, stem: str, symmetric: bool = True) -> dict[str, np.ndarray]:
    tensors = {f"{stem}.weight_packed": pack_words(layer.codes), f"{stem}.weight_scale": layer.scales,
               f"{stem}.weight_shape": np.array(layer.codes.shape, np.int64)}
    if not symmetric:
        tensors[f"{stem}.weight_zero_point"] = np.ascontiguousarray(pack_words(layer.zeros.T).T)
    return tensors


def mlx(layer: Quantized, stem: str) -> dict[str, np.ndarray]:
    """value = code * scale + bias: for zero points of 8 exactly the others' numbers."""
    biases = -layer.zeros.astype(np.float32) * layer.scales.astype(np.float32)
    return {f"{stem}.weight": pack_words(layer.codes).view(np.uint32), f"{stem}.scales": layer.scales,
            f"{stem}.biases": biases.astype(layer.scales.dtype)}


def config_of(method: str, group: int, *, symmetric: bool = True) -> dict[str, object]:
    """A "quantization_config" as the method's own tool writes it."""
    common = {"bits": 4, "group_size": group, "sym": symmetric}
    return {
        "gptq": {"quant_method": "gptq", **common, "desc_act": False},
        "gptq_v2": {"quant_method": "gptq", **common, "desc_act": False, "checkpoint_format": "gptq_v2"},
        "auto-round": {"quant_method": "auto-round", **common, "packing_format": "auto_round:auto_gptq"},
        "awq": {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True},
        "compressed-tensors": {
            "quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"input_activations": None, "targets": ["Linear"], "weights": {
                "num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}}},
        },
    }[method]
