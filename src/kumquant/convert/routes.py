"""By which way a tensor's weights come into a cache, and whether anything is lost on it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..checkpoint import Checkpoint, TensorInfo
from ..schemes import Scheme
from .order import PlannedTensor

# Which dtypes hold every value of which.
_HOLDS = {"float32": {"float32", "float16", "bfloat16"}, "float16": {"float16"}, "bfloat16": {"bfloat16"}}


@dataclass(frozen=True)
class Route:
    """One way. description: for people. is_lossless: whether every value arrives exactly as the source has it."""

    description: str
    is_lossless: bool


@dataclass(frozen=True)
class RouteUse:
    """How much of a source took a route. tensors: the checkpoint's; source_bytes: what they take there."""

    route: str
    is_lossless: bool
    tensors: int
    source_bytes: int


def route_of(info: TensorInfo, planned: PlannedTensor, checkpoint: Checkpoint, scheme: Scheme, *, quantizer: str,
             keep_codes: bool) -> Route:
    """The route of one checkpoint tensor into ``planned``, a cache tensor under ``scheme``."""
    stored = stored_dtype(scheme)
    if planned.tensor.dtype == info.dtype:
        return Route(f"{info.dtype}: kept", True)
    if planned.is_quantized and keep_codes and checkpoint.has_codes(info.name, scheme):
        exact = checkpoint.has_exact_scales(info.name, stored)
        how = "kept" if exact else f"kept, scales from {info.scale_dtype} to {stored}"
        return Route(f"{info.stored_as}: codes {how}", exact)
    origin = f"dequantized from {info.stored_as}" if info.stored_as else info.dtype
    if planned.is_quantized:
        return Route(f"{origin}: {quantizer} to {scheme.bits} bits", False)
    exact = info.dtype in _HOLDS[stored]
    return Route(f"{origin}: {'kept' if info.dtype == stored else f'cast to {stored}'}", exact)


def stored_dtype(scheme: Scheme) -> str:
    """The dtype of plain tensors and scales in the shards: float32 is stored as bfloat16 (docs/format.md)."""
    return "bfloat16" if scheme.model_dtype == "float32" else scheme.model_dtype


def summarize(tensors: Iterable[PlannedTensor], checkpoint: Checkpoint, scheme: Scheme, *, quantizer: str,
              keep_codes: bool) -> tuple[RouteUse, ...]:
    """Every route that is taken, most bytes first."""
    counts: dict[Route, list[int]] = {}
    for planned in tensors:
        for name in planned.tensor.sources:
            info = checkpoint.tensors[name]
            route = route_of(info, planned, checkpoint, scheme, quantizer=quantizer, keep_codes=keep_codes)
            count = counts.setdefault(route, [0, 0])
            count[0] += 1
            count[1] += info.nbytes
    uses = [RouteUse(route.description, route.is_lossless, *count) for route, count in counts.items()]
    return tuple(sorted(uses, key=lambda use: -use.source_bytes))
