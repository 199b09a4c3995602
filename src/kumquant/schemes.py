"""The quantization modes of the format, one row each. Pure data: readers, writers and kernels all look here.

Source: docs/modes.md and docs/format.md (shared/conformance/FORMAT.md section 4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from .errors import RequestError, UnsupportedError

# How a mode stores a quantized matrix: "groups": codes in uint32 words, a scale per group, one zero point for
# all. "awq": the same with a zero point per group, in AWQ's order. "float8": the numbers themselves, perhaps with
# one scale. "float8_blocks": with a scale per block of rows and columns.
Storage = Literal["plain", "groups", "awq", "float8", "float8_blocks"]


@dataclass(frozen=True)
class Scheme:
    """One quantization mode.

    bits: code width, 0 for plain modes. group_size: weights that share a scale, along the input axis.
    model_dtype: dtype of plain tensors and of scales ("float16", "bfloat16", "float32").
    layout: "NK" stores (out, words); "KN" stores linears transposed, "AWQ" (in, out words).
    quantize_ends: embeddings and head too. code_dtype: of the stored codes.
    in_format: MLC has the mode. in_webllm: WebLLM can run it (with a library that MLC compiles for it; WebGPU has no
    bfloat16 and no float8).
    """

    name: str
    bits: int
    group_size: int
    model_dtype: str
    layout: str = "NK"
    quantize_ends: bool = True
    storage: Storage = "groups"
    code_dtype: str = "uint32"
    in_format: bool = True
    in_webllm: bool = False

    @property
    def is_quantized(self) -> bool:
        return self.bits > 0

    @property
    def has_groups(self) -> bool:
        """Whether quantized tensors are codes in words with a scale per group: what a quantizer writes."""
        return self.is_quantized and self.storage == "groups"

    @property
    def can_convert(self) -> bool:
        """Whether ``convert`` writes it ("awq": only from checkpoints that are AWQ already)."""
        return self.storage in ("plain", "groups", "awq")

    @property
    def can_run(self) -> bool:
        """Whether the native core runs it. Every mode of the table opens, verifies and dequantizes."""
        return self.storage in ("plain", "groups", "awq")

    @property
    def codes_per_word(self) -> int:
        return 32 // self.bits

    @property
    def zero_point(self) -> int:
        """The code that decodes to 0: 7 for 4 bits. value = (code - zero_point) * scale."""
        return 2 ** (self.bits - 1) - 1

    def num_groups(self, width: int) -> int:
        return -(-width // self.group_size)

    def num_words(self, width: int) -> int:
        return self.num_groups(width) * self.group_size // self.codes_per_word

    def for_kind(self, kind: str) -> Scheme:
        """The scheme as it applies to a tensor of ``kind``: only linears are ever stored transposed."""
        return replace(self, layout="NK") if self.layout == "KN" and kind != "linear" else self


def _plain(name: str, dtype: str, *, in_webllm: bool = False) -> Scheme:
    return Scheme(name, 0, 0, dtype, quantize_ends=False, storage="plain", in_webllm=in_webllm)


def _float8(name: str, code_dtype: str, *, storage: Storage = "float8", model_dtype: str = "float16") -> Scheme:
    return Scheme(name, 8, 0, model_dtype, quantize_ends=False, storage=storage, code_dtype=code_dtype)


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        _plain("q0f32", "float32", in_webllm=True),
        _plain("q0f16", "float16", in_webllm=True),
        _plain("q0bf16", "bfloat16"),
        Scheme("q3f16_0", 3, 40, "float16", "KN", in_webllm=True),
        Scheme("q3f16_1", 3, 40, "float16", in_webllm=True),
        Scheme("q4f16_0", 4, 32, "float16", "KN", in_webllm=True),
        Scheme("q4f16_1", 4, 32, "float16", in_webllm=True),
        Scheme("q4f16_2", 4, 32, "float16", quantize_ends=False, in_webllm=True),
        Scheme("q4bf16_0", 4, 32, "bfloat16", "KN"),
        Scheme("q4bf16_1", 4, 32, "bfloat16"),
        Scheme("q4f32_1", 4, 32, "float32", in_webllm=True),
        # MLC's class does eight bits, but registers no mode of them: its own engines do not know these names.
        Scheme("q8f16_1", 8, 32, "float16", in_format=False),
        Scheme("q8bf16_1", 8, 32, "bfloat16", in_format=False),
        Scheme("q8f32_1", 8, 32, "float32", in_format=False),
        Scheme("q4f16_autoawq", 4, 128, "float16", "AWQ", quantize_ends=False, storage="awq"),
        _float8("e4m3_e4m3_f16", "float8_e4m3fn"),
        _float8("e4m3_e4m3_f16_max_calibrate", "float8_e4m3fn"),
        _float8("e5m2_e5m2_f16", "float8_e5m2"),
        _float8("fp8_e4m3fn_bf16_block_scale", "float8_e4m3fn", storage="float8_blocks", model_dtype="bfloat16"),
        _float8("fp8_e4m3fn_bf16_block_scale_static_activation", "float8_e4m3fn", storage="float8_blocks",
                model_dtype="bfloat16"),
    )
}

# Modes of MLC whose bytes cannot be understood without the machine they were made for.
REFUSED_MODES = {
    "q4f16_ft": "its codes are permuted for one generation of NVIDIA GPUs, and the file does not say which",
}


class UnknownModeError(RequestError, UnsupportedError):
    """A mode that the caller names and nobody knows."""


def scheme_named(name: str, error: type[UnsupportedError] = UnsupportedError) -> Scheme:
    """The mode called ``name``. Raises ``error`` that lists the known ones."""
    if name in REFUSED_MODES:
        raise UnsupportedError(f"this mode is not portable: {REFUSED_MODES[name]}", where=name,
                               hint="Convert the original model to another mode, q4f16_1 for instance.")
    if name not in SCHEMES:
        raise error(
            "unknown quantization mode", where=name, expected=", ".join(SCHEMES),
            hint="Choose one of the modes above (-q/--quantization).",
        )
    return SCHEMES[name]
