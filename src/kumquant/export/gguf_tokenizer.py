"""A tokenizer.json as GGUF metadata, where llama.cpp can do the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import CheckpointError, UnsupportedError
from ..json_files import read_json_object, read_optional_json_object
from ..tokenizer import gguf_pre_tokenizer_name

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_PREFIX = "tokenizer.ggml."
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
_LEAST_SCORE = -1e9


def tokenizer_metadata(folder: Path, vocab_size: int, template: str | None) -> dict[str, Any]:
    """GGUF's "tokenizer.*" keys for the tokenizer in ``folder``.

    vocab_size: rows of the embedding; ids without a token are filled up. template: the chat template's text.
    Raises UnsupportedError for a tokenizer that llama.cpp has no equal of, CheckpointError for one that is damaged.
    """
    path = folder / "tokenizer.json"
    content = read_json_object(path, CheckpointError)
    model = content.get("model") or {}
    if model.get("type") != "BPE":
        raise UnsupportedError("only BPE tokenizers can be exported", where=path, found=repr(model.get("type")),
                               expected="BPE")
    added = {token["id"]: token for token in content.get("added_tokens") or []}
    tokens, types = _tokens(model["vocab"], added, vocab_size, path)
    if model.get("unk_token") in model["vocab"]:
        types[model["vocab"][model["unk_token"]]] = _UNKNOWN
    merges = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    backend = tokenizers.Tokenizer.from_file(str(path))
    if model.get("byte_fallback"):
        types = [_BYTE if kind == _NORMAL and _is_byte(token) else kind for token, kind in zip(tokens, types)]
        kind = {f"{_PREFIX}model": "llama", f"{_PREFIX}pre": "default",
                f"{_PREFIX}scores": _scores(tokens, merges),
                f"{_PREFIX}add_space_prefix": _has_prepend(content.get("normalizer"))}
    else:
        name = gguf_pre_tokenizer_name(backend, bool(model.get("ignore_merges")))
        if name is None:
            raise UnsupportedError("cuts words in a way that llama.cpp has no name for", where=path)
        kind = {f"{_PREFIX}model": "gpt2", f"{_PREFIX}pre": name,
                f"{_PREFIX}merges": [" ".join(merge) for merge in merges]}
    result = {**kind, f"{_PREFIX}tokens": tokens, f"{_PREFIX}token_type": types,
              **_special(folder, backend), f"{_PREFIX}add_bos_token": _adds_bos(backend)}
    return result if template is None else {**result, "tokenizer.chat_template": template}


def _tokens(vocab: Mapping[str, int], added: Mapping[int, Mapping[str, Any]], vocab_size: int,
            where: Path) -> tuple[list[str], list[int]]:
    known = {number: token for token, number in vocab.items()} | {number: t["content"] for number, t in added.items()}
    if max(known, default=0) >= vocab_size:
        raise CheckpointError("the tokenizer has ids that the model has no row for", where=where,
                              found=max(known), expected=f"below {vocab_size}")
    tokens = [known.get(number, f"[PAD{number}]") for number in range(vocab_size)]

    def kind_of(number: int) -> int:
        if number in added:
            return _CONTROL if added[number].get("special") else _USER_DEFINED
        return _NORMAL if number in known else _UNUSED

    return tokens, [kind_of(number) for number in range(vocab_size)]


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """The earlier a token is merged, the better its score: SentencePiece's order from that of the merges."""
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
    return [-float(first[token]) if token in first else _LEAST_SCORE for token in tokens]


def _has_prepend(normalizer: Mapping[str, Any] | None) -> bool:
    members = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    return any(member.get("type") == "Prepend" for member in members)


def _adds_bos(backend: tokenizers.Tokenizer) -> bool:
    """Whether the post-processor puts a token before a text."""
    return len(backend.encode("").ids) > 0


def _special(folder: Path, backend: tokenizers.Tokenizer) -> dict[str, int]:
    """Ids of the special tokens: generation_config.json's and config.json's, else the tokenizer's own words.

    Of several tokens that end an answer a GGUF file names two: the end of the text and that of a turn.
    """
    config = read_optional_json_object(folder / "tokenizer_config.json", CheckpointError)
    sources = [read_optional_json_object(folder / name, CheckpointError)
               for name in ("generation_config.json", "config.json")]
    found: dict[str, int] = {}
    for role, key in _ROLES.items():
        token = config.get(f"{role}_token")
        text = token.get("content") if isinstance(token, dict) else token
        number = backend.token_to_id(text) if isinstance(text, str) else None
        for source in sources:
            given = source.get(f"{role}_token_id")
            given = given[0] if isinstance(given, list) and given else given
            number = given if number is None and type(given) is int else number
        if number is not None:
            found[f"{_PREFIX}{key}_token_id"] = number
    ends = sources[0].get("eos_token_id")
    for end in ends if isinstance(ends, list) else []:
        is_token = type(end) is int and 0 <= end < 2**31 and backend.id_to_token(end) is not None
        if is_token and end != found.get(f"{_PREFIX}eos_token_id"):
            return found | {f"{_PREFIX}eot_token_id": end}
    return found


def template_text(folder: Path) -> str | None:
    """The chat template's own text, where the folder has one."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = read_optional_json_object(folder / "tokenizer_config.json", CheckpointError).get("chat_template")
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


