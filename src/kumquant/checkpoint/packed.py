"""Checkpoints that others quantized: the packed layers are seen as weights that bring their own codes.

A symmetric 4-bit layer says value = (q - 8) * s; the format's 4-bit modes say (c - 7) * S. With c = 15 - q and
S = -s both are the same number, for all 16 codes, and a group of 64 or 128 is two or four groups of 32 with one
scale. So such layers go over without any loss where the scales fit; others are dequantized.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..schemes import Scheme
from .checkpoint import Checkpoint, PackedRows, TensorInfo
from .folder import CONFIG_NAME
from .packed_layers import PackedLayer
from .parts import PartsCheckpoint
from .quantization_config import PackedFormat
from .rows import covering_rows, cut
from .tensors import MappedCheckpoint

_KEYS = ("quantization_config", "compression_config", "quantization")  # the last is MLX's


def is_packed(config: dict[str, Any]) -> bool:
    """Whether a config.json says that the weights are quantized."""
    return any(config.get(key) for key in _KEYS)


def open_packed(stored: MappedCheckpoint, *, trust_config: bool = False) -> Checkpoint:
    """The weights behind the packed layers of ``stored``.

    trust_config: read nothing but headers, and believe what the config says about zero points and order.
    Raises UnsupportedError (another method or variant), CheckpointError (parts missing or contradicting).
    """
    packed_format = PackedFormat.from_config(next(stored.config[key] for key in _KEYS if stored.config.get(key)),
                                             stored.folder / CONFIG_NAME)
    return PackedCheckpoint(stored, packed_format.layers(stored, trust_config))


class PackedCheckpoint(Checkpoint):
    """A checkpoint whose packed layers read as float32 and have codes for the 4-bit modes of group 32."""

    def __init__(self, stored: MappedCheckpoint, layers: Iterable[PackedLayer]) -> None:
        config = {key: value for key, value in stored.config.items() if key not in _KEYS}
        super().__init__(stored.folder, config, stored.has_index, stored.files, {},
                         {**stored.small_files, CONFIG_NAME: json.dumps(config, indent=2)})
        self._stored = stored
        self._layers = {f"{layer.stem}.weight": layer for layer in layers}
        self._exact_scales: dict[tuple[str, str], bool] = {}
        self._fill_tensors()

    def _fill_tensors(self) -> None:
        """Every packed layer takes the place of the first of its parts; the other parts disappear."""
        owners = {part: name for name, layer in self._layers.items() for part in layer.part_names}
        for stored_name, info in self._stored.tensors.items():
            name = owners.get(stored_name)
            if name is None:
                self.tensors[stored_name] = info
            elif name in self._stored.tensors and name not in owners:
                raise CheckpointError(f"{name} is there twice, packed and plain", where=self.folder, found=stored_name,
                                      hint="Download the checkpoint again.")
            elif name not in self.tensors:
                layer = self._layers[name]
                self.tensors[name] = TensorInfo(
                    name, "float32", layer.shape, layer.info("codes").file,
                    sum(self._stored.tensors[part].nbytes for part in layer.part_names),
                    stored_as=layer.description, scale_dtype=layer.info("scales").dtype)

    def read_rows(self, name: str, width: int, begin: int, end: int) -> np.ndarray:
        layer = self._layers.get(name)
        if layer is None:
            return self._stored.read_rows(name, width, begin, end)
        first, last = covering_rows(width, begin, end, layer.shape[1])
        return cut(layer.dequantize(first, last), first, width, begin, end)

    def has_codes(self, name: str, scheme: Scheme) -> bool:
        layer = self._layers.get(name)
        if layer is None or not scheme.has_groups or (layer.bits, scheme.bits) != (4, 4) or not layer.is_centered:
            return False
        return layer.num_groups == 1 or layer.inputs_per_group % scheme.group_size == 0

    def read_codes(self, name: str, scheme: Scheme, begin: int, end: int) -> PackedRows:
        layer = self._layers[name]
        width = layer.shape[1]
        words = ~layer.read_words(begin, end)  # 15 - q in every slot
        codes = np.zeros((end - begin, scheme.num_words(width)), np.uint32)
        codes[:, : words.shape[1]] = words
        slots_left = width % scheme.codes_per_word
        if slots_left:  # the format has zeros behind the row
            codes[:, words.shape[1] - 1] &= np.uint32((1 << (slots_left * scheme.bits)) - 1)
        group_of = np.arange(scheme.num_groups(width)) * scheme.group_size // layer.inputs_per_group
        return PackedRows(codes, -layer.read_scales(begin, end)[:, group_of])

    def parts(self) -> Checkpoint:
        return PartsCheckpoint(self._stored, self)

    def has_exact_scales(self, name: str, dtype: str) -> bool:
        """Reads the scales unless the dtypes tell: bfloat16 ones of usual size fit into float16."""
        layer = self._layers[name]
        if super().has_exact_scales(name, dtype):
            return True
        key = (name, dtype)
        if key not in self._exact_scales:
            self._exact_scales[key] = layer.scales_fit(dtype)
        return self._exact_scales[key]

    def prefetch(self, name: str, begin: int = 0, end: int | None = None) -> None:
        if name not in self._layers:
            self._stored.prefetch(name, begin, end)
        elif begin == 0:  # rows may lie across the whole tensor
            for part in self._layers[name].part_names:
                self._stored.prefetch(part)

    def release(self, name: str, begin: int = 0, end: int | None = None) -> None:
        if name not in self._layers:
            self._stored.release(name, begin, end)
        elif end is None or end >= self.tensors[name].nbytes:
            for part in self._layers[name].part_names:
                self._stored.release(part)
