"""From mapped checkpoint tensors to a cache's records, block by block, with threads working ahead.

Weights are cut between rows into blocks of a few MiB. Worker threads read, cast and quantize blocks a
little ahead of the thread that writes them in order, and let go of the source pages they have used. So
memory depends on the block size and the number of threads, plus the scales of one tensor (at most an eighth
of a 16-bit source).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

import numpy as np

from ..checkpoint import Checkpoint
from ..progress import Progress
from ..quant import RowQuantizer, cast, new_outputs
from ..schemes import Scheme
from ..tensor_cache import CacheWriter
from .order import PlannedTensor

BLOCK_BYTES = 2 << 20
# Converted blocks that may wait beside the ones being worked on.
_BLOCKS_AHEAD = 2


@dataclass(frozen=True)
class Block:
    """Rows [begin, end) of source ``name`` as a matrix of ``width`` columns; nbytes in the checkpoint."""

    name: str
    width: int
    begin: int
    end: int
    nbytes: int


@dataclass(frozen=True)
class ConvertedBlock:
    """What becomes of a block: one array for each record of its tensor."""

    arrays: tuple[np.ndarray, ...]
    nbytes: int


Job = tuple[PlannedTensor, Sequence[Block]]


def blocks_of(planned: PlannedTensor, checkpoint: Checkpoint) -> list[Block]:
    """The blocks of a tensor in the order of its records: source after source, rows ascending."""
    width = planned.tensor.shape[-1] if planned.is_quantized else 1
    blocks = []
    for name in planned.tensor.sources:
        info = checkpoint.tensors[name]
        rows = info.num_values // width if width else 0
        row_bytes = info.nbytes // rows if rows else 0
        step = max(1, BLOCK_BYTES // row_bytes) if row_bytes else 1
        for begin in range(0, rows, step):
            end = min(begin + step, rows)
            blocks.append(Block(name, width, begin, end, (end - begin) * row_bytes))
    return blocks


class Converter:
    """Turns blocks into arrays; its methods may run in several threads at once."""

    def __init__(self, checkpoint: Checkpoint, scheme: Scheme, quantizer: RowQuantizer,
                 keep_codes: bool = True) -> None:
        """keep_codes: take codes and scales over where the source brings its own (``Checkpoint.has_codes``)."""
        self._checkpoint, self._scheme, self._quantizer = checkpoint, scheme, quantizer
        self._keep_codes = keep_codes

    def prefetch(self, block: Block) -> None:
        """Ask for the block's pages before a thread is free to work on it."""
        self._checkpoint.prefetch(block.name, *self._byte_range(block))

    def convert(self, block: Block, is_quantized: bool) -> ConvertedBlock:
        """Cast, or cast and quantize, one block; its source pages are released."""
        if is_quantized and self._keep_codes and self._checkpoint.has_codes(block.name, self._scheme):
            return self._take_over(block)
        values = self._checkpoint.read_rows(block.name, block.width, block.begin, block.end)
        if is_quantized:
            codes, scales = new_outputs(len(values), block.width, self._scheme)
            self._quantizer(values, self._scheme, codes, scales)
            converted = ConvertedBlock((codes, scales), block.nbytes)
        else:
            result = cast(values, self._scheme.model_dtype)
            converted = ConvertedBlock((result.copy() if result is values else result,), block.nbytes)
        self._checkpoint.release(block.name, *self._byte_range(block))
        return converted

    def _take_over(self, block: Block) -> ConvertedBlock:
        codes, scales = self._checkpoint.read_codes(block.name, self._scheme, block.begin, block.end)
        self._checkpoint.release(block.name, *self._byte_range(block))
        return ConvertedBlock((codes, cast(scales, self._scheme.model_dtype)), block.nbytes)

    def _byte_range(self, block: Block) -> tuple[int, int]:
        row_bytes = block.nbytes // (block.end - block.begin)
        return block.begin * row_bytes, block.end * row_bytes


def write_tensors(tensors: Sequence[PlannedTensor], checkpoint: Checkpoint, converter: Converter,
                  writer: CacheWriter, threads: int, progress: Progress) -> None:
    """Convert every tensor and add its records to ``writer``, passing over tensors that need no data.

    threads: workers that convert blocks. progress counts the checkpoint's bytes.
    """
    jobs = [(planned, blocks_of(planned, checkpoint)) for planned in tensors]
    progress.start(_nbytes(jobs), "convert")
    try:
        remaining = [job for job in jobs if not all(map(writer.is_finished, job[0].record_names))]
        progress.advance(_nbytes(jobs) - _nbytes(remaining))
        with (ThreadPoolExecutor(threads, thread_name_prefix="kumquant-convert") as pool,
              closing(_work_ahead(pool, remaining, converter, threads + _BLOCKS_AHEAD)) as converted):
            for planned, blocks in remaining:
                _add_records(planned, _reporting(islice(converted, len(blocks)), planned, progress), writer)
    finally:
        progress.finish()


def _nbytes(jobs: Iterable[Job]) -> int:
    return sum(block.nbytes for _, blocks in jobs for block in blocks)


def _work_ahead(pool: ThreadPoolExecutor, jobs: Iterable[Job], converter: Converter,
                depth: int) -> Generator[ConvertedBlock, None, None]:
    """The converted blocks of all jobs in order; at most ``depth`` are under way or wait to be taken."""
    under_way: deque[Future[ConvertedBlock]] = deque()
    try:
        for planned, blocks in jobs:
            for block in blocks:
                if len(under_way) == depth:
                    yield under_way.popleft().result()
                converter.prefetch(block)
                under_way.append(pool.submit(converter.convert, block, planned.is_quantized))
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()


def _reporting(blocks: Iterable[ConvertedBlock], planned: PlannedTensor,
               progress: Progress) -> Iterator[ConvertedBlock]:
    for block in blocks:
        yield block
        progress.advance(block.nbytes, planned.tensor.name)


def _add_records(planned: PlannedTensor, blocks: Iterator[ConvertedBlock], writer: CacheWriter) -> None:
    first, *rest = planned.record_names
    if not rest:
        writer.add(first, (block.arrays[0] for block in blocks))
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
