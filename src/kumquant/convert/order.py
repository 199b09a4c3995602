"""In which order a cache's tensors are written, as what records, and how many values were loaded for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..models import CacheTensor
from ..schemes import Scheme

# (name, shape, logical dtype), as tensor_cache plans them.
RecordShape = tuple[str, tuple[int, ...], str]


@dataclass(frozen=True)
class PlannedTensor:
    """One cache tensor and its records: one, or codes and scales when it is quantized."""

    tensor: CacheTensor
    records: tuple[RecordShape, ...]

    @property
    def is_quantized(self) -> bool:
        return len(self.records) == 2

    @property
    def record_names(self) -> list[str]:
        return [name for name, _, _ in self.records]


def plan_tensors(tensors: Iterable[CacheTensor], checkpoint: Checkpoint,
                 scheme: Scheme) -> list[PlannedTensor]:
    """The tensors in emission order, with their records under ``scheme``."""
    ordered = emission_order(tensors, checkpoint.tensors)
    return [PlannedTensor(tensor, _records(tensor, scheme)) for tensor in ordered]


def emission_order(tensors: Iterable[CacheTensor], source_names: Iterable[str]) -> list[CacheTensor]:
    """Every cache tensor at the first of its sources; a head before others of the same source.

    source_names: the checkpoint's, in its order. Source: docs/format.md (FORMAT.md 2.2).
    """
    users: dict[str, list[CacheTensor]] = {}
    for tensor in sorted(tensors, key=lambda tensor: not tensor.is_head):
        for source in tensor.sources:
            users.setdefault(source, []).append(tensor)
    return list(dict.fromkeys(tensor for name in source_names for tensor in users.get(name, ())))


def is_quantized(tensor: CacheTensor, scheme: Scheme) -> bool:
    """Whether ``scheme`` stores the tensor as codes and scales. Source: docs/format.md (FORMAT.md 4.1)."""
    if not scheme.is_quantized or tensor.kind not in ("linear", "embedding", "experts"):
        return False
    return scheme.quantize_ends or not (tensor.kind == "embedding" or tensor.is_head)


def _records(tensor: CacheTensor, scheme: Scheme) -> tuple[RecordShape, ...]:
    if not is_quantized(tensor, scheme):
        return ((tensor.name, tensor.shape, scheme.model_dtype),)
    *leading, width = tensor.shape
    return (
        (f"{tensor.stem}.q_weight", (*leading, scheme.num_words(width)), "uint32"),
        (f"{tensor.stem}.q_scale", (*leading, scheme.num_groups(width)), scheme.model_dtype),
    )


def count_loaded_values(tensors: Sequence[CacheTensor], checkpoint: Checkpoint,
                        is_uncounted: Callable[[str], bool]) -> int:
    """Checkpoint values as MLC's loader would load them: the denominator of BitsPerParam.

    tensors: in emission order. Files are loaded whole, kept while every next tensor finds its sources in
    them, and counted each time they are loaded. Source: docs/format.md (FORMAT.md 1.4).
    """
    values_of: dict[str, int] = {file.name: 0 for file in checkpoint.files}
    for info in checkpoint.tensors.values():
        if not is_uncounted(info.name):
            values_of[info.file] += info.num_values
    if not checkpoint.has_index:
        return sum(values_of.values())
    count = 0
    loaded: set[str] = set()
    for tensor in tensors:
        needed = {checkpoint.tensors[name].file for name in tensor.sources}
        missing = needed - loaded
        if missing:
            loaded = needed
            count += sum(values_of[file] for file in missing)
    return count
