"""What can be done with which family and which mode: the tables of both, as people ask about them."""

from __future__ import annotations

from dataclasses import dataclass

from ..schemes import REFUSED_MODES, SCHEMES
from .registry import ELSEWHERE, FAMILIES


@dataclass(frozen=True)
class FamilySupport:
    """One family. kind: "decoder" (text) or "encoder" (embeddings).

    convert, run: whether Kumquant does. webllm: whether MLC has the family, so that it can compile a library with
    which WebLLM runs its caches.
    """

    model_type: str
    kind: str
    convert: bool
    run: bool
    webllm: bool


@dataclass(frozen=True)
class ModeSupport:
    """One quantization mode.

    bits: of a weight's code, 0 where weights are plain. group_size: weights that share a scale, 0 where all or none
    do. dtype: of plain tensors and scales. layout: "NK", "KN" (transposed) or "AWQ". plain_ends: embeddings and head
    are not quantized. convert: "yes", "AWQ sources" or "no". run: by Kumquant. webllm: as for a family; needs are
    the GPU features that WebLLM then asks for.
    """

    name: str
    bits: int
    group_size: int
    dtype: str
    layout: str
    plain_ends: bool
    convert: str
    run: bool
    webllm: bool
    needs: str = ""


@dataclass(frozen=True)
class Support:
    """families, modes: what Kumquant has. read_only_families, refused_modes: what it knows and does not have."""

    families: tuple[FamilySupport, ...]
    modes: tuple[ModeSupport, ...]
    read_only_families: tuple[str, ...]
    refused_modes: tuple[str, ...]


def support() -> Support:
    """The whole table, families and modes in the order of their own tables."""
    families = tuple(
        FamilySupport(family.model_type, "encoder" if family.traits.get("causal") is False else "decoder",
                      convert=True, run=True, webllm=family.in_format)
        for family in FAMILIES.values()
    )
    modes = tuple(
        ModeSupport(
            scheme.name, scheme.bits, scheme.group_size, scheme.model_dtype, scheme.layout,
            plain_ends=scheme.is_quantized and not scheme.quantize_ends,
            convert="AWQ sources" if scheme.storage == "awq" else "yes" if scheme.can_convert else "no",
            run=scheme.can_run, webllm=scheme.in_webllm,
            needs="shader-f16" if scheme.in_webllm and scheme.model_dtype == "float16" else "",
        )
        for scheme in SCHEMES.values()
    )
    return Support(families, modes, ELSEWHERE, tuple(REFUSED_MODES))
