"""Tokenizer: a tokenizer.json, read with the ``tokenizers`` library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import CheckpointError, RequestError, UnsupportedError

TOKENIZER_NAME = "tokenizer.json"
# The files that MLC copies, in its order (docs/format.md).
TOKENIZER_FILES = ("tokenizer.model", TOKENIZER_NAME, "vocab.json", "merges.txt", "added_tokens.json",
                   "tokenizer_config.json")

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has a tokenizer.json."""
    return (folder / TOKENIZER_NAME).is_file()


class Tokenizer:
    """Text ↔ token ids. Padding and truncation, which some files ask for, are off."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_padding()
        backend.no_truncation()
        self._backend = backend

    @classmethod
    def open(cls, folder: Path | str) -> Tokenizer:
        """The tokenizer of a model folder.

        Raises CheckpointError if tokenizer.json is missing or damaged, UnsupportedError if there is only a
        SentencePiece file.
        """
        folder = Path(folder)
        path = folder / TOKENIZER_NAME
        if not path.is_file():
            if (folder / "tokenizer.model").is_file():
                raise UnsupportedError(
                    "only tokenizer.model is there", where=folder, expected=TOKENIZER_NAME,
                    hint="Open the model once with transformers' AutoTokenizer and save it; "
                         "that writes tokenizer.json.",
                )
            raise CheckpointError("no tokenizer.json", where=folder,
                                  hint="Copy the model's tokenizer files here.")
        try:
            return cls(tokenizers.Tokenizer.from_buffer(path.read_bytes()))
        except OSError as reason:
            raise CheckpointError(f"cannot read the file ({reason.strerror})", where=path) from reason
        except Exception as reason:  # the library raises plain Exception for anything it cannot parse
            raise CheckpointError(f"not a tokenizer that can be read ({reason})", where=path,
                                  hint="Fetch the file again.") from reason

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens (control tokens that decoding leaves out)."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special)

    @cached_property
    def prefix_ids(self) -> tuple[int, ...]:
        """Special tokens that the post-processor puts before a text (BOS, for most models that have one)."""
        return self._added_ids[0]

    @cached_property
    def suffix_ids(self) -> tuple[int, ...]:
        """Special tokens that the post-processor puts after a text ([SEP], in BERT)."""
        return self._added_ids[1]

    @cached_property
    def _added_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        plain, full = self.encode("a", add_special_tokens=False), self.encode("a")
        for start in range(len(full) - len(plain) + 1):
            end = start + len(plain)
            if full[start:end] == plain:
                return tuple(full[:start]), tuple(full[end:])
        return (), ()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``. The text of a special token becomes that token.

        add_special_tokens: let the post-processor add what it adds (BOS).
        Raises RequestError for text that is not Unicode (a lone surrogate).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as reason:
            raise RequestError(
                "the text is not valid Unicode", where="prompt", found=ascii(text[reason.start:reason.end]),
                hint="Was it read with the wrong encoding?",
            ) from reason
        return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ids without a token vanish. Raises RequestError for negative ids."""
        try:
            return str(self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens))
        except OverflowError as reason:
            raise RequestError("a token id out of range", where="token ids", found=min(token_ids)) from reason

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None if there is no such token."""
        token_id = self._backend.token_to_id(token)
        return None if token_id is None else int(token_id)

    def id_to_token(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it, None if the id has none."""
        return self._backend.id_to_token(token_id)

    def tokens_to_ids(self, tokens: Iterable[str]) -> list[int]:
        """Ids of those of ``tokens`` that the vocabulary has."""
        found = (self.token_to_id(token) for token in tokens)
        return [token_id for token_id in found if token_id is not None]

    @cached_property
    def _decoder(self) -> dict[str, Any]:
        return json.loads(self._backend.to_str()).get("decoder") or {}

    @property
    def is_byte_level(self) -> bool:
        """Whether decoding joins the tokens' bytes and does nothing else (GPT-2's kind)."""
        return self._decoder.get("type") == "ByteLevel"

    @cached_property
    def whole_texts(self) -> tuple[dict[int, str], dict[int, str]]:
        """What streams of a byte-level tokenizer found out: the text of tokens that leave no character open.

        First with special tokens, then without: the index is whether they are skipped.
        """
        return {}, {}

    @cached_property
    def byte_fallback_ids(self) -> frozenset[int]:
        """Ids of the tokens "<0x00>" … "<0xFF>", where the decoder puts bytes together to characters."""
        members = [self._decoder, *self._decoder.get("decoders", [])]
        if all(member.get("type") != "ByteFallback" for member in members):
            return frozenset()
        vocab = self._backend.get_vocab(with_added_tokens=False)
        return frozenset(token_id for token, token_id in vocab.items() if _BYTE_TOKEN.fullmatch(token))
