"""Sampling options of ``generate`` and ``chat``. Values are checked in one place, SamplingParams."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from ..engine import DEFAULT_MAX_TOKENS, MAX_LOGPROBS, SamplingParams

_FIELDS = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed", "logprobs",
)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Options left out keep what the model's own files recommend (generation_config.json)."""
    group = parser.add_argument_group(
        "sampling", "What is not given is as the model's generation_config.json says, else off.")
    add = group.add_argument
    add("--max-tokens", type=int, metavar="N", help=f"at most so many tokens (default {DEFAULT_MAX_TOKENS})")
    add("--temperature", type=float, metavar="T", help="0 takes the likeliest token each time (default 1)")
    add("--top-k", type=int, metavar="K", help="among the K likeliest tokens; 0 is off")
    add("--top-p", type=float, metavar="P", help="among the likeliest tokens that together reach P")
    add("--min-p", type=float, metavar="P", help="among tokens at least P times as likely as the likeliest")
    add("--repetition-penalty", type=float, metavar="X", help="over prompt and output, multiplying; 1 is off")
    add("--presence-penalty", type=float, metavar="X", help="over the output, once per token; 0 is off")
    add("--frequency-penalty", type=float, metavar="X", help="over the output, per occurrence; 0 is off")
    add("--logit-bias", type=_bias, action="append", metavar="ID=X", help="add X to a logit (repeatable)")
    add("--seed", type=int, metavar="N", help="makes the output reproducible")
    add("--stop", action="append", metavar="TEXT", help="end before this text (repeatable)")
    add("--stop-token-id", type=int, action="append", metavar="ID", help="end at this token (repeatable)")
    add("--ignore-eos", action="store_true", help="do not end at the model's own end tokens")


def add_logprobs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--logprobs", type=int, metavar="N",
                        help=f"with --json: log probabilities, and the N likeliest (0 to {MAX_LOGPROBS})")


def sampling_params(args: argparse.Namespace, default: SamplingParams) -> SamplingParams:
    """``default`` with what the command line gives. Raises RequestError for a value out of range."""
    named = {name: getattr(args, name, None) for name in _FIELDS}
    given: dict[str, Any] = {name: value for name, value in named.items() if value is not None}
    if args.logit_bias:
        given["logit_bias"] = dict(args.logit_bias)
    if args.stop:
        given["stop"] = args.stop
    if args.stop_token_id:
        given["stop_token_ids"] = args.stop_token_id
    if args.ignore_eos:
        given["ignore_eos"] = True
    return replace(default, **given)


def _bias(text: str) -> tuple[int, float]:
    token_id, separator, value = text.partition("=")
    try:
        if not separator:
            raise ValueError
        return int(token_id), float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not ID=X, as in 42=-1.5") from None
