"""A cache's tensors taken apart again into those of the checkpoint they were fused from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import UnsupportedError
from ..models import CacheTensor, TensorCache
from ..tensor_cache import decode_groups

_BLOCK_VALUES = 1 << 20


@dataclass(frozen=True)
class SourceTensor:
    """One checkpoint tensor inside a cache tensor: ``name`` is rows [begin, end) of ``tensor``.

    shape: the checkpoint's own.
    """

    name: str
    shape: tuple[int, ...]
    tensor: CacheTensor
    begin: int
    end: int

    @property
    def width(self) -> int:
        return self.tensor.shape[-1] if len(self.tensor.shape) > 1 else 1


def sources_of(cache: TensorCache) -> list[SourceTensor]:
    """Every checkpoint tensor that the cache holds, once.

    Raises UnsupportedError where a family joins its tensors in another way than by rows.
    """
    found: dict[str, SourceTensor] = {}
    family = cache.family
    heads = [name for name in cache if family.names_hold_head([name])]
    for tensor in family.plan(cache.config, heads):  # other records must not look like a checkpoint's prefix
        if tensor.side_by_side or tensor.row_order or tensor.kind == "experts":
            raise UnsupportedError("the tensors of this family cannot be taken apart yet", where=tensor.name,
                                   found=cache.family.model_type)
        begin = 0
        for name, shape in zip(tensor.sources, tensor.source_shapes, strict=True):
            rows = shape[1] if tensor.transposed else shape[0]
            found.setdefault(name, SourceTensor(name, shape, tensor, begin, begin + rows))
            begin += rows
    return list(found.values())


def is_quantized(cache: TensorCache, tensor: CacheTensor) -> bool:
    """Whether the cache has codes of the tensor, not numbers."""
    return tensor.name not in cache


def stored_dtype(cache: TensorCache, tensor: CacheTensor) -> str:
    """In what the values are stored: of scales where the tensor is quantized."""
    record = f"{tensor.stem}.q_scale" if is_quantized(cache, tensor) else tensor.name
    return cache.record(record).stored_dtype


def packed(cache: TensorCache, tensor: CacheTensor) -> tuple[np.ndarray, np.ndarray]:
    """Codes (rows, words) and scales (rows, groups) of a tensor that is quantized in groups; views of the shards."""
    codes, scales = cache[f"{tensor.stem}.q_weight"], cache[f"{tensor.stem}.q_scale"]
    is_transposed = cache.scheme is not None and cache.scheme.for_kind(tensor.kind).layout == "KN"
    return (codes.T, scales.T) if is_transposed else (codes, scales)


def float_blocks(cache: TensorCache, source: SourceTensor, order: np.ndarray | None = None, *,
                 keeps_one: bool = False) -> Iterator[np.ndarray]:
    """Rows as float32 (rows, width), a few at a time, as the checkpoint had them but for the loss of the mode.

    order: which row (counted from the first of ``source``) comes where. keeps_one: leave in the 1 that the cache
    adds to some norms; taking it out and adding it again would round.
    """
    step = max(1, _BLOCK_VALUES // source.width)
    rows = np.arange(source.begin, source.end) if order is None else source.begin + order
    read = _reader(cache, source)
    for begin in range(0, len(rows), step):
        values = read(rows[begin : begin + step])
        yield values - np.float32(1.0) if source.tensor.plus_one and not keeps_one else values


def _reader(cache: TensorCache, source: SourceTensor) -> Callable[[np.ndarray], np.ndarray]:
    """A function from rows of the cache tensor to float32 (rows, width)."""
    name, width, scheme = source.tensor.name, source.width, cache.scheme
    if name in cache:
        stored = cache[name].reshape(-1, width)
        return lambda rows: stored[rows].astype(np.float32)
    if scheme is None or not scheme.has_groups:
        whole = cache.dequantize(name)
        return lambda rows: whole[rows]
    codes, scales = packed(cache, source.tensor)
    return lambda rows: decode_groups(codes[rows], scales[rows], scheme, width, "NK")
