"""How far the numbers in a new cache are from the source's, measured on a sample of rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint
from ..models import CacheTensor
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
    """The loss of tensors that are quantized in groups, by class."""
    cache = StoredTensors(folder)
    sums: dict[str, np.ndarray] = {}
    for planned in tensors:
        tensor = planned.tensor
        if not planned.is_quantized or not planned.scheme.has_groups:
            continue
        total = sums.setdefault("head" if tensor.is_head else tensor.kind, np.zeros(2))
        for sample in _samples(tensor, checkpoint):
            total += _squares(planned, sample, _expected(tensor, sample, checkpoint), cache)
            checkpoint.release(sample.name)  # a few rows bring many pages with them
        for record in planned.record_names:
            cache.release(record)
    return tuple(Loss(kind, float(np.sqrt(lost / whole)) if whole else 0.0) for kind, (lost, whole) in sums.items())


@dataclass(frozen=True)
class _Sample:
    """Rows [begin, end) of source ``name`` (its columns, if the tensor is transposed) are rows from ``row`` on."""

    name: str
    begin: int
    end: int
    row: int


def _samples(tensor: CacheTensor, checkpoint: Checkpoint) -> Iterator[_Sample]:
    """A few rows from the middle of every source."""
    first_row = 0
    for name in tensor.sources:
        rows = checkpoint.tensors[name].num_values // tensor.shape[-1]
        ranges = tensor.row_order or ((0, rows),)
        middle = len(ranges) // 2
        low, high = ranges[middle]
        begin = low + (high - low) // 2
        before = sum(end - start for start, end in ranges[:middle])
        yield _Sample(name, begin, min(begin + _ROWS, high), first_row + before + begin - low)
        first_row += rows


def _expected(tensor: CacheTensor, sample: _Sample, checkpoint: Checkpoint) -> np.ndarray:
    """float32 (rows, width): what the source says."""
    if tensor.transposed:
        values = checkpoint.read_columns(sample.name, sample.begin, sample.end)
    else:
        values = checkpoint.read_rows(sample.name, tensor.shape[-1], sample.begin, sample.end)
    return values.astype(np.float32) + np.float32(tensor.plus_one)


def _squares(planned: PlannedTensor, sample: _Sample, expected: np.ndarray, cache: StoredTensors) -> np.ndarray:
    """(sum of squared differences, sum of squared weights) of a sample."""
    part = slice(sample.row, sample.row + len(expected))
    codes, scales = (cache[record][:, part].T if planned.is_transposed else
                     cache[record].reshape(-1, cache[record].shape[-1])[part] for record in planned.record_names)
    found = decode_groups(codes, scales, planned.scheme, expected.shape[1], "NK")
    finite = np.isfinite(expected) & np.isfinite(found)
    lost = (found - expected)[finite].astype(np.float64)
    return np.array([(lost**2).sum(), (expected[finite].astype(np.float64) ** 2).sum()])
