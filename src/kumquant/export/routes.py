"""How tensors leave a cache, and whether anything is lost on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class ExportRoute:
    """One way out. route: for people. nbytes: in the output."""

    route: str
    is_lossless: bool
    tensors: int
    nbytes: int


def summarize(taken: Iterable[tuple[str, bool, int]]) -> list[ExportRoute]:
    """(route, is_lossless, nbytes) of each tensor, added up."""
    sums: dict[tuple[str, bool], list[int]] = {}
    for route, is_lossless, nbytes in taken:
        count = sums.setdefault((route, is_lossless), [0, 0])
        count[0] += 1
        count[1] += nbytes
    return [ExportRoute(route, is_lossless, *count) for (route, is_lossless), count in sums.items()]
