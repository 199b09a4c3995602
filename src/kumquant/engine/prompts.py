"""What a caller may pass as prompts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from numbers import Integral
from typing import Any

from ..errors import RequestError

Prompt = str | Sequence[int]


def split_prompts(prompts: Any) -> list[Prompt]:
    """One prompt or many, text or token ids, as a list of prompts.

    A list of integers is one prompt. Raises RequestError for anything else.
    """
    if isinstance(prompts, str) or _is_ids(prompts):
        return [prompts if isinstance(prompts, str) else [int(i) for i in prompts]]
    if not isinstance(prompts, Iterable) or isinstance(prompts, (bytes, Set, Mapping)) or _is_number(prompts):
        raise _not_a_prompt(prompts)
    return [one_prompt(prompt) for prompt in prompts]


def one_prompt(prompt: Any) -> Prompt:
    """Text, or a list of token ids. Raises RequestError for anything else."""
    if isinstance(prompt, str):
        return prompt
    if not _is_ids(prompt) and not _is_empty(prompt):
        raise _not_a_prompt(prompt)
    return [int(i) for i in prompt]


def _is_ids(prompt: Any) -> bool:
    if isinstance(prompt, (str, bytes, Set, Mapping)) or not hasattr(prompt, "__len__") or _is_number(prompt):
        return False
    return len(prompt) > 0 and all(isinstance(i, Integral) and not isinstance(i, bool) for i in prompt)


def _is_number(prompt: Any) -> bool:
    """Whether it is an array without axes, which has the methods of a sequence and is none."""
    return getattr(prompt, "shape", None) == ()


def _is_empty(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and not isinstance(prompt, bytes) and len(prompt) == 0


def _not_a_prompt(found: Any) -> RequestError:
    return RequestError(
        "not a prompt", where="prompts", found=type(found).__name__,
        expected="text, a list of token ids, or a list of these",
    )
