"""A dialog's state: its system message, its turns, and how sampling is set. No input, no output."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ..chat import Message
from ..engine import SamplingParams
from ..errors import RequestError
from ..files import atomic_write

SETTABLE = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed",
)
NOTHING = ("none", "off")


class Dialog:
    """Turns of user and assistant, in pairs once an answer is in."""

    def __init__(self, params: SamplingParams, system: str | None = None) -> None:
        self.params = params
        self.system = system
        self._turns: list[Message] = []

    @property
    def messages(self) -> list[Message]:
        """Everything the model is to see."""
        head: list[Message] = [] if self.system is None else [{"role": "system", "content": self.system}]
        return head + self._turns

    def ask(self, text: str) -> None:
        self._turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        self._turns.append({"role": "assistant", "content": text})

    def drop_question(self) -> None:
        """Forget a question that could not be answered."""
        self._turns.pop()

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self._turns.clear()

    def undo(self) -> str:
        """Forget the last question and its answer; returns the question. RequestError if there is none."""
        if not self._turns:
            raise RequestError("there is no turn to take back")
        del self._turns[-1:]
        return str(self._turns.pop()["content"])

    def set(self, name: str, text: str) -> None:
        """Change a sampling parameter. Raises RequestError for an unknown name or a value out of range."""
        if name not in SETTABLE:
            raise RequestError("no such setting", where=name, expected=", ".join(SETTABLE))
        self.params = replace(self.params, **{name: _number(name, text)})

    def settings(self) -> str:
        """The parameters that can be set, one to a line."""
        values = {one.name: getattr(self.params, one.name) for one in fields(self.params)}
        return "\n".join(f"{name} {values[name]}" for name in SETTABLE)

    def save(self, path: Path) -> None:
        """Write the messages as JSON, whole or not at all. Raises Error."""
        if path.exists() and not path.is_file():  # a folder, a device: replacing it would be no saving
            raise RequestError("is there and is no regular file", where=path, hint="Choose another name.")
        atomic_write(path, json.dumps(self.messages, indent=2, ensure_ascii=False) + "\n")


def _number(name: str, text: str) -> Any:
    if text.lower() in NOTHING:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise RequestError("not a number", where=name, found=repr(text))
