"""In which order a cache's tensors are written, as what records, and how many values were loaded for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..checkpoint import Checkpoint
from ..models import CacheTensor, RecordShape, records_of, scheme_of
from ..schemes import Scheme


@dataclass(frozen=True)
class PlannedTensor:
    """One cache tensor and its records: one, or codes and scales when it is quantized.

    scheme: as it applies to this tensor (embeddings are never transposed).
    """

    tensor: CacheTensor
    scheme: Scheme
    records: tuple[RecordShape, ...]

    @property
    def is_quantized(self) -> bool:
        return len(self.records) > 1

    @property
    def is_transposed(self) -> bool:
        return self.is_quantized and self.scheme.layout == "KN"

    @property
    def record_names(self) -> list[str]:
        return [name for name, _, _ in self.records]


def plan_tensors(tensors: Iterable[CacheTensor], checkpoint: Checkpoint,
                 scheme: Scheme) -> list[PlannedTensor]:
    """The tensors in emission order, with their records under ``scheme``."""
    ordered = emission_order(tensors, checkpoint.tensors)
    return [PlannedTensor(tensor, scheme_of(tensor, scheme), records_of(tensor, scheme)) for tensor in ordered]


def emission_order(tensors: Iterable[CacheTensor], source_names: Iterable[str]) -> list[CacheTensor]:
    """Every cache tensor at the first of its sources; a head before others of the same source.

    source_names: the checkpoint's, in its order. Source: docs/format.md (FORMAT.md 2.2).
    """
    users: dict[str, list[CacheTensor]] = {}
    for tensor in sorted(tensors, key=lambda tensor: not tensor.is_head):
        for source in tensor.sources:
            users.setdefault(source, []).append(tensor)
    return list(dict.fromkeys(tensor for name in source_names for tensor in users.get(name, ())))


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
