"""How long work reports that it advances, without knowing who watches."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Watches one piece of work, counted in bytes. Calls never overlap, but may come from several threads."""

    def start(self, total_bytes: int, what: str) -> None:
        """Work of ``total_bytes`` begins; ``what`` says which ("verify", "convert")."""

    def advance(self, n: int, note: str = "") -> None:
        """``n`` more bytes are done; ``note`` names what is being worked on, for display only."""

    def finish(self) -> None:
        """The work is over, done or failed."""


class _NoProgress:
    def start(self, total_bytes: int, what: str) -> None:
        pass

    def advance(self, n: int, note: str = "") -> None:
        pass

    def finish(self) -> None:
        pass


NO_PROGRESS: Progress = _NoProgress()
