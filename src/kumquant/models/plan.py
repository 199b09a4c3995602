"""What a family puts into a cache: one CacheTensor each, before a mode splits it into codes and scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "embedding", "experts", "router", "plain"]


@dataclass(frozen=True)
class CacheTensor:
    """One tensor of the cache and where it comes from.

    name: cache name, with ".weight"/".bias" ("model.layers.0.self_attn.qkv_proj.weight"); a quantized one is
    stored as "<stem>.q_weight" and "<stem>.q_scale" where stem is name without ".weight".
    shape: logical shape, (out, in) for a matrix. source_shapes: the shape each source must have in the
    checkpoint. sources: checkpoint names; several are stacked along axis 0 in this order.
    is_head: the output head (plain in modes that leave the ends unquantized).
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    source_shapes: tuple[tuple[int, ...], ...]
    is_head: bool = False

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".weight")
