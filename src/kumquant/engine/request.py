"""One prompt on its way to an answer, and the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from ..errors import Error
from ..runtime import SamplerConfig, StepOutput
from ..runtime import Sequence as KVSequence
from .pages import PageNode
from .sampling_params import SamplingParams
from .stop import StopMatcher

FinishReason = Literal["stop", "length", "abort"]


class TextDecoder(Protocol):
    """Token ids to text as they come, never a broken character (``tokenizer.StreamDecoder``)."""

    def push(self, token_id: int) -> str: ...
    def flush(self) -> str: ...


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log probability of a generated token, and of the likeliest tokens in its place, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Generation:
    """What became of one prompt.

    text: without stop strings and special tokens; "" when the model has no tokenizer. token_ids: the
    generated tokens, the one that ended the generation included. finish_reason: "stop" (an end token or a
    stop string), "length" (max_tokens, or the context is full), "abort" (the caller gave up).
    logprobs: one per generated token if SamplingParams.logprobs is not None.
    prefill_s: from the request's first step to its first token. decode_s: from there to the last token.
    """

    text: str
    token_ids: list[int]
    finish_reason: FinishReason
    prompt_token_ids: list[int]
    logprobs: list[TokenLogprob] | None
    prefill_s: float
    decode_s: float

    @property
    def tokens_per_s(self) -> float:
        """Decode speed: tokens after the first, per second; 0 when there are none."""
        count = len(self.token_ids) - 1
        return count / self.decode_s if count > 0 and self.decode_s > 0 else 0.0


class Request:
    """A prompt, its tokens so far, and its place in the KV cache (none while waiting or preempted).

    token_ids: prompt, then output. pages: of the KV cache, the first ones shared (``shared``). end_ids: tokens that
    end it. error: why the request could not go on.
    """

    def __init__(self, prompt_ids: Sequence[int], params: SamplingParams, *, end_ids: frozenset[int],
                 context_length: int, new_decoder: Callable[[], TextDecoder | None]) -> None:
        self.params = params
        self.sampler: SamplerConfig = params.sampler_config()
        self.token_ids = list(prompt_ids)
        self.num_prompt_tokens = len(self.token_ids)
        self.sequence: KVSequence | None = None
        self.shared: list[PageNode] = []
        self.pages: list[int] = []
        self.finish_reason: FinishReason | None = None
        self.error: Error | None = None
        self.end_ids = end_ids
        room = context_length - self.num_prompt_tokens
        self._max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        self._new_decoder = new_decoder
        self._decoder = new_decoder()
        self._matcher = StopMatcher(params.stop_strings)
        self._pieces: list[str] = []
        self._num_taken = 0
        self._num_settled = 0  # output tokens that everything here knows of
        self._logprobs: list[TokenLogprob] = []
        self._started_at = self._first_token_at = self._last_token_at = 0.0
        if self._max_tokens == 0:
            self.finish("length")

    @property
    def is_finished(self) -> bool:
        return self.finish_reason is not None

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def num_pending(self) -> int:
        """Tokens that are not in the KV cache yet: many before and during prefill, one in decode."""
        return len(self.token_ids) - (0 if self.sequence is None else self.sequence.length)

    @property
    def num_wanted(self) -> int:
        """Tokens still to come, at most."""
        return self._max_tokens - self.num_output_tokens

    def start(self) -> None:
        """Note the time of the first step; a resumed request keeps its own."""
        if not self._started_at:
            self._started_at = time.perf_counter()

    def accept(self, output: StepOutput) -> None:
        """Append a sampled token; finishes the request when the token, the text or the count says so."""
        self._take(output)
        self._num_settled += 1

    def restore(self) -> None:
        """After Ctrl-C anywhere: back to the last token that was accepted as a whole, with no place in the KV cache."""
        outputs = self.token_ids[self.num_prompt_tokens:self.num_prompt_tokens + self._num_settled]
        decoder, matcher = self._new_decoder(), StopMatcher(self.params.stop_strings)
        pieces = [] if decoder is None else [matcher.push(decoder.push(token_id)) for token_id in outputs]
        self.token_ids = self.token_ids[:self.num_prompt_tokens] + outputs
        self._decoder, self._matcher, self._pieces = decoder, matcher, pieces
        self._logprobs = self._logprobs[:self._num_settled]
        self.error, self.sequence, self.shared, self.pages = None, None, [], []

    def _take(self, output: StepOutput) -> None:
        token_id = output.token_id
        self.token_ids.append(token_id)
        self._last_token_at = time.perf_counter()
        if not self._first_token_at:
            self._first_token_at = self._last_token_at
        if self.params.logprobs is not None:
            self._logprobs.append(TokenLogprob(token_id, output.logprob, tuple(output.top)))
        if token_id in self.end_ids:
            self.finish("stop")
            return
        if self._decoder is not None:
            self._add_text(self._decoder.push(token_id))
        if self._matcher.stopped:
            self.finish("stop")
        elif self.num_output_tokens >= self._max_tokens:
            self.finish("length")

    def finish(self, reason: FinishReason) -> None:
        """End the generation and let out the text that was held back."""
        if self._decoder is not None and not self._matcher.stopped:
            self._add_text(self._decoder.flush())
            if self._matcher.stopped and reason == "length":
                reason = "stop"
            self._pieces.append(self._matcher.flush())
        self.finish_reason = reason

    def fail(self, error: Error) -> None:
        """End the generation for a reason that is not its own; ``result`` raises it."""
        self.error = error
        self.finish("abort")

    def take_piece(self) -> str:
        """The next piece of text that was not taken yet: a token's, or what was held back; "" when there is none."""
        num_sure = len(self._pieces) if self.is_finished else min(len(self._pieces), self._num_settled)
        while self._num_taken < num_sure:
            self._num_taken += 1
            piece = self._pieces[self._num_taken - 1]
            if piece:
                return piece
        return ""

    def result(self) -> Generation:
        """The finished generation. Raises the error of one that could not go on."""
        if self.error is not None:
            raise self.error
        assert self.finish_reason is not None
        prefill_s = max(self._first_token_at - self._started_at, 0.0)
        return Generation(
            text="".join(self._pieces), token_ids=self.token_ids[self.num_prompt_tokens:],
            finish_reason=self.finish_reason, prompt_token_ids=self.token_ids[:self.num_prompt_tokens],
            logprobs=None if self.params.logprobs is None else self._logprobs,
            prefill_s=prefill_s, decode_s=self._last_token_at - self._first_token_at,
        )

    def _add_text(self, text: str) -> None:
        self._pieces.append(self._matcher.push(text))
