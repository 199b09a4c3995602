"""Streaming decode: token by token, and the pieces together are the text that decoding all at once gives."""

from __future__ import annotations

from .tokenizer import Tokenizer

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MAX_WINDOW = 12  # decoding the window is most of what a token costs here
_KEPT = 4


class StreamDecoder:
    """Text piece by piece while tokens arrive.

    A piece never ends inside a character, and what is given out is never taken back: bytes that may still
    become part of a character wait for the next token or for ``flush``. Special tokens give no text.

    Decoding a token depends on the ones before it (leading spaces, characters made of several tokens), so a
    window of the latest tokens is decoded again each time. It starts where no character is open, at a token
    with visible text; the decoders' rules for the beginning of a text then hit that token only, whose text is
    already out.

    Byte-level decoders put bytes together and nothing else: there a window holds an open character only, and the
    text of a token that ends no character of others is looked up.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer, self._skips = tokenizer, skip_special_tokens
        self._hidden_ids = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._byte_ids = tokenizer.byte_fallback_ids
        self._is_byte_level = tokenizer.is_byte_level
        self._whole_texts = tokenizer.whole_texts[skip_special_tokens]
        self._window: list[int] = []
        self._given = ""  # what of the window's text is out
        self._boundaries: list[int] = []  # window positions before which no character is open

    def push(self, token_id: int) -> str:
        """The text that ``token_id`` completes; often the empty string."""
        if not self._window:
            known = self._whole_texts.get(token_id)
            if known is not None:
                return known
        if token_id in self._hidden_ids:
            return ""
        self._window.append(token_id)
        if token_id in self._byte_ids:
            return ""  # a run of byte tokens is one unit: one bad byte makes the decoder give up the run
        text = self._decode(self._window)
        settled = text.rstrip(_REPLACEMENT)
        piece = self._advance(settled)
        if settled == text and self._is_byte_level:
            if len(self._window) == 1:
                self._whole_texts[token_id] = text
            self._window.clear()
            self._given = ""
        elif settled == text:
            self._boundaries.append(len(self._window))
            if len(self._window) > _MAX_WINDOW:
                self._shorten()
        return piece

    def flush(self) -> str:
        """What is left at the end of the tokens; incomplete characters become U+FFFD."""
        return self._advance(self._decode(self._window))

    def _advance(self, text: str) -> str:
        piece = text[len(self._given):]
        if piece:
            self._given = text
        return piece

    def _shorten(self) -> None:
        for start in self._boundaries[-_KEPT - 1:-1]:
            if len(self._window) - start <= _KEPT and self._decode(self._window[start:start + 1]).strip():
                self._window = self._window[start:]
                self._given = self._decode(self._window)
                self._boundaries = [position - start for position in self._boundaries if position > start]
                return

    def _decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids, skip_special_tokens=self._skips)
