"""The engine: many requests, one loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType

from ..errors import Error, RequestError
from ..models import depends_on_length
from ..runtime import MAX_CALL_S, KvDtype, Model, Pace, StepOutput
from .memory import Activations
from .request import Request, TextDecoder
from .sampling_params import SamplingParams
from .scheduler import MAX_RUNNING, MAX_STEP_TOKENS, Batch, Scheduler


class Engine:
    """Runs requests on a model with continuous batching. One thread at a time.

    activations: "int8" or "float32". kv_dtype: as Model.new_pool takes it.
    num_pages: size of the KV cache; context_length is at most what it
    holds. end_ids: the model's own end tokens. new_decoder: makes a token decoder for one request, or None
    for no text. max_call_s: seconds that one native call of several decode steps may last, about (``Pace``).
    """

    def __init__(self, model: Model, *, num_pages: int, activations: Activations = "int8", kv_dtype: KvDtype = "auto",
                 context_length: int | None = None, end_ids: frozenset[int] = frozenset(),
                 new_decoder: Callable[[], TextDecoder | None] = lambda: None,
                 max_running: int = MAX_RUNNING, max_step_tokens: int = MAX_STEP_TOKENS,
                 max_call_s: float = MAX_CALL_S) -> None:
        self.model = model
        self.pool = model.new_pool(num_pages, activations, kv_dtype)
        self.context_length = min(context_length or model.context_length, num_pages * model.page_tokens)
        self._end_ids = frozenset(one for one in end_ids if one < model.vocab_size)  # others never come
        self._pace = Pace(max_call_s)
        self._new_decoder = new_decoder
        self._scheduler = Scheduler(
            model, self.pool, reuse_pages=not any(map(depends_on_length, model.spec.ropes)),
            max_running=max_running, max_step_tokens=max_step_tokens,
        )
        self._guard = InterruptGuard(self._scheduler)

    @property
    def has_work(self) -> bool:
        with self._guard:
            return self._scheduler.has_work

    def add(self, prompt_ids: Sequence[int], params: SamplingParams) -> Request:
        """Queue a prompt. Raises RequestError if it is empty, too long, or not of this vocabulary."""
        check_prompt(prompt_ids, self.context_length, self.model.vocab_size)
        check_ids("logit_bias", params.logit_bias, self.model.vocab_size)
        check_ids("stop_token_ids", params.stop_token_ids, self.model.vocab_size)
        request = Request(
            prompt_ids, params,
            end_ids=frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._end_ids),
            context_length=self.context_length, new_decoder=self._new_decoder,
        )
        with self._guard:
            if not request.is_finished:
                self._scheduler.add(request)
        return request

    def step(self) -> list[Request]:
        """One step of all that can run. Returns the requests that got a token; some may be finished.

        Where steps are short and all that runs decodes, it is several of them (``Pace``). A step that fails raises its
        Error and ends the requests that were part of it; others go on.
        """
        with self._guard:
            batch = self._scheduler.schedule()
        if not batch.requests:
            return []
        try:
            outputs = self._run(batch)  # what Ctrl-C takes away here is computed again
        except Error as error:
            with self._guard:
                self._fail(batch, error)
            raise
        with self._guard:
            advanced = self._accept(batch, outputs)
            self._retire(advanced)
        return advanced

    def abort(self, request: Request) -> None:
        """Give a request up; what it has so far stays its result."""
        with self._guard:
            if not request.is_finished:
                request.finish("abort")
                self._scheduler.remove(request)

    def abandon(self, request: Request) -> None:
        """``abort`` for a request whose result nobody wants; may be called at any moment, from any thread."""
        self._scheduler.abandon(request)

    def _run(self, batch: Batch) -> list[list[StepOutput]]:
        """Forward and sampling, in one native call. Returns each request's outputs."""
        if not batch.is_decode:
            return [[output] for output in self.model.step(self.pool, batch.inputs)]
        return self._pace.decode(self.model, self.pool, batch.inputs, self._scheduler.num_steps_in_hand(batch))

    def _accept(self, batch: Batch, all_outputs: Sequence[Sequence[StepOutput]]) -> list[Request]:
        advanced = []
        for request, fed, outputs in zip(batch.requests, batch.inputs, all_outputs):
            if fed.output == "sample":
                for output in outputs:
                    request.accept(output)
                    if request.is_finished:  # by its text: what came after it is dropped
                        break
                advanced.append(request)
        return advanced

    def _fail(self, batch: Batch, error: Error) -> None:
        """End the requests of a step that failed: some of its tokens may be computed and sampled, others not."""
        for request in batch.requests:
            request.fail(error)
            self._scheduler.discard(request)

    def _retire(self, advanced: list[Request]) -> None:
        for request in advanced:
            if request.is_finished:
                self._scheduler.remove(request)


class InterruptGuard:
    """Around what must not stay half done when Ctrl-C comes into the middle of it: whatever ends such a part by an
    exception, the next one makes the scheduler start anew.

    A class, because a generator's context takes several times as long.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_broken = False

    def __enter__(self) -> None:
        if self._is_broken:
            self._scheduler.restart()
        self._is_broken = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self._is_broken = error is not None


def check_prompt(prompt_ids: Sequence[int], context_length: int, vocab_size: int) -> None:
    """Raises RequestError for a prompt that is empty, longer than the context, or not of this vocabulary."""
    if not prompt_ids:
        raise RequestError("the prompt is empty", hint="Give at least one token of text.")
    if len(prompt_ids) > context_length:
        raise RequestError(
            "the prompt is longer than the context", found=f"{len(prompt_ids)} tokens",
            expected=f"at most {context_length}", hint="Shorten the prompt.",
        )
    check_ids("prompt", prompt_ids, vocab_size)


def check_ids(where: str, token_ids: Iterable[int], vocab_size: int) -> None:
    """Raises RequestError for a token id outside the vocabulary. where: the option or argument concerned."""
    for token_id in token_ids:
        if not 0 <= token_id < vocab_size:
            raise RequestError("token id out of range", where=where, found=token_id,
                               expected=f"0 to {vocab_size - 1}")
