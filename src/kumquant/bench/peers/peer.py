"""What a comparison needs of another runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..workload import Workload


@dataclass(frozen=True)
class Speeds:
    """tokens_per_s: of the whole batch. peak_rss_bytes: of a process that ran them; of the batches of 1 if it can."""

    tokens_per_s: dict[Workload, float]
    peak_rss_bytes: int


@dataclass(frozen=True)
class Opening:
    """seconds: from opening the model, cached by the system, to the first token of a 16-token prompt."""

    seconds: float
    peak_rss_bytes: int


class Peer(ABC):
    """A runtime on this machine. settings: names of ways to run it; a comparison tries them all.

    location: what the user said after "=": where the programs or a model of its own are.
    """

    name: str
    settings: tuple[str, ...]

    @abstractmethod
    def how_to_install(self) -> str | None:
        """None where it is installed; else what to do."""

    @abstractmethod
    def prepare(self, cache: Path, work: Path) -> None:
        """Make the peer's own model of the cache in the folder ``work``, where it is not there yet.

        Raises Error where the peer, or our writer, cannot take this model.
        """

    @abstractmethod
    def measure(self, setting: str, workloads: Sequence[Workload], threads: int, processors: Sequence[int]) -> Speeds:
        """Each workload once, warmed up. Raises PeerError."""

    @abstractmethod
    def open(self, setting: str, threads: int, processors: Sequence[int]) -> Opening:
        """A process of its own that opens the model and stops after the first token. Raises PeerError."""
