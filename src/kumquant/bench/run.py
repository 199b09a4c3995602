"""``kumquant bench``: prefill, decode, time to open, memory; in one process, through the runtime alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import RequestError
from ..models import TensorCache
from ..processors import default_threads
from ..progress import NO_PROGRESS, Progress
from ..runtime import (
    KvDtype,
    Model,
    Pace,
    PagePool,
    SamplerConfig,
    Sequence,
    StepInput,
    fetch_in_huge_pages,
    panels_paths,
)
from .machine import cpu_name, peak_rss_bytes
from .workload import BATCH_CONTEXT, FIRST_TOKEN_PROMPT, Workload

MAX_RSS_CONTEXT = 1024  # longer contexts run after the memory is read
PREFILL_CHUNK = 512
READ_BYTES = 1 << 20
DEFAULT_PREFILL, DEFAULT_DECODE, DEFAULT_CONTEXT, DEFAULT_BATCH = 512, 64, (0, 512), (1, 8)
DEFAULT_ROUNDS = 5


@dataclass(frozen=True)
class BenchSettings:
    """What to measure. context: tokens in the KV cache before decoding starts, at batch 1.

    None: the default, or what the model's context has room for if that is less.
    """

    prefill: int | None = None
    decode: int | None = None
    context: tuple[int, ...] | None = None
    batch: tuple[int, ...] | None = None
    rounds: int = DEFAULT_ROUNDS


@dataclass(frozen=True)
class BenchResult:
    """tokens_per_s: median over the rounds, the sum over the batch; min and max likewise."""

    test: Literal["prefill", "decode"]
    tokens: int
    context: int
    batch: int
    tokens_per_s: float
    min: float
    max: float


@dataclass(frozen=True)
class BenchReport:
    """kv_dtype: of keys and values.

    open_s, first_token_s: from the call that opens the warm cache to the model, and to the first token of
    a 16-token prompt. peak_rss_bytes: before batches above 1 and contexts above 1024 ran.
    """

    cpu: str
    isa: str
    threads: int
    kv_dtype: str
    results: tuple[BenchResult, ...]
    open_s: float
    first_token_s: float
    peak_rss_bytes: int


def _is_large(test: Workload) -> bool:
    return test.batch > 1 or test.context > MAX_RSS_CONTEXT


def run_bench(folder: str | Path, settings: BenchSettings | None = None, *, threads: int | None = None,
              activations: Literal["int8", "float32"] = "int8", kv_dtype: KvDtype = "auto",
              progress: Progress = NO_PROGRESS) -> BenchReport:
    """Measure the model of a cache folder, after every small test ran once to warm up. Needs no tokenizer.

    threads: default the physical cores. shrink: leave out, or shorten, what the model's context has no room
    for, instead of refusing it. Raises RequestError for a test longer than the context.
    """
    settings = settings or BenchSettings()
    _warm_page_cache(Path(folder))
    started_at = time.perf_counter()
    model = Model(TensorCache.open(folder), threads=threads or default_threads())
    open_s = time.perf_counter() - started_at
    _first_token(model, activations, kv_dtype)
    first_token_s = time.perf_counter() - started_at

    tests = planned_workloads(settings, model.context_length)
    pool = model.new_pool(max(test.batch * model.pages_for(test.length) for test in tests), activations, kv_dtype)
    runner = _Runner(model, pool)
    small = [test for test in tests if not _is_large(test)]
    speeds: dict[Workload, list[float]] = {test: [] for test in tests}
    progress.start(sum((settings.rounds + (test in small)) * test.batch * test.length for test in tests), "bench")
    try:
        for test in small:  # warms up, as llama-bench does
            runner.run(test)
            progress.advance(test.batch * test.length, "warm-up")
        for test in _in_turns(small, settings.rounds):
            speeds[test].append(runner.run(test))
            progress.advance(test.batch * test.length, test.test)
        peak = peak_rss_bytes()
        for test in _in_turns([test for test in tests if _is_large(test)], settings.rounds):
            speeds[test].append(runner.run(test))
            progress.advance(test.batch * test.length, test.test)
    finally:
        progress.finish()
    results = tuple(
        BenchResult(test.test, test.tokens, test.context, test.batch, statistics.median(rates),
                    min(rates), max(rates))
        for test, rates in speeds.items()
    )
    return BenchReport(cpu_name(), model.isa, model.threads, pool.kv_dtype, results, open_s, first_token_s, peak)


def planned_workloads(settings: BenchSettings, context_length: int) -> list[Workload]:
    """The tests in the order they are told. Raises RequestError for one that the context has no room for."""
    decode = settings.decode or min(DEFAULT_DECODE, max(context_length // 2, 1))
    prefill = settings.prefill or min(DEFAULT_PREFILL, context_length)
    contexts = settings.context or tuple(min(one, context_length - decode) for one in DEFAULT_CONTEXT)
    batches = settings.batch or (DEFAULT_BATCH if BATCH_CONTEXT + decode <= context_length else (1,))
    tests = [Workload("prefill", prefill, 0, 1)]
    tests += [Workload("decode", decode, context, 1) for context in contexts]
    tests += [Workload("decode", decode, BATCH_CONTEXT, size) for size in batches if size > 1]
    for test in tests:
        if test.length > context_length:
            raise RequestError(
                "the model's context has no room for this test",
                where=f"{test.test} at context {test.context}", found=f"{test.length} tokens",
                expected=f"at most {context_length}", hint="Choose shorter --prefill, --decode or --context.",
            )
    return list(dict.fromkeys(tests))


def _in_turns(tests: list[Workload], rounds: int) -> Iterator[Workload]:
    for _ in range(rounds):
        yield from tests


class _Runner:
    """Runs one test at a time in a pool that is large enough for each."""

    def __init__(self, model: Model, pool: PagePool) -> None:
        self._model, self._pool = model, pool

    def run(self, test: Workload) -> float:
        """Tokens per second of one round."""
        sequences = [self._new_sequence(test.length) for _ in range(test.batch)]
        try:
            seconds = (self._prefill if test.test == "prefill" else self._decode)(sequences, test)
        finally:
            for sequence in sequences:
                sequence.close()
        return test.batch * test.tokens / seconds

    def _prefill(self, sequences: list[Sequence], test: Workload) -> float:
        (sequence,) = sequences
        return _timed(lambda: self._feed(sequence, _token_ids(self._model, test.tokens), "sample"))

    def _decode(self, sequences: list[Sequence], test: Workload) -> float:
        prompt = _token_ids(self._model, test.context + 1)
        for sequence in sequences:
            self._feed(sequence, prompt[:-1], "none")
        return _timed(lambda: self._decode_steps(sequences, prompt[-1], test.tokens))

    def _decode_steps(self, sequences: list[Sequence], first_id: int, count: int) -> None:
        """Greedy, in calls of as many steps as the engine takes within a page."""
        token_ids, pace = [first_id] * len(sequences), Pace()
        while count:
            inputs = [StepInput(sequence, [last], "sample") for sequence, last in zip(sequences, token_ids)]
            outputs = pace.decode(self._model, self._pool, inputs, count)
            token_ids = [its[-1].token_id for its in outputs]
            count -= len(outputs[0])

    def _feed(self, sequence: Sequence, token_ids: list[int], output: Literal["none", "sample"]) -> None:
        for begin in range(0, len(token_ids), PREFILL_CHUNK):
            chunk = token_ids[begin:begin + PREFILL_CHUNK]
            is_last = begin + len(chunk) == len(token_ids)
            self._model.step(self._pool, [StepInput(sequence, chunk, output if is_last else "none")])

    def _new_sequence(self, length: int) -> Sequence:
        sequence = self._model.new_sequence(self._pool, SamplerConfig(temperature=0.0))
        sequence.add_pages(self._pool.allocate(self._model.pages_for(length)))
        return sequence


def _first_token(model: Model, activations: Literal["int8", "float32"], kv_dtype: KvDtype) -> None:
    count = min(FIRST_TOKEN_PROMPT, model.context_length)
    pool = model.new_pool(model.pages_for(count), activations, kv_dtype)
    sequence = model.new_sequence(pool, SamplerConfig(temperature=0.0))
    sequence.add_pages(pool.allocate(model.pages_for(count)))
    model.step(pool, [StepInput(sequence, _token_ids(model, count), "sample")])


def _token_ids(model: Model, count: int) -> list[int]:
    """Token ids that jump about the vocabulary as text does."""
    return [(index * 7919 + 17) % model.vocab_size for index in range(count)]


def _timed(work: Callable[[], None]) -> float:
    started_at = time.perf_counter()
    work()
    return time.perf_counter() - started_at


def _warm_page_cache(folder: Path) -> None:
    """Read shards and panels file once through a small buffer, so that opening is measured without the disk.

    What is not there yet of a panels file comes as the model's last opening would have left it.
    """
    cache = TensorCache.open(folder)
    buffer = bytearray(READ_BYTES)
    panels = panels_paths(cache.folder)
    for path in (*(cache.folder / shard.data_path for shard in cache.manifest.shards), *panels):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                if path in panels:
                    fetch_in_huge_pages(file.fileno())
                while file.readinto(buffer):
                    pass
