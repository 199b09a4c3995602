"""KV pages of finished work, kept until their room is needed, so that a prompt's known beginning is not
computed twice.

A full page's keys and values depend on nothing but the tokens up to its end (results do not depend on batch,
chunking or threads), so a page found here is bit for bit the page that would be computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..runtime import PagePool


@dataclass(eq=False)
class PageNode:
    """A full page in the tree of known beginnings.

    users: live sequences that read it. children: the pages known to come after it, by their tokens.
    """

    page: int
    parent: PageNode | None
    tokens: tuple[int, ...]
    users: int = 0
    children: dict[tuple[int, ...], PageNode] = field(default_factory=dict)


class PageStore:
    """Hands out pages of a pool, and keeps full ones of finished sequences for others with the same
    beginning.

    max_idle: pages to keep that nobody reads; 0 for models whose keys depend on more than the tokens before
    them.
    """

    def __init__(self, pool: PagePool, page_size: int, max_idle: int) -> None:
        self.pool = pool
        self.page_size = page_size
        self._max_idle = max_idle
        self._root = PageNode(-1, None, ())
        self._idle: dict[PageNode, None] = {}  # pages nobody reads, in order of last use

    @property
    def num_free(self) -> int:
        """Pages that can be had: free ones, and those only kept for reuse."""
        return self.pool.num_free + len(self._idle)

    def match(self, token_ids: Sequence[int]) -> list[PageNode]:
        """The known pages at the beginning of ``token_ids``, from now on in use.

        At least the last token is left to compute, since its logits are wanted.
        """
        nodes: list[PageNode] = []
        node = self._root
        size = self.page_size
        for begin in range(0, len(token_ids) - size, size):
            child = node.children.get(tuple(token_ids[begin:begin + size]))
            if child is None:
                break
            child.users += 1
            self._idle.pop(child, None)
            nodes.append(child)
            node = child
        return nodes

    def allocate(self, count: int) -> list[int]:
        """``count`` fresh pages. Drops kept pages, the longest unused first. Needs ``num_free >= count``."""
        while self.pool.num_free < count:
            self._evict(next(iter(self._idle)))
        return self.pool.allocate(count)

    def release(self, nodes: list[PageNode], pages: Sequence[int], token_ids: Sequence[int]) -> None:
        """Take a sequence's pages back.

        pages: all of its pages, those of ``nodes`` first. token_ids: the tokens that they hold.
        """
        parent = nodes[-1] if nodes else self._root
        num_full = len(token_ids) // self.page_size if self._max_idle else 0
        unwanted: list[int] = []
        kept: list[PageNode] = []
        for index in range(len(nodes), len(pages)):
            if index >= num_full:
                unwanted.append(pages[index])
                continue
            key = tuple(token_ids[index * self.page_size:(index + 1) * self.page_size])
            child = parent.children.get(key)
            if child is None:
                child = parent.children[key] = PageNode(pages[index], parent, key)
            else:  # computed twice at the same time: one copy is enough
                unwanted.append(pages[index])
            child.users += 1
            kept.append(child)
            parent = child
        for node in reversed(nodes + kept):  # ends first, so that the longest unused has no children
            node.users -= 1
            if node.users == 0:
                self._idle.pop(node, None)
                self._idle[node] = None
        if unwanted:
            self.pool.free(unwanted)
        while len(self._idle) > self._max_idle:
            self._evict(next(iter(self._idle)))

    def _evict(self, node: PageNode) -> None:
        assert node.parent is not None and node.users == 0 and not node.children
        del self._idle[node]
        del node.parent.children[node.tokens]
        self.pool.free([node.page])
