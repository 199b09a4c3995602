"""Linear layers as GPTQ, AutoRound, AWQ and compressed-tensors pack them: integer codes, zero points, scales.

In all of them value = (code - zero) * scale with unsigned codes, one zero and scale to a group of inputs. They
differ in how the codes lie in 32-bit words and in what is stored for a zero point:

    layout              codes (int32)          zeros (int32)              scales
    GPTQ                qweight (K/8, N)       qzeros (G, N/8), minus 1   scales (G, N)
    AWQ "gemm"          qweight (K, N/8) *     qzeros (G, N/8) *          scales (G, N)
    compressed-tensors  weight_packed (N, K/8) weight_zero_point (N/8, G) weight_scale (N, G)

    MLX                 weight (N, K/8)        biases (N, G), floats      scales (N, G)

(the words for 4 bits; the first code lies in the lowest bits, * in the slots 0 4 1 5 2 6 3 7). N outputs, K inputs,
G groups. compressed-tensors adds 8 to signed codes and zeros; symmetric layers there have no zeros: code 8 is 0.
MLX says value = code * scale + bias.
Sources: AutoGPTQ qlinear_cuda.py, AutoAWQ packing_utils.py, compressed_tensors pack_quantized, mlx.core.quantize.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from ..dtypes import DTYPES
from ..errors import CheckpointError, UnsupportedError
from .checkpoint import TensorInfo
from .tensors import MappedCheckpoint

WORD_BITS = 32
_AWQ_SLOTS = (0, 4, 1, 5, 2, 6, 3, 7)
_DAMAGED = "Do config.json and the weights belong together?"


@dataclass(frozen=True)
class PackedLayer(ABC):
    """A packed linear layer. checkpoint: where its parts are. stem: their common name ("….q_proj").

    bits: of a code. group_size: as the config gives it, -1 for one group per output. is_symmetric: as the config
    says; ``is_centered`` has the truth. trust_config: judge by the config alone, reading no zero points.
    """

    checkpoint: MappedCheckpoint
    stem: str
    bits: int
    group_size: int
    is_symmetric: bool
    trust_config: bool = False

    method: ClassVar[str]  # what the layout is called
    suffixes: ClassVar[Mapping[str, str]]  # part -> the tensor's suffix
    optional: ClassVar[frozenset[str]] = frozenset({"zeros", "order", "shape"})
    marker: ClassVar[str] = "codes"  # the part by which a packed layer is found

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""

    @abstractmethod
    def read_codes(self, begin: int, end: int) -> np.ndarray:
        """Codes of outputs [begin, end): (rows, K) uint8."""

    @abstractmethod
    def read_zeros(self, begin: int, end: int) -> np.ndarray:
        """Zero points of outputs [begin, end): (rows, G) uint8."""

    @abstractmethod
    def read_scales(self, begin: int, end: int) -> np.ndarray:
        """Scales of outputs [begin, end): (rows, G), float16, bfloat16 or float32."""

    def read_words(self, begin: int, end: int) -> np.ndarray:
        """Codes as (rows, K * bits / 32) uint32 words, the first in the lowest bits."""
        codes = self.read_codes(begin, end)
        per_word = WORD_BITS // self.bits
        padded = np.zeros((len(codes), -(-codes.shape[1] // per_word), per_word), np.uint32)
        padded.reshape(len(codes), -1)[:, : codes.shape[1]] = codes
        return np.bitwise_or.reduce(padded << _shifts(self.bits), axis=2)

    @property
    def num_groups(self) -> int:
        return self._scale_shape[1]

    @property
    def inputs_per_group(self) -> int:
        return self.shape[1] if self.group_size == -1 else self.group_size

    @cached_property
    def is_centered(self) -> bool:
        """Whether every zero point is the middle code (8 of 0 to 15)."""
        if self.trust_config or not self.has("zeros"):
            return self.is_symmetric
        return bool((self.read_zeros(0, self.shape[0]) == 1 << (self.bits - 1)).all())

    def scales_fit(self, dtype: str) -> bool:
        """Whether ``dtype`` holds every scale exactly; False without data to look at."""
        if self.trust_config:
            return False
        scales = self._floats().astype(np.float32)
        with np.errstate(over="ignore"):
            return np.array_equal(scales.astype(DTYPES[dtype]).astype(np.float32), scales)

    @property
    def description(self) -> str:
        group = "one group per row" if self.group_size == -1 else f"group {self.group_size}"
        return f"{self.bits}-bit {self.method}, {group}, {'symmetric' if self.is_centered else 'asymmetric'}"

    def has(self, part: str) -> bool:
        return part in self.suffixes and self.stem + self.suffixes[part] in self.checkpoint.tensors

    def info(self, part: str) -> TensorInfo:
        return self.checkpoint.tensors[self.stem + self.suffixes[part]]

    @property
    def part_names(self) -> list[str]:
        return [self.stem + suffix for part, suffix in self.suffixes.items() if self.has(part)]

    def words(self, part: str) -> np.ndarray:
        """A part as a matrix of uint32 words, a view of the mapped file."""
        info = self.info(part)
        return self.checkpoint.raw(info.name, np.dtype("<u4")).reshape(info.shape)

    def dequantize(self, begin: int, end: int) -> np.ndarray:
        """Outputs [begin, end) as (rows, K) float32: (code - zero) * scale, exact for 16-bit scales."""
        codes = self.read_codes(begin, end)
        rows, width = codes.shape
        size = self.inputs_per_group
        values = np.zeros((rows, self.num_groups, size), np.float32)
        values.reshape(rows, -1)[:, :width] = codes
        values -= self.read_zeros(begin, end)[:, :, None]
        values *= self.read_scales(begin, end).astype(np.float32)[:, :, None]
        return values.reshape(rows, -1)[:, :width]

    def check(self) -> None:
        """Raise CheckpointError if the parts do not fit each other, UnsupportedError for what cannot be taken in."""
        for part, suffix in self.suffixes.items():
            if not self.has(part) and part not in self.optional:
                raise CheckpointError(f"the packed layer {self.stem} is incomplete", where=self.checkpoint.folder,
                                      expected=self.stem + suffix, hint=_DAMAGED)
        for part in ("codes", "zeros"):
            if self.has(part) and (self.info(part).dtype not in ("I32", "U32") or len(self.info(part).shape) != 2):
                raise self._contradiction(part, "a matrix of int32")
        if 0 in self.shape:
            raise self._contradiction("codes", "at least one input and one output")
        if self.info("scales").dtype not in ("float16", "bfloat16", "float32"):
            raise self._contradiction("scales", "float16, bfloat16 or float32")
        if not self.is_symmetric and not self.has("zeros"):
            raise CheckpointError(f"the packed layer {self.stem} is asymmetric but has no zero points",
                                  where=self.checkpoint.folder, hint=_DAMAGED)
        outputs, width = self.shape
        groups = -(-width // self.inputs_per_group)
        if self._scale_shape != (outputs, groups):
            raise self._contradiction("scales", f"{groups} groups for {outputs} outputs and {width} inputs")
        self.check_order()

    def check_order(self) -> None:
        """Refuse groups that are not runs of neighboring inputs."""
        if self.trust_config or not self.has("order"):
            return
        info = self.info("order")
        if info.shape != (self.shape[1],):
            raise self._contradiction("order", f"an entry for each of {self.shape[1]} inputs")
        order = self.checkpoint.raw(info.name, np.dtype({"I32": "<i4", "I64": "<i8"}.get(info.dtype, "<i4")))
        if not np.array_equal(order, np.arange(self.shape[1]) // self.inputs_per_group):
            raise UnsupportedError(
                "the groups follow the order of activations (desc_act): their inputs are scattered over the row, and a "
                "cache has a scale for each run of neighboring inputs", where=self.checkpoint.folder / info.file,
                found=info.name, expected="groups of neighboring inputs",
                hint="Use a checkpoint that was quantized with desc_act=False, or the unquantized original.")

    @property
    @abstractmethod
    def _scale_shape(self) -> tuple[int, int]:
        """(outputs, groups)."""

    def _check_zeros(self, expected: tuple[int, int]) -> None:
        if self.has("zeros") and self.info("zeros").shape != expected:
            raise self._contradiction("zeros", str(list(expected)))

    def _contradiction(self, part: str, expected: str) -> CheckpointError:
        info = self.info(part)
        return CheckpointError(f"{info.name} does not fit its packed layer", where=self.checkpoint.folder / info.file,
                               found=f"{info.dtype} {list(info.shape)}", expected=expected, hint=_DAMAGED)

    def _floats(self) -> np.ndarray:
        return self.checkpoint.read(self.info("scales").name)


class _GroupsFirst(PackedLayer):
    """Layouts with scales (G, N) and zeros (G, N/8)."""

    suffixes: ClassVar[Mapping[str, str]] = {
        "codes": ".qweight", "zeros": ".qzeros", "scales": ".scales", "order": ".g_idx",
    }
    slots: ClassVar[tuple[int, ...]] = ()

    def read_scales(self, begin: int, end: int) -> np.ndarray:
        return np.ascontiguousarray(self._floats()[:, begin:end].T)

    def read_stored_zeros(self, begin: int, end: int) -> np.ndarray:
        return _unpack_columns(self.words("zeros"), self.bits, self.slots, begin, end).T

    @property
    def _scale_shape(self) -> tuple[int, int]:
        shape = self.info("scales").shape
        if len(shape) != 2:
            raise self._contradiction("scales", "a matrix (groups, outputs)")
        return shape[1], shape[0]

    def check(self) -> None:
        super().check()
        self._check_zeros((self.num_groups, -(-self.shape[0] * self.bits // WORD_BITS)))


class GptqLayer(_GroupsFirst):
    """GPTQ as AutoGPTQ and GPTQModel write it, and AutoRound in its "auto_gptq" packing.

    Format 1 stores zero points minus 1, modulo the code range; see ``GptqLayer2``.
    """

    method: ClassVar[str] = "GPTQ"
    stored_zero_offset: ClassVar[int] = 1

    @property
    def shape(self) -> tuple[int, int]:
        words, outputs = self.info("codes").shape
        return outputs, words * WORD_BITS // self.bits

    def read_codes(self, begin: int, end: int) -> np.ndarray:
        return _unpack(self.read_words(begin, end), self.bits)

    def read_words(self, begin: int, end: int) -> np.ndarray:
        return np.ascontiguousarray(self.words("codes")[:, begin:end].T)

    def read_zeros(self, begin: int, end: int) -> np.ndarray:
        if not self.has("zeros"):
            return np.full((end - begin, self.num_groups), 1 << (self.bits - 1), np.uint8)
        mask = np.uint8((1 << self.bits) - 1)
        return (self.read_stored_zeros(begin, end) + np.uint8(self.stored_zero_offset)) & mask


class Gptq2Layer(GptqLayer):
    """GPTQ with zero points as they are ("gptq_v2")."""

    stored_zero_offset: ClassVar[int] = 0


class AwqLayer(_GroupsFirst):
    """AWQ in AutoAWQ's "gemm" version."""

    method: ClassVar[str] = "AWQ"
    slots: ClassVar[tuple[int, ...]] = _AWQ_SLOTS
    optional: ClassVar[frozenset[str]] = frozenset({"order"})

    @property
    def shape(self) -> tuple[int, int]:
        inputs, words = self.info("codes").shape
        return words * WORD_BITS // self.bits, inputs

    def read_codes(self, begin: int, end: int) -> np.ndarray:
        return _unpack_columns(self.words("codes"), self.bits, self.slots, begin, end).T

    def read_zeros(self, begin: int, end: int) -> np.ndarray:
        return self.read_stored_zeros(begin, end)


class CompressedTensorsLayer(PackedLayer):
    """compressed-tensors "pack-quantized"."""

    method: ClassVar[str] = "compressed-tensors"
    suffixes: ClassVar[Mapping[str, str]] = {
        "codes": ".weight_packed", "zeros": ".weight_zero_point", "scales": ".weight_scale",
        "order": ".weight_g_idx", "shape": ".weight_shape",
    }

    @cached_property
    def shape(self) -> tuple[int, int]:
        outputs, words = self.info("codes").shape
        if self.trust_config or not self.has("shape"):
            return outputs, words * WORD_BITS // self.bits
        info = self.info("shape")
        dtype = {"I64": "<i8", "I32": "<i4"}.get(info.dtype)
        if dtype is None or info.shape != (2,):
            raise self._contradiction("shape", "two int64")
        stated = tuple(int(extent) for extent in self.checkpoint.raw(info.name, np.dtype(dtype)))
        if stated[0] != outputs or not stated[1] > 0 or -(-stated[1] * self.bits // WORD_BITS) != words:
            raise CheckpointError(f"{info.name} contradicts the packed codes",
                                  where=self.checkpoint.folder / info.file, found=list(stated),
                                  expected=f"{outputs} outputs, {words} words each", hint=_DAMAGED)
        return outputs, stated[1]

    def read_codes(self, begin: int, end: int) -> np.ndarray:
        return _unpack(self.words("codes")[begin:end], self.bits)[:, : self.shape[1]]

    def read_zeros(self, begin: int, end: int) -> np.ndarray:
        if not self.has("zeros"):
            return np.full((end - begin, self.num_groups), 1 << (self.bits - 1), np.uint8)
        return _unpack_columns(self.words("zeros").T, self.bits, (), begin, end).T

    def read_scales(self, begin: int, end: int) -> np.ndarray:
        return self._floats()[begin:end]

    @property
    def _scale_shape(self) -> tuple[int, int]:
        shape = self.info("scales").shape
        if len(shape) != 2:
            raise self._contradiction("scales", "a matrix (outputs, groups)")
        return shape[0], shape[1]

    def check(self) -> None:
        super().check()
        self._check_zeros((-(-self.shape[0] * self.bits // WORD_BITS), self.num_groups))


class MlxLayer(PackedLayer):
    """MLX's affine quantization. Embeddings are packed too."""

    method: ClassVar[str] = "MLX"
    suffixes: ClassVar[Mapping[str, str]] = {"codes": ".weight", "scales": ".scales", "biases": ".biases"}
    marker: ClassVar[str] = "scales"

    @property
    def shape(self) -> tuple[int, int]:
        outputs, words = self.info("codes").shape
        return outputs, words * WORD_BITS // self.bits

    @cached_property
    def is_centered(self) -> bool:
        """Whether bias = -scale * middle code everywhere, so that the middle code is 0."""
        if self.trust_config:
            return False
        middle = np.float32(1 << (self.bits - 1))
        return np.array_equal(self._biases(), -middle * self._floats().astype(np.float32))

    def read_codes(self, begin: int, end: int) -> np.ndarray:
        return _unpack(self.words("codes")[begin:end], self.bits)

    def read_zeros(self, begin: int, end: int) -> np.ndarray:
        """0: what stands for zero points are ``biases``."""
        return np.zeros((end - begin, self.num_groups), np.uint8)

    def read_scales(self, begin: int, end: int) -> np.ndarray:
        return self._floats()[begin:end]

    def dequantize(self, begin: int, end: int) -> np.ndarray:
        values = super().dequantize(begin, end).reshape(end - begin, self.num_groups, -1)
        values += self._biases()[begin:end, :, None]
        return values.reshape(end - begin, -1)

    def _biases(self) -> np.ndarray:
        return self.checkpoint.read(self.info("biases").name).astype(np.float32)

    @property
    def _scale_shape(self) -> tuple[int, int]:
        shape = self.info("scales").shape
        if len(shape) != 2:
            raise self._contradiction("scales", "a matrix (outputs, groups)")
        return shape[0], shape[1]

    def check(self) -> None:
        super().check()
        biases = self.info("biases")
        if biases.shape != self._scale_shape or biases.dtype not in ("float16", "bfloat16", "float32"):
            raise self._contradiction("biases", f"floats {list(self._scale_shape)}")
        if self.shape[1] % self.inputs_per_group:
            raise self._contradiction("codes", "whole groups")


def _shifts(bits: int) -> np.ndarray:
    return np.arange(0, WORD_BITS, bits, dtype=np.uint32)


def _unpack(words: np.ndarray, bits: int, slots: tuple[int, ...] = ()) -> np.ndarray:
    """(rows, words) uint32 -> (rows, words * 32 / bits) uint8. No code crosses a byte."""
    octets = np.ascontiguousarray(words, np.dtype("<u4")).view(np.uint8)
    per_octet = 8 // bits
    codes = np.empty((len(words), octets.shape[1] * per_octet), np.uint8)
    for place in range(per_octet):
        np.bitwise_and(octets >> np.uint8(place * bits), np.uint8((1 << bits) - 1), out=codes[:, place::per_octet])
    if slots:
        codes = codes.reshape(len(words), -1, WORD_BITS // bits)[:, :, slots]
    return codes.reshape(len(words), -1)


def _unpack_columns(words: np.ndarray, bits: int, slots: tuple[int, ...], begin: int, end: int) -> np.ndarray:
    """Columns [begin, end) of what ``_unpack`` gives, without unpacking the rest."""
    per_word = WORD_BITS // bits
    first = begin // per_word
    codes = _unpack(words[:, first : -(-end // per_word)], bits, slots)
    return codes[:, begin - first * per_word : end - first * per_word]
