"""The KV cache: a pool of fixed-size pages that sequences borrow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .. import _native
from ..errors import CapacityError

PAGE_TOKENS: int = _native.PAGE_TOKENS


def pages_for(num_tokens: int) -> int:
    """Pages that hold ``num_tokens`` tokens."""
    return -(-num_tokens // PAGE_TOKENS)


class PagePool:
    """Pages of keys and values for all layers of one model. kv_dtype: their type, never "auto".

    Memory is reserved, not touched: a page costs ``page_bytes`` of resident memory from its first use on, and
    the lowest free pages are handed out first so that little is touched.
    """

    def __init__(self, native: Any, activations: str, kv_dtype: str) -> None:
        self.native = native
        self.activations = activations
        self.kv_dtype = kv_dtype
        self.num_pages: int = native.num_pages
        self.page_bytes: int = native.page_bytes
        self.reset()

    def reset(self) -> None:
        """Takes all pages back, whoever has them."""
        self._free = list(range(self.num_pages - 1, -1, -1))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def allocate(self, count: int) -> list[int]:
        """Takes ``count`` pages. Raises CapacityError, taking none, when fewer are free."""
        if count > len(self._free):
            raise CapacityError(
                "the KV cache is full",
                found=f"{len(self._free)} free pages of {self.num_pages}",
                expected=f"{count}",
                hint="Run fewer sequences at once, or give the engine more KV memory.",
            )
        return [self._free.pop() for _ in range(count)]

    def free(self, pages: Iterable[int]) -> None:
        self._free.extend(sorted(pages, reverse=True))
