"""Which tokens run in the next step, and which pages they go to."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ..runtime import Model, PagePool, StepInput
from .pages import PageStore
from .request import Request

MAX_STEP_TOKENS = 512  # of all sequences in one step: long prompts come in chunks, and others keep decoding
MAX_RUNNING = 64  # sequences that decode together; others wait
MAX_IDLE_BYTES = 256 * 2**20  # of KV pages kept for prompts that begin like an earlier one


@dataclass(frozen=True)
class Batch:
    """One step: requests, and what each of them feeds."""

    requests: list[Request]
    inputs: list[StepInput]

    @property
    def is_decode(self) -> bool:
        """Whether every request feeds one token, the one it got last, and gets another."""
        return all(len(fed.token_ids) == 1 and request.num_output_tokens
                   for request, fed in zip(self.requests, self.inputs))


class Scheduler:
    """First come, first served; continuous batching; the youngest gives way when pages run out.

    Running requests keep their pages. A waiting one starts when pages for all of its tokens can be had. When
    a running one needs a page and there is none, the request that started last is preempted: it gives its
    pages back, waits in front, and later computes them again. A single request always fits, because no
    request may outgrow the pool.
    """

    def __init__(self, model: Model, pool: PagePool, *, reuse_pages: bool = True,
                 max_running: int = MAX_RUNNING, max_step_tokens: int = MAX_STEP_TOKENS) -> None:
        self._model = model
        self._pool = pool
        self._max_idle = MAX_IDLE_BYTES // pool.page_bytes if reuse_pages else 0
        self._store = PageStore(pool, model.page_tokens, self._max_idle)
        self._max_running = max_running
        self._max_step_tokens = max_step_tokens
        self._all: dict[Request, None] = {}  # in the order they came
        self._running: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._abandoned: deque[Request] = deque()

    @property
    def has_work(self) -> bool:
        self._drop_abandoned()
        return bool(self._running or self._waiting)

    def add(self, request: Request) -> None:
        self._all[request] = None
        self._waiting.append(request)

    def restart(self) -> None:
        """Make sense again of what Ctrl-C left half done: everyone waits, in the order they came, and no page is known.

        May itself be cut short, and then be called again.
        """
        unfinished = [request for request in self._all if not request.is_finished]
        for request in unfinished:
            request.restore()
        self._pool.reset()
        self._store = PageStore(self._pool, self._model.page_tokens, self._max_idle)
        self._running, self._waiting = [], deque(unfinished)
        self._all = dict.fromkeys(unfinished)

    def schedule(self) -> Batch:
        """What runs in the next step. Not empty if there is work."""
        self._drop_abandoned()
        page_tokens = self._model.page_tokens
        # Ctrl-C came between a step and its tokens: compute them again. The oldest goes last, to wait in front.
        for request in [one for one in self._running if one.num_pending <= 0][::-1]:
            self._preempt(request)
        for request in list(self._running):
            if len(request.token_ids) > len(request.pages) * page_tokens:
                self._grow(request)
        while self._waiting and len(self._running) < self._max_running and self._start(self._waiting[0]):
            self._running.append(self._waiting.popleft())
        return self._fill_step()

    def num_steps_in_hand(self, batch: Batch) -> int:
        """How many steps like this one every request of ``batch`` wants and has pages for."""
        size = self._model.page_tokens
        return min(min(len(one.pages) * size - len(one.token_ids) + 1, one.num_wanted) for one in batch.requests)

    def remove(self, request: Request) -> None:
        """Forget a request, finished or given up; its full pages are kept for others that begin alike."""
        if request.sequence is not None:
            self._release(request)
            self._running.remove(request)
        elif request in self._waiting:
            self._waiting.remove(request)
        self._all.pop(request, None)

    def discard(self, request: Request) -> None:
        """Forget a running request and what its own pages hold: a step of it failed."""
        self._release(request, keep=False)
        self._running.remove(request)
        self._all.pop(request, None)

    def abandon(self, request: Request) -> None:
        """``remove``, but at the next occasion: safe at any moment, even in the middle of a step."""
        self._abandoned.append(request)

    def _drop_abandoned(self) -> None:
        while self._abandoned:
            request = self._abandoned[0]
            if not request.is_finished:
                request.finish("abort")
                self.remove(request)
            self._abandoned.popleft()

    def _fill_step(self) -> Batch:
        """Decode tokens of everyone first, one each; prompts share what is left of the step."""
        batch = Batch([], [])
        all_pending = [request.num_pending for request in self._running]
        room = max(self._max_step_tokens - all_pending.count(1), 1)
        for request, pending in zip(self._running, all_pending):
            assert request.sequence is not None
            count = pending
            if pending > 1:
                count = min(pending, room)
                room -= count
                if count == 0:
                    continue
            begin = len(request.token_ids) - pending
            chunk = request.token_ids[begin:begin + count]
            batch.requests.append(request)
            batch.inputs.append(StepInput(request.sequence, chunk, "sample" if count == pending else "none"))
        return batch

    def _start(self, request: Request) -> bool:
        """Give a waiting request its pages, known ones first; False when there are not enough."""
        shared = self._store.match(request.token_ids)
        needed = self._model.pages_for(len(request.token_ids)) - len(shared)
        if needed > self._store.num_free:
            self._store.release(shared, [node.page for node in shared], ())
            return False
        request.shared = shared
        request.pages = [node.page for node in shared] + self._store.allocate(needed)
        num_prompt = request.num_prompt_tokens
        sequence = self._model.new_sequence(self._pool, request.sampler, request.token_ids[:num_prompt],
                                            request.end_ids)
        sequence.add_pages(request.pages[:len(shared)])
        # The shared pages are full: the sequence's length says that their tokens need no computing.
        sequence.rewind(len(shared) * self._store.page_size)
        sequence.add_pages(request.pages[len(shared):])
        for token_id in request.token_ids[num_prompt:]:  # preempted: penalties and draws go on from here
            sequence.accept(token_id)
        request.sequence = sequence
        request.start()
        return True

    def _grow(self, request: Request) -> None:
        """Add the page the next token needs; preempts the youngest until there is one, at worst the request
        itself.

        Does nothing for a request that an older one has just preempted.
        """
        while request.sequence is not None:
            needed = self._model.pages_for(len(request.token_ids)) - len(request.pages)
            if needed <= 0:
                return
            if needed <= self._store.num_free:
                pages = self._store.allocate(needed)
                request.pages += pages
                request.sequence.add_pages(pages)
                return
            self._preempt(self._running[-1])

    def _preempt(self, request: Request) -> None:
        self._release(request)
        self._running.remove(request)
        self._waiting.appendleft(request)

    def _release(self, request: Request, *, keep: bool = True) -> None:
        assert request.sequence is not None
        computed = request.token_ids[:request.sequence.length] if keep else ()
        self._store.release(request.shared, request.pages, computed)
        request.sequence, request.shared, request.pages = None, [], []
