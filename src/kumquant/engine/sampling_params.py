"""SamplingParams: how the next token is chosen, and when a generation ends."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from ..errors import RequestError
from ..runtime import SamplerConfig

MAX_LOGPROBS = 20
DEFAULT_MAX_TOKENS = 256
_MAX_TOP_K = 2**31 - 1  # of any vocabulary all; what fits into the native sampler's number


@dataclass(frozen=True)
class SamplingParams:
    """How to sample, with vLLM's names. The defaults sample from the model's own distribution.

    max_tokens: generated tokens at most; None: until the context is full.
    temperature: 0 takes the likeliest token (greedy). top_k: keep that many likeliest tokens, 0 all. top_p:
    keep the likeliest tokens that together reach this probability. min_p: drop tokens less likely than min_p
    times the likeliest. repetition_penalty: over tokens of prompt and output, as Transformers; 1 is off.
    presence_penalty, frequency_penalty: over generated tokens, as OpenAI; 0 is off. logit_bias: token id ->
    number added to its logit. seed: makes a prompt's output reproducible, wherever it stands in a list; None:
    a fresh one for each prompt. stop: a string or strings that end the generation; they are not part of the
    text. stop_token_ids: ids that end the generation beside the model's own. ignore_eos: do not end at the
    model's own. logprobs: None: off; n: the log probability of each generated token and of the n likeliest (n
    up to 20), of the distribution before temperature, penalties and truncation.

    Raises RequestError for any value out of range.
    """

    max_tokens: int | None = DEFAULT_MAX_TOKENS
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Iterable[str] = ()
    stop_token_ids: Iterable[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 1, None)
        _check_float("temperature", self.temperature, 0.0, None)
        _check_int("top_k", self.top_k, -1, None)
        _check_float("top_p", self.top_p, 0.0, 1.0, above_low=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, None, above_low=True)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), 2**64 - 1)
        if self.logprobs is not None:
            _check_int("logprobs", self.logprobs, 0, MAX_LOGPROBS)
        if not isinstance(self.ignore_eos, bool):
            raise _refusal("ignore_eos", self.ignore_eos, "True or False")
        object.__setattr__(self, "logit_bias", _checked_bias(self.logit_bias))
        object.__setattr__(self, "stop", _checked_stop(self.stop))
        object.__setattr__(self, "stop_token_ids", _checked_ids(self.stop_token_ids))

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple, whichever way it was given."""
        return self.stop  # type: ignore[return-value]  # normalized by __post_init__

    def sampler_config(self) -> SamplerConfig:
        """What the native sampler needs. Draws a missing seed, so that a preempted request can resume."""
        seed = secrets.randbits(64) if self.seed is None else int(self.seed) % 2**64
        return SamplerConfig(
            temperature=float(self.temperature), top_k=min(max(int(self.top_k), 0), _MAX_TOP_K),
            top_p=float(self.top_p), min_p=float(self.min_p), repetition_penalty=float(self.repetition_penalty),
            presence_penalty=float(self.presence_penalty), frequency_penalty=float(self.frequency_penalty),
            logit_bias=dict(self.logit_bias), seed=seed,
            logprobs=-1 if self.logprobs is None else int(self.logprobs),
        )


def _refusal(name: str, found: object, expected: str) -> RequestError:
    return RequestError("value out of range", where=name, found=repr(found), expected=expected)


def _check_int(name: str, value: Any, low: int, high: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _refusal(name, value, "an integer")
    number = int(value)
    if number < low or (high is not None and number > high):
        raise _refusal(name, value, f"at least {low}" if high is None else f"{low} to {high}")


def _check_float(name: str, value: Any, low: float, high: float | None, *, above_low: bool = False) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not _is_finite(value):
        raise _refusal(name, value, "a finite number")
    number = float(value)
    if number < low or (above_low and number == low) or (high is not None and number > high):
        bound = f"above {low:g}" if above_low else f"at least {low:g}"
        raise _refusal(name, value, bound if high is None else f"{bound}, at most {high:g}")


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _checked_bias(bias: Any) -> dict[int, float]:
    if not isinstance(bias, Mapping):
        raise _refusal("logit_bias", bias, "a mapping from token id to number")
    for token_id, value in bias.items():
        _check_int("logit_bias token id", token_id, 0, None)
        _check_float(f"logit_bias of token {token_id}", value, -math.inf, None)
    return {int(token_id): float(value) for token_id, value in bias.items()}


def _checked_stop(stop: Any) -> tuple[str, ...]:
    strings = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    for string in strings:
        if not isinstance(string, str) or not string:
            raise _refusal("stop", string, "a string that is not empty")
    return strings


def _checked_ids(token_ids: Any) -> tuple[int, ...]:
    if not isinstance(token_ids, Iterable):
        raise _refusal("stop_token_ids", token_ids, "a list of token ids")
    checked = tuple(token_ids)
    for token_id in checked:
        _check_int("stop_token_ids", token_id, 0, None)
    return tuple(int(token_id) for token_id in checked)
