"""One sequence: its tokens in the KV cache, its pages, its sampler."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as SequenceOf

from .. import _native
from .pages import PagePool
from .sampler import SamplerConfig


class Sequence:
    """A sequence in a pool.

    length: tokens whose keys and values are stored. A step needs pages for the tokens it adds (add_pages).
    rope_length: where a rope's frequencies depend on the sequence's length, the least length to assume, so
    that a prompt gives the same in one chunk or several; at first the prompt's length.
    end_ids: tokens after which ``Model.decode`` goes no further.
    """

    def __init__(self, pool: PagePool, sampler: SamplerConfig | None, prompt_ids: SequenceOf[int],
                 end_ids: Iterable[int] = ()) -> None:
        self.pool = pool
        self.native = _native.Sequence()
        self._pages: list[int] = []
        self.rope_length = len(prompt_ids)
        if sampler is not None:
            self.native.set_sampler(sampler.to_native(), list(prompt_ids))
        self.native.set_end_ids(list(end_ids))

    @property
    def length(self) -> int:
        length: int = self.native.length
        return length

    @property
    def pages(self) -> list[int]:
        return list(self._pages)

    @property
    def num_pages(self) -> int:
        return len(self._pages)

    def add_pages(self, pages: SequenceOf[int]) -> None:
        self._pages.extend(pages)
        self.native.add_pages(list(pages))

    def accept(self, token_id: int) -> None:
        """Tells the sampler that ``token_id`` was generated earlier (a sequence that is computed again)."""
        self.native.accept(token_id)

    def rewind(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens and gives the pages behind them back."""
        keep = -(-length // _native.PAGE_TOKENS)
        self.pool.free(self._pages[keep:])
        del self._pages[keep:]
        self.native.reset(length, self._pages)

    def close(self) -> None:
        """Gives all pages back. A closed sequence is empty and may be used again."""
        self.rewind(0)
