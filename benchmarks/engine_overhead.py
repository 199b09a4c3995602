"""What the engine adds to a decode step: scheduling, sampling parameters, text, stop strings, streams.

    python benchmarks/engine_overhead.py CACHE [--tokenizer FOLDER] [--threads 2] [--batch 1,8,32] [--out FILE.json]

CACHE needs a tokenizer, or borrows the files of another model's FOLDER (random weights do not care what their tokens
mean). For each batch size and way of calling, the same sequences decode twice in every round: through the native core
alone, token ids fed back by a bare loop, one step a call, and through the engine. In the engine run every native call
is timed too, so three numbers come of it, medians over all decode steps and rounds:

* bare: a step of the bare loop;
* engine: from one native call's begin to the next one's, everything in between included, divided by the call's steps;
* between: the part of that which is spent outside the native call.

"added" is engine / bare - 1. The bare loop draws with the same sampler. "steps": how many an engine's call has, on
average.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kumquant import LLM, SamplingParams
from kumquant.runtime import Model, StepInput

PROMPT_TOKENS = 16
PAGE_TOKENS = Model.page_tokens
SAMPLED = {"temperature": 0.7, "stop": ["\nUser:", "<|im_end|>"]}


@dataclass(frozen=True)
class Way:
    """How the engine is called: ``run`` drives all prompts to their end."""

    name: str
    sampling: dict[str, Any]
    run: Callable[[LLM, list[list[int]], SamplingParams], None]


@dataclass(frozen=True)
class Row:
    """Microseconds of one step of all sequences together."""

    way: str
    batch: int
    bare_us: float
    engine_us: float
    between_us: float
    steps: float

    @property
    def added(self) -> float:
        return self.engine_us / self.bare_us - 1


def generate(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> None:
    llm.generate(prompts, params)


def stream(llm: LLM, prompts: list[list[int]], params: SamplingParams) -> None:
    """As a server does it: every sequence's text is taken as soon as it is there."""
    running = [llm.stream(prompt, params) for prompt in prompts]
    while running:
        running = [one for one in running if next(one, None) is not None]


WAYS = (
    Way("generate, greedy", {"temperature": 0.0}, generate),
    Way("generate, sampled, stop strings", SAMPLED, generate),
    Way("stream, sampled, stop strings", SAMPLED, stream),
)


@dataclass(frozen=True)
class Call:
    """A native call of one or more steps, by time.perf_counter()."""

    begin: float
    end: float
    steps: int


class TimedNative:
    """The native model, with every call that runs steps noted."""

    def __init__(self, native: Any) -> None:
        self._native = native
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._native, name)

    def step(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = self._native.step(*arguments)
        self.calls.append(Call(begin, time.perf_counter(), 1))
        return result

    def decode(self, *arguments: Any) -> Any:
        begin = time.perf_counter()
        result = self._native.decode(*arguments)
        self.calls.append(Call(begin, time.perf_counter(), len(result[0])))
        return result


def prompts_of(llm: LLM, batch: int) -> list[list[int]]:
    """Prompts that share no beginning, of ids that every vocabulary has."""
    size = min(llm.model.vocab_size, 30_000)
    return [[(index * 7919 + sequence * 104_729 + 300) % size for index in range(PROMPT_TOKENS)]
            for sequence in range(batch)]


def bare_steps(model: Model, prompts: list[list[int]], params: SamplingParams, count: int) -> list[float]:
    """Seconds of each of ``count`` decode steps in a loop around the native call."""
    pages = -(-(PROMPT_TOKENS + count + 1) // PAGE_TOKENS)
    pool = model.new_pool(pages * len(prompts))
    sequences = []
    for prompt in prompts:
        sequence = model.new_sequence(pool, params.sampler_config(), prompt)
        sequence.add_pages(pool.allocate(pages))
        sequences.append(sequence)
    first = model.step(pool, [StepInput(one, prompt, "sample") for one, prompt in zip(sequences, prompts)])
    tokens = [[output.token_id] for output in first]
    natives, sample, seconds = [one.native for one in sequences], [1] * len(prompts), []
    for _ in range(count):
        begin = time.perf_counter()
        choices, _ = model.native.step(pool.native, natives, tokens, sample, True)
        tokens = [[choice[0]] for choice in choices]
        seconds.append(time.perf_counter() - begin)
    return seconds


def engine_calls(llm: LLM, way: Way, prompts: list[list[int]], params: SamplingParams) -> list[Call]:
    """The native calls of a run through the engine, the prompts' first."""
    timed = TimedNative(llm.model.native)
    llm.model.native = timed
    try:
        way.run(llm, prompts, params)
    finally:
        llm.model.native = timed._native
    return timed.calls


def by_step(calls: list[Call]) -> Iterator[tuple[float, float]]:
    """Seconds of each decode step, and those of them spent outside the native call."""
    for call, after in itertools.pairwise(calls[1:]):
        for _ in range(call.steps):
            yield (after.begin - call.begin) / call.steps, (after.begin - call.end) / call.steps


def measure(llm: LLM, way: Way, batch: int, tokens: int, rounds: int) -> Row:
    prompts = prompts_of(llm, batch)
    bare: list[float] = []
    steps: list[tuple[float, float]] = []
    in_calls: list[int] = []
    for number in range(rounds + 1):
        params = SamplingParams(max_tokens=tokens, ignore_eos=True, seed=number, **way.sampling)
        one_bare = bare_steps(llm.model, prompts, params, tokens - 1)
        calls = engine_calls(llm, way, prompts, params)
        if number:  # the first round only warms up
            bare += one_bare
            steps += by_step(calls)
            in_calls += [call.steps for call in calls[1:]]
    return Row(way.name, batch, statistics.median(bare) * 1e6, statistics.median(whole for whole, _ in steps) * 1e6,
               statistics.median(between for _, between in steps) * 1e6, statistics.fmean(in_calls))


def with_tokenizer(cache: Path, tokenizer: Path | None, folder: Path) -> Path:
    """``cache``, or a copy of it with the tokenizer files of another model."""
    if tokenizer is None:
        if not (cache / "tokenizer.json").is_file():
            raise SystemExit(f"{cache} has no tokenizer.json; name a folder that has one with --tokenizer")
        return cache
    copy = folder / "cache"
    shutil.copytree(cache, copy)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / name, copy / name)
    return copy


def rows(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    with LLM(folder, threads=options.threads) as llm:
        llm.generate([prompts_of(llm, 1)[0]], SamplingParams(max_tokens=2))  # makes the engine
        for batch in options.batch:
            for way in WAYS:
                yield measure(llm, way, batch, options.tokens, options.rounds)


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder whose tokenizer files to use")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=lambda text: [int(one) for one in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=128, help="decoded by each sequence")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the rows there, as JSON")
    options = parser.parse_args()
    found = []
    print(f"{'way':34}{'batch':>6}{'bare us':>10}{'engine us':>11}{'between us':>12}{'added':>8}{'steps':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(options, with_tokenizer(options.cache, options.tokenizer, Path(folder))):
            print(f"{row.way:34}{row.batch:6}{row.bare_us:10.0f}{row.engine_us:11.0f}{row.between_us:12.1f}"
                  f"{row.added:8.1%}{row.steps:7.1f}", flush=True)
            found.append(asdict(row) | {"added": row.added})
    if options.out is not None:
        text = json.dumps({"cache": options.cache.name, "threads": options.threads, "rows": found}, indent=1)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
