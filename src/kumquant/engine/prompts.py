"""From what a caller passes as a prompt to token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

from ..chat import ChatTemplate
from ..errors import RequestError
from ..tokenizer import Tokenizer

Prompt = str | Sequence[int]


def split_prompts(prompts: Any) -> list[Prompt]:
    """One prompt or many, text or token ids, as a list of prompts.

    A list of integers is one prompt. Raises RequestError for anything else.
    """
    if isinstance(prompts, str) or _is_ids(prompts):
        return [prompts if isinstance(prompts, str) else [int(i) for i in prompts]]
    if not isinstance(prompts, Iterable):
        raise _not_a_prompt(prompts)
    split: list[Prompt] = []
    for prompt in prompts:
        if not isinstance(prompt, str) and not _is_ids(prompt) and not _is_empty(prompt):
            raise _not_a_prompt(prompt)
        split.append(prompt if isinstance(prompt, str) else [int(i) for i in prompt])
    return split


def encode_chat(messages: Sequence[Any], template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    """Token ids of a dialog, ready for the assistant's answer.

    What the tokenizer's post-processor puts in front (BOS) is put there once: not when the template has
    written it already.
    """
    text = template.render(messages, add_generation_prompt=True)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    prefix = list(tokenizer.prefix_ids)
    return token_ids if token_ids[:len(prefix)] == prefix else prefix + token_ids


def _is_ids(prompt: Any) -> bool:
    if isinstance(prompt, (str, bytes)) or not hasattr(prompt, "__len__"):
        return False
    return len(prompt) > 0 and all(isinstance(i, Integral) and not isinstance(i, bool) for i in prompt)


def _is_empty(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) == 0


def _not_a_prompt(found: Any) -> RequestError:
    return RequestError(
        "not a prompt", where="prompts", found=type(found).__name__,
        expected="text, a list of token ids, or a list of these",
    )
