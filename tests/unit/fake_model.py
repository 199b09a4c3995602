"""A model without weights at the runtime's seam: same interface, a next token that is a hash of everything
before it.

It checks what the native model would: pages enough for every token, no page in two sequences unless it is
shared and full, tokens fed once and in order. Its KV cache holds token ids, so a wrong page shows as a wrong
next token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import numpy as np

from kumquant.errors import CapacityError
from kumquant.models.spec import RopeSpec
from kumquant.runtime import SamplerConfig, StepInput, StepOutput

PAGE_SIZE = 4


class FakePool:
    page_bytes = 1024

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.reset()

    def reset(self) -> None:
        self.cells: dict[int, list[int]] = {}
        self._free = list(range(self.num_pages))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        if count > len(self._free):
            raise CapacityError("out of pages")
        taken, self._free = self._free[:count], self._free[count:]
        for page in taken:
            self.cells[page] = []
        return taken

    def free(self, pages: list[int]) -> None:
        for page in pages:
            assert page in self.cells, "freed twice"
            del self.cells[page]
            self._free.append(page)


class FakeSequence:
    def __init__(self, sampler: SamplerConfig | None, prompt_ids: list[int], end_ids: Iterable[int]) -> None:
        self.sampler, self.prompt_ids, self.end_ids = sampler, list(prompt_ids), set(end_ids)
        self.length, self.pages, self.num_drawn = 0, [], 0

    def add_pages(self, pages: list[int]) -> None:
        self.pages += pages

    def rewind(self, length: int) -> None:
        assert length == len(self.pages) * PAGE_SIZE, "the engine rewinds to whole pages only"
        self.length = length

    def accept(self, token_id: int) -> None:
        self.num_drawn += 1


class FakeModel:
    """script: token ids to produce instead of hashes, for all prompts or by prompt (the last one repeats)."""

    page_tokens = PAGE_SIZE
    threads = 1
    isa = "fake"

    def __init__(self, *, vocab_size: int = 64, context_length: int = 64,
                 script: list[int] | Callable[[list[int]], list[int]] | None = None) -> None:
        self.vocab_size, self.context_length, self.script = vocab_size, context_length, script
        self.spec = SimpleNamespace(ropes=(RopeSpec("default", 1e4, 8, context_length, {}),), is_encoder=False)
        self.num_tokens_fed = 0
        self.step_sizes: list[tuple[int, int]] = []  # sequences and tokens of each step
        self.call_steps: list[int] = []  # steps in each call of decode

    def pages_for(self, length: int) -> int:
        return -(-length // PAGE_SIZE)

    def new_pool(self, num_pages: int, activations: str, kv_dtype: str = "auto") -> FakePool:
        return FakePool(num_pages)

    def new_sequence(self, pool: FakePool, sampler: SamplerConfig | None,
                     prompt_ids: list[int], end_ids: Iterable[int] = ()) -> FakeSequence:
        return FakeSequence(sampler, prompt_ids, end_ids)

    def step(self, pool: FakePool, inputs: list[StepInput]) -> list[StepOutput]:
        assert inputs, "an empty step"
        self.step_sizes.append((len(inputs), sum(len(fed.token_ids) for fed in inputs)))
        return [self._run(pool, fed) for fed in inputs]

    def decode(self, pool: FakePool, inputs: list[StepInput], count: int) -> list[list[StepOutput]]:
        assert count >= 1 and all(len(fed.token_ids) == 1 and fed.output == "sample" for fed in inputs)
        self.call_steps.append(0)
        chosen: list[list[StepOutput]] = [[] for _ in inputs]
        for _ in range(count):
            outputs = self.step(pool, inputs)
            self.call_steps[-1] += 1
            for its, output in zip(chosen, outputs):
                its.append(output)
            inputs = [StepInput(fed.sequence, [output.token_id], "sample") for fed, output in zip(inputs, outputs)]
            if any(output.token_id in fed.sequence.end_ids for fed, output in zip(inputs, outputs)):
                break
        return chosen

    def logits(self, token_ids: list[int], activations: str = "int8", kv_dtype: str = "auto") -> np.ndarray:
        ends = range(1, len(token_ids) + 1)
        rows = [np.random.default_rng(_hash(token_ids[:end])).normal(size=self.vocab_size) for end in ends]
        return np.asarray(rows, dtype=np.float32)

    def _run(self, pool: FakePool, fed: StepInput) -> StepOutput:
        sequence = fed.sequence
        if self.pages_for(sequence.length + len(fed.token_ids)) > len(sequence.pages):
            raise CapacityError("the sequence lacks pages")
        for token_id in fed.token_ids:
            cell = pool.cells[sequence.pages[sequence.length // PAGE_SIZE]]
            assert len(cell) == sequence.length % PAGE_SIZE, "page written by two sequences"
            cell.append(token_id)
            sequence.length += 1
            self.num_tokens_fed += 1
        if fed.output == "none":
            return StepOutput()
        seen = [token for page in sequence.pages for token in pool.cells[page]][:sequence.length]
        logits = self.logits(seen)
        if fed.output == "logits":
            return StepOutput(logits=logits[-len(fed.token_ids):])
        if fed.output == "last":
            return StepOutput(logits=logits[-1:])
        return self._sample(sequence, seen, logits[-1])

    def _sample(self, sequence: FakeSequence, seen: list[int], logits: np.ndarray) -> StepOutput:
        config, num_drawn = sequence.sampler, sequence.num_drawn
        sequence.num_drawn += 1
        if self.script is not None:
            script = self.script(sequence.prompt_ids) if callable(self.script) else self.script
            token_id = script[min(num_drawn, len(script) - 1)]
        elif config.temperature == 0:
            token_id = int(logits.argmax())
        else:
            token_id = _hash([*seen, config.seed, num_drawn]) % self.vocab_size
        logprobs = logits - np.log(np.exp(logits).sum())
        best = np.argsort(-logprobs, kind="stable")[:max(config.logprobs, 0)]
        return StepOutput(token_id, float(logprobs[token_id]), [(int(i), float(logprobs[i])) for i in best])


def _hash(values: list[int]) -> int:
    digest = hashlib.blake2b(repr([int(v) for v in values]).encode(), digest_size=6).digest()
    return int.from_bytes(digest, "little")


class FakeDecoder:
    """Token id -> the piece of that number."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def push(self, token_id: int) -> str:
        return self._pieces[token_id]

    def flush(self) -> str:
        return ""
