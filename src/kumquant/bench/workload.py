"""What can be measured of a model's speed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FIRST_TOKEN_PROMPT = 16  # tokens before the first token whose time is told
BATCH_CONTEXT = 64  # prompt tokens of each sequence of a batch


@dataclass(frozen=True)
class Workload:
    """context: tokens in the KV cache before it starts. batch: sequences decoded together."""

    test: Literal["prefill", "decode"]
    tokens: int
    context: int = 0
    batch: int = 1

    @property
    def length(self) -> int:
        """Tokens of each sequence at the end."""
        return self.context + self.tokens

    def __str__(self) -> str:
        if self.test == "prefill":
            return f"prefill {self.tokens}"
        return f"decode @{self.context}" if self.batch == 1 else f"batch {self.batch}"


def by_tokens(workloads: Iterable[Workload]) -> dict[int, list[Workload]]:
    """Grouped by the number of tokens: benchmark programs take one number, and lists of the rest."""
    groups: dict[int, list[Workload]] = defaultdict(list)
    for one in workloads:
        groups[one.tokens].append(one)
    return groups
