"""A real LLM on the fake model, with a tokenizer of single characters and a plain chat template."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import fake_model
import pytest

import kumquant.engine.llm as llm_module
from kumquant.engine import LLM

CHARACTERS = ["<end>", "<bos>", "\n", *map(chr, range(ord(" "), 127))]
END, BOS = 0, 1


class FakeTokenizer:
    special_ids = frozenset({END, BOS})
    prefix_ids = (BOS,)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + [CHARACTERS.index(character) for character in text]

    def decode(self, token_ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(CHARACTERS[i] for i in token_ids if i > 1 or not skip_special_tokens)


class FakeTemplate:
    stop_strings = ()

    def encode(self, messages: list[dict], tokenizer: FakeTokenizer) -> list[int]:
        text = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        return tokenizer.encode(text + "assistant: ")


class FakeDecoder:
    def __init__(self, tokenizer: FakeTokenizer) -> None:
        self._tokenizer = tokenizer

    def push(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id])

    def flush(self) -> str:
        return ""


def install(monkeypatch: pytest.MonkeyPatch, answer: str | Callable[[str], str], *,
            has_tokenizer: bool = True, context_length: int = 4096) -> list[fake_model.FakeModel]:
    """Make every LLM answer ``answer``, or what it returns for the prompt's text. Returns models opened."""
    opened: list[fake_model.FakeModel] = []
    tokenizer = FakeTokenizer()

    def script(prompt_ids: list[int]) -> list[int]:
        text = answer if isinstance(answer, str) else answer(tokenizer.decode(prompt_ids))
        return [*tokenizer.encode(text, add_special_tokens=False), END]

    def open_model(cache: object, threads: int, panels: bool) -> fake_model.FakeModel:
        model = fake_model.FakeModel(vocab_size=len(CHARACTERS), context_length=context_length, script=script)
        model.threads = threads
        opened.append(model)
        return model

    monkeypatch.setattr(llm_module, "Model", open_model)
    monkeypatch.setattr(llm_module.TensorCache, "open", lambda folder: SimpleNamespace(folder=Path(folder)))
    monkeypatch.setattr(llm_module, "has_tokenizer", lambda folder: has_tokenizer)
    monkeypatch.setattr(llm_module.Tokenizer, "open", lambda folder: tokenizer)
    monkeypatch.setattr(llm_module, "StreamDecoder", FakeDecoder)
    monkeypatch.setattr(llm_module.ChatTemplate, "open", lambda folder: FakeTemplate())
    monkeypatch.setattr(llm_module, "stop_token_ids", lambda folder, tokenizer: {END})
    return opened


def open_llm(folder: str | Path = "model", **options) -> LLM:
    return LLM(folder, **options)
