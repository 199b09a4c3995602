"""How far the numbers in a new cache are from the source's, measured on a sample of rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint
from ..tensor_cache import StoredTensors, decode_groups
from .order import PlannedTensor

_ROWS = 8  # of each source: enough for two digits over a model, and read in no time


@dataclass(frozen=True)
class Loss:
    """What rounding did to one class of weights.

    tensors: "embedding", "head", "linear" or "experts". rms_relative_error: root of the summed squares of what was
    lost over that of the weights, on a few rows of every source; 0 where codes were kept.
    """

    tensors: str
    rms_relative_error: float


def measure(tensors: Iterable[PlannedTensor], checkpoint: Checkpoint, folder: Path) -> tuple[Loss, ...]:
    """The loss of quantized tensors, by class. Transposed layouts and sources in another order are left out."""
    cache = StoredTensors(folder)
    sums: dict[str, np.ndarray] = {}
    for planned in tensors:
        tensor = planned.tensor
        if not planned.is_quantized or planned.scheme.layout != "NK" or not planned.scheme.has_groups:
            continue
        if tensor.transposed or tensor.row_order or tensor.side_by_side:
            continue
        total = sums.setdefault("head" if tensor.is_head else tensor.kind, np.zeros(2))
        first_row = 0
        for name in tensor.sources:
            rows = checkpoint.tensors[name].num_values // tensor.shape[-1]
            total += _squares(planned, cache, checkpoint, name, first_row, rows)
            first_row += rows
            checkpoint.release(name)  # a few rows bring many pages with them
        for record in planned.record_names:
            cache.release(record)
    return tuple(Loss(kind, float(np.sqrt(lost / whole)) if whole else 0.0) for kind, (lost, whole) in sums.items())


def _squares(planned: PlannedTensor, cache: StoredTensors, checkpoint: Checkpoint, name: str, first_row: int,
             rows: int) -> np.ndarray:
    """(sum of squared differences, sum of squared weights) on rows from the middle of one source."""
    width = planned.tensor.shape[-1]
    begin = rows // 2
    end = min(begin + _ROWS, rows)
    expected = checkpoint.read_rows(name, width, begin, end).astype(np.float32)
    expected = expected + 1 if planned.tensor.plus_one else expected
    part = slice(first_row + begin, first_row + end)
    codes, scales = (cache[record].reshape(-1, cache[record].shape[-1])[part] for record in planned.record_names)
    found = decode_groups(codes, scales, planned.scheme, width, "NK")
    finite = np.isfinite(expected) & np.isfinite(found)
    lost = (found - expected)[finite].astype(np.float64)
    return np.array([(lost**2).sum(), (expected[finite].astype(np.float64) ** 2).sum()])
