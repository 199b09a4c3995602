"""From mapped checkpoint tensors to a cache's records, block by block, with threads working ahead.

Weights are cut between rows into blocks of a few MiB. Worker threads read, cast and quantize blocks a
little ahead of the thread that writes them in order, and let go of the source pages they have used. So
memory depends on the block size and the number of threads, plus the scales of one tensor (at most an eighth
of a 16-bit source); in layout KN plus its codes too, because a row of the transpose needs every row of the
weight. Several modes take turns, tensor by tensor: each tensor is read from the disk once, and from the system's
cache again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from threading import Lock

import numpy as np

from ..checkpoint import Checkpoint, TensorInfo
from ..dtypes import DTYPES
from ..models import CacheTensor
from ..progress import Progress
from ..quant import RowQuantizer, cast, new_outputs
from ..tensor_cache import CacheWriter
from .order import PlannedTensor

BLOCK_BYTES = 2 << 20
# Converted blocks that may wait beside the ones being worked on.
_BLOCKS_AHEAD = 2
# The bits of infinity; whatever has more, the sign apart, is a NaN.
_FIRST_INFINITE = {"float16": 0x7C00, "bfloat16": 0x7F80, "float32": 0x7F800000}


@dataclass(frozen=True)
class Block:
    """Rows [begin, end) of source ``name`` as a matrix of ``width`` columns; nbytes in the checkpoint.

    transposed: they are columns of the source, which has ``width`` rows.
    """

    name: str
    width: int
    begin: int
    end: int
    nbytes: int
    transposed: bool = False


@dataclass(frozen=True)
class ConvertedBlock:
    """What becomes of a block: one array for each record of its tensor. is_finite: whether all
    floats in them are.
    """

    arrays: tuple[np.ndarray, ...]
    nbytes: int
    is_finite: bool


@dataclass(frozen=True)
class Target:
    """A cache in the making, one of those that come from one pass over a checkpoint.

    tensors: in emission order, the same one for every target. keep_codes: take codes and scales over where the
    source brings its own (``Checkpoint.has_codes``). not_finite: filled in: tensors that got an infinity or a NaN.
    """

    tensors: Sequence[PlannedTensor]
    quantizer: RowQuantizer
    keep_codes: bool
    writer: CacheWriter
    not_finite: dict[str, None] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One tensor of one target."""

    planned: PlannedTensor
    blocks: Sequence[Block]
    target: Target

    @property
    def nbytes(self) -> int:
        """Of the tensor's sources in the checkpoint."""
        return sum(block.nbytes for block in self.blocks)


def blocks_of(planned: PlannedTensor, checkpoint: Checkpoint, keep_codes: bool = False) -> list[Block]:
    """The blocks of a tensor in the order of its records: source after source, in the tensor's row order.

    Sources that stand side by side are cut alike, and the blocks of one strip of rows follow one another.
    keep_codes: see ``Target``.
    """
    tensor = planned.tensor
    if tensor.side_by_side:
        return _strips_of(tensor, checkpoint)
    width = tensor.shape[-1] if planned.is_quantized or tensor.transposed else 1
    blocks = []
    for name in tensor.sources:
        info = checkpoint.tensors[name]
        rows = info.num_values // width if width else 0
        kept = keep_codes and planned.is_quantized and checkpoint.has_codes(name, planned.scheme)
        row_bytes = info.nbytes // max(1, rows) if kept else width * _bytes_as_read(info)
        step = max(1, BLOCK_BYTES // max(1, row_bytes))
        scale = rows // info.shape[0] if tensor.row_order else 1  # a plain matrix is cut between its values
        for first, last in tensor.row_order or ((0, rows),):
            for begin in range(first * scale, last * scale, step):
                end = min(begin + step, last * scale)
                blocks.append(Block(name, width, begin, end, _up_to(end, rows, info) - _up_to(begin, rows, info),
                                    tensor.transposed))
    return blocks


def _bytes_as_read(info: TensorInfo) -> int:
    """Of one value; packed weights grow when they are read."""
    return DTYPES[info.dtype].itemsize if info.dtype in DTYPES else 4


def _up_to(row: int, rows: int, info: TensorInfo) -> int:
    """Bytes of the tensor before ``row`` of its ``rows``; those of packed values are no whole number each."""
    return row * info.nbytes // rows


def _strips_of(tensor: CacheTensor, checkpoint: Checkpoint) -> list[Block]:
    infos = [checkpoint.tensors[name] for name in tensor.sources]
    rows = tensor.shape[0]
    step = max(1, BLOCK_BYTES * rows // max(1, sum(info.nbytes for info in infos)))
    return [Block(info.name, info.shape[1], begin, min(begin + step, rows),
                  info.nbytes // rows * (min(begin + step, rows) - begin))
            for begin in range(0, rows, step) for info in infos]


class Converter:
    """Turns blocks into arrays; its methods may run in several threads at once."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._columns_read: Counter[str] = Counter()  # of transposed sources
        self._lock = Lock()

    def prefetch(self, block: Block) -> None:
        """Ask for the block's pages before a thread is free to work on it."""
        if block.transposed:  # every strip lies in all pages
            self._checkpoint.prefetch(block.name)
        else:
            self._checkpoint.prefetch(block.name, *self._byte_range(block))

    def convert(self, block: Block, job: Job) -> ConvertedBlock:
        """Cast, or cast and quantize, one block; its source pages are released."""
        scheme = job.planned.scheme
        if not job.planned.is_quantized:
            values = self._read(block, job.planned.tensor)
            dtype = job.planned.tensor.dtype or scheme.model_dtype
            result = values if values.dtype == DTYPES[dtype] else cast(values, dtype)
            arrays: tuple[np.ndarray, ...] = (result.copy() if result is values else result,)
        elif (job.target.keep_codes and self._checkpoint.has_codes(block.name, scheme)
              and block.transposed == self._checkpoint.has_transposed_codes(block.name)):
            codes, scales = self._checkpoint.read_codes(block.name, scheme, block.begin, block.end)
            arrays = (codes, cast(scales, scheme.model_dtype))
        else:
            values = self._read(block, job.planned.tensor)
            arrays = new_outputs(len(values), block.width, scheme)
            job.target.quantizer(values, scheme, *arrays)
        self._release(block)
        return ConvertedBlock(arrays, block.nbytes, _is_finite(arrays[-1]))

    def _read(self, block: Block, tensor: CacheTensor) -> np.ndarray:
        if block.transposed:
            return self._checkpoint.read_columns(block.name, block.begin, block.end)
        values = self._checkpoint.read_rows(block.name, block.width, block.begin, block.end)
        return values + values.dtype.type(1) if tensor.plus_one else values

    def _release(self, block: Block) -> None:
        if not block.transposed:
            self._checkpoint.release(block.name, *self._byte_range(block))
            return
        with self._lock:  # the pages stay until the last strip has been read, whichever that is
            self._columns_read[block.name] += block.end - block.begin
            is_last = self._columns_read[block.name] % self._checkpoint.tensors[block.name].shape[1] == 0
        if is_last:
            self._checkpoint.release(block.name)

    def _byte_range(self, block: Block) -> tuple[int, int]:
        info = self._checkpoint.tensors[block.name]
        rows = info.num_values // block.width
        return _up_to(block.begin, rows, info), _up_to(block.end, rows, info)


def write_tensors(targets: Sequence[Target], checkpoint: Checkpoint, threads: int, progress: Progress) -> None:
    """Convert every tensor for every target, passing over those whose records need no data.

    threads: workers that convert blocks. progress counts the checkpoint's bytes, once for each target.
    """
    jobs = [Job(planned, blocks_of(planned, checkpoint, target.keep_codes), target)
            for same_tensor in zip(*(target.tensors for target in targets), strict=True)
            for planned, target in zip(same_tensor, targets, strict=True)]
    progress.start(_nbytes(jobs), "convert")
    try:
        remaining = [job for job in jobs if not all(map(job.target.writer.is_finished, job.planned.record_names))]
        progress.advance(_nbytes(jobs) - _nbytes(remaining))
        with (ThreadPoolExecutor(threads, thread_name_prefix="kumquant-convert") as pool,
              closing(_work_ahead(pool, remaining, Converter(checkpoint), threads + _BLOCKS_AHEAD)) as converted):
            for job in remaining:
                blocks = _reporting(islice(converted, len(job.blocks)), job, progress)
                _add_records(job.planned, blocks, job.target.writer)
    finally:
        progress.finish()


def _nbytes(jobs: Iterable[Job]) -> int:
    return sum(job.nbytes for job in jobs)


def _work_ahead(pool: ThreadPoolExecutor, jobs: Iterable[Job], converter: Converter,
                depth: int) -> Generator[ConvertedBlock, None, None]:
    """The converted blocks of all jobs in order; at most ``depth`` are under way or wait to be taken."""
    under_way: deque[Future[ConvertedBlock]] = deque()
    try:
        for job in jobs:
            for block in job.blocks:
                if len(under_way) == depth:
                    yield under_way.popleft().result()
                converter.prefetch(block)
                under_way.append(pool.submit(converter.convert, block, job))
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


def _reporting(blocks: Iterable[ConvertedBlock], job: Job, progress: Progress) -> Iterator[ConvertedBlock]:
    name = job.planned.tensor.name
    for block in blocks:
        if not block.is_finite:
            job.target.not_finite[name] = None
        yield block
        progress.advance(block.nbytes, name)


def _is_finite(values: np.ndarray) -> bool:
    """Whether floats are, by two maxima of their bits: little time, no memory.

    Asked of scales it finds the groups that have an infinity. A NaN leaves no trace there: a group's scale is made
    of its other weights, and looking at them all would cost a twentieth of the conversion.
    """
    name = values.dtype.name
    if name not in _FIRST_INFINITE or not values.size:
        return True
    first, size = _FIRST_INFINITE[name], values.itemsize
    positive, negative = values.view(f"i{size}").max(), values.view(f"u{size}").max()
    return bool(positive < first and negative < first + (1 << (8 * size - 1)))


def _add_records(planned: PlannedTensor, blocks: Iterator[ConvertedBlock], writer: CacheWriter) -> None:
    first, *rest = planned.record_names
    if planned.tensor.side_by_side:
        writer.add(first, _joined(blocks, len(planned.tensor.sources)))
        return
    if not rest:
        writer.add(first, (block.arrays[0] for block in blocks))
        return
    if planned.is_transposed:
        for name, transpose in zip(planned.record_names, _transposes(planned, blocks), strict=True):
            writer.add(name, transpose)
        return
    scales: list[np.ndarray] = []

    def codes() -> Iterator[np.ndarray]:
        for block in blocks:
            scales.append(block.arrays[1])
            yield block.arrays[0]

    if writer.is_finished(first):  # its shard is kept, that of the scales is not
        deque(codes(), maxlen=0)
    else:
        writer.add(first, codes())
    writer.add(rest[0], scales)


def _joined(blocks: Iterator[ConvertedBlock], num_sources: int) -> Iterator[np.ndarray]:
    """Strips of rows of all sources side by side."""
    while strip := [block.arrays[0] for block in islice(blocks, num_sources)]:
        yield np.concatenate(strip, axis=1)


def _transposes(planned: PlannedTensor, blocks: Iterator[ConvertedBlock]) -> tuple[np.ndarray, ...]:
    """Codes (words, rows) and scales (groups, rows) of a whole tensor, filled block by block."""
    whole = tuple(np.empty(shape, DTYPES[dtype]) for _, shape, dtype in planned.records)
    row = 0
    for block in blocks:
        end = row + len(block.arrays[0])
        for transpose, part in zip(whole, block.arrays, strict=True):
            transpose[:, row:end] = part.T
        row = end
    return whole
