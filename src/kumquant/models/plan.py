"""What a family puts into a cache: one CacheTensor each, before a mode splits it into codes and scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["linear", "embedding", "experts", "router", "plain"]


@dataclass(frozen=True)
class CacheTensor:
    """One tensor of the cache and where it comes from.

    name: cache name, with ".weight"/".bias" ("model.layers.0.self_attn.qkv_proj.weight"); a quantized one is
    stored as "<stem>.q_weight" and "<stem>.q_scale" where stem is name without ".weight".
    shape: logical shape, (out, in) for a matrix. source_shapes: the shape each source must have in the
    checkpoint. sources: checkpoint names; several are stacked along axis 0 in this order (experts too: their
    rows follow one another, and shape gives the experts an axis of their own).
    is_head: the output head (plain in modes that leave the ends unquantized).

    What else happens to the sources, before the one cast to the stored dtype:
    row_order: [begin, end) ranges of the rows of the only source, in the order they are written; empty means as
    they are. transposed: the sources are (in, out). plus_one: 1 is added, in the checkpoint's dtype.
    side_by_side: the sources are joined along axis 1 instead of stacked.
    dtype: what the tensor is stored in, whatever the mode; None: the mode's model dtype.
    """

    name: str
    kind: Kind
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    source_shapes: tuple[tuple[int, ...], ...]
    is_head: bool = False
    row_order: tuple[tuple[int, int], ...] = ()
    transposed: bool = False
    plus_one: bool = False
    side_by_side: bool = False
    dtype: str | None = None

    def assembled(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        """The tensor from its sources, whole and in their dtype: what ``convert`` does block by block."""
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.row_order:
            whole = np.concatenate([whole[begin:end] for begin, end in self.row_order])
        if self.transposed:
            whole = np.ascontiguousarray(whole.T)
        return whole.reshape(self.shape) + whole.dtype.type(1) if self.plus_one else whole.reshape(self.shape)

    @property
    def stem(self) -> str:
        return self.name.removesuffix(".weight")
