"""What "quantization_config" in a config.json says: by which method, and which layers are packed how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, UnsupportedError
from .folder import CONFIG_NAME
from .packed_layers import AwqLayer, CompressedTensorsLayer, Gptq2Layer, GptqLayer, MlxLayer, PackedLayer
from .tensors import MappedCheckpoint

TAKEN_IN = ("gptq", "auto-round (packed as auto_gptq or auto_awq)", "awq (gemm)",
            "compressed-tensors (pack-quantized)", "MLX (affine)")


@dataclass(frozen=True)
class PackedFormat:
    """How a checkpoint's layers are packed.

    layer_type: the layout. bits, group_size (-1: one group per output), is_symmetric: of every layer, except what
    ``overrides`` says for a layer's name.
    """

    layer_type: type[PackedLayer]
    bits: int
    group_size: int
    is_symmetric: bool
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: object, where: Path) -> PackedFormat:
        """Read the object. Raises UnsupportedError for other methods and variants, CheckpointError for nonsense."""
        keys = _Keys(config, f"{where}: quantization_config")
        method = str(keys.values.get("quant_method", "")).lower().replace("_", "-").removeprefix("intel/")
        if not method and {"group_size", "bits"} <= keys.values.keys():
            method = "mlx"  # which says nothing
        if method not in _METHODS:
            raise keys.unsupported("quant_method", TAKEN_IN)
        return _METHODS[method](keys)

    def layers(self, stored: MappedCheckpoint, trust_config: bool) -> list[PackedLayer]:
        """Every packed layer of ``stored``, checked."""
        suffix = self.layer_type.suffixes[self.layer_type.marker]
        stems = [name.removesuffix(suffix) for name in stored.tensors if name.endswith(suffix)]
        if not stems:
            raise CheckpointError("config.json says that the weights are quantized, but no layer is packed",
                                  where=stored.folder, expected=f"tensors called …{suffix}")
        return [self._layer(stored, stem, trust_config) for stem in stems]

    def _layer(self, stored: MappedCheckpoint, stem: str, trust_config: bool) -> PackedLayer:
        own = _Keys({"bits": self.bits, "group_size": self.group_size, "sym": self.is_symmetric,
                     **self.overrides.get(stem, {})}, f"{stored.folder / CONFIG_NAME}: extra_config, {stem}")
        layer = self.layer_type(stored, stem, own.bits("bits"), own.group_size("group_size"),
                                own.values["sym"] is True, trust_config)
        layer.check()
        return layer


class _Keys:
    """A JSON object from outside, read key by key."""

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise CheckpointError("not an object", where=where, found=type(values).__name__)
        self.values: dict[str, Any] = values
        self.where = where

    def bits(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int or value not in (2, 4, 8):
            raise self.unsupported(key, ("2", "4", "8"))
        return value

    def group_size(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is not int or (value != -1 and value < 1):
            raise CheckpointError("impossible group size", where=f"{self.where}: {key}", found=repr(value),
                                  expected="a positive integer or -1")
        return value

    def unsupported(self, key: str, expected: tuple[str, ...]) -> UnsupportedError:
        return UnsupportedError("weights quantized like this cannot be taken in", where=f"{self.where}: {key}",
                                found=repr(self.values.get(key))[:80], expected=", ".join(expected),
                                hint="Use the original, unquantized checkpoint.")

    def require(self, key: str, *allowed: Any) -> None:
        if self.values.get(key) not in allowed:
            raise self.unsupported(key, tuple("no such key" if value is None else repr(value) for value in allowed))


def _gptq(keys: _Keys) -> PackedFormat:
    keys.require("checkpoint_format", None, "gptq", "gptq_v2")
    keys.require("is_marlin_format", None, False)
    layer_type = Gptq2Layer if keys.values.get("checkpoint_format") == "gptq_v2" else GptqLayer
    return PackedFormat(layer_type, keys.bits("bits"), keys.group_size("group_size"),
                        keys.values.get("sym", True) is True)


def _auto_round(keys: _Keys) -> PackedFormat:
    keys.require("packing_format", None, "auto_round:auto_gptq", "auto_round:auto_awq")
    keys.require("data_type", None, "int")
    layer_type = AwqLayer if keys.values.get("packing_format") == "auto_round:auto_awq" else GptqLayer
    if layer_type is AwqLayer and keys.bits("bits") != 4:
        raise keys.unsupported("bits", ("4",))
    extra = keys.values.get("extra_config") or {}
    overrides = {name: values for name, values in extra.items() if isinstance(values, dict)}
    return PackedFormat(layer_type, keys.bits("bits"), keys.group_size("group_size"),
                        keys.values.get("sym", True) is True, overrides)


def _awq(keys: _Keys) -> PackedFormat:
    keys.require("version", None, "gemm", "GEMM")
    key = "bits" if "bits" in keys.values else "w_bit"
    if keys.bits(key) != 4:
        raise keys.unsupported(key, ("4",))
    group_key = "group_size" if "group_size" in keys.values else "q_group_size"
    return PackedFormat(AwqLayer, 4, keys.group_size(group_key), is_symmetric=False)


def _compressed_tensors(keys: _Keys) -> PackedFormat:
    keys.require("format", "pack-quantized")
    groups = keys.values.get("config_groups")
    if not isinstance(groups, dict) or len(groups) != 1:
        raise keys.unsupported("config_groups", ("one group of layers",))
    scheme = next(iter(groups.values()))
    weights = _Keys(scheme.get("weights") if isinstance(scheme, dict) else None, f"{keys.where}: config_groups")
    weights.require("type", "int", None)
    weights.require("strategy", "group", "channel", None)
    if scheme.get("input_activations") is not None:
        raise UnsupportedError("the model computes with quantized activations", where=f"{keys.where}: config_groups",
                               found="input_activations", expected="weights only (W4A16)")
    group_size = -1 if weights.values.get("group_size") is None else weights.group_size("group_size")
    return PackedFormat(CompressedTensorsLayer, weights.bits("num_bits"), group_size,
                        weights.values.get("symmetric", True) is True)


def _mlx(keys: _Keys) -> PackedFormat:
    keys.require("mode", None, "affine")
    overrides = {name: values for name, values in keys.values.items() if isinstance(values, dict)}
    return PackedFormat(MlxLayer, keys.bits("bits"), keys.group_size("group_size"), True, overrides)


_METHODS = {"gptq": _gptq, "auto-round": _auto_round, "awq": _awq, "compressed-tensors": _compressed_tensors,
            "mlx": _mlx}
