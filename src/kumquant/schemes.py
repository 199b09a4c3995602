"""The quantization modes of the format, one row each. Pure data: readers, writers and kernels all look here.

Source: shared/conformance/FORMAT.md section 4 (see docs/format.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UnsupportedError


@dataclass(frozen=True)
class Scheme:
    """One quantization mode.

    bits: code width, 0 for plain modes. group_size: weights that share a scale, along the input axis.
    model_dtype: dtype of plain tensors and of scales ("float16", "bfloat16", "float32").
    layout: "NK" stores (out, words); "KN" stores linears transposed. quantize_ends: embeddings and head too.
    """

    name: str
    bits: int
    group_size: int
    model_dtype: str
    layout: str = "NK"
    quantize_ends: bool = True

    @property
    def is_quantized(self) -> bool:
        return self.bits > 0

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


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme
    for scheme in (
        Scheme("q0f32", 0, 0, "float32"),
        Scheme("q0f16", 0, 0, "float16"),
        Scheme("q0bf16", 0, 0, "bfloat16"),
        Scheme("q4f16_1", 4, 32, "float16"),
        Scheme("q4f32_1", 4, 32, "float32"),
        Scheme("q4bf16_1", 4, 32, "bfloat16"),
    )
}


def scheme_named(name: str) -> Scheme:
    """The mode called ``name``. Raises UnsupportedError that lists the known ones."""
    if name not in SCHEMES:
        raise UnsupportedError(
            "unknown quantization mode", where=name, expected=", ".join(SCHEMES),
            hint="Choose one of the modes above (-q/--quantization).",
        )
    return SCHEMES[name]
