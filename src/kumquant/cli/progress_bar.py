"""The progress bar of a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

MAX_NOTE = 40
_REST = 34  # columns of a short bar, the percentage and both times: the note is cut before they are


class ProgressBar:
    """A bar on stderr that vanishes when the work is over."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._max_note = MAX_NOTE

    def start(self, total_bytes: int, what: str) -> None:
        self.finish()
        console = Console(stderr=True)
        self._max_note = max(0, min(MAX_NOTE, console.width - len(what) - _REST))
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
            console=console, transient=True,
        )
        self._task = self._bar.add_task(what, total=total_bytes, note="")
        self._bar.start()

    def advance(self, n: int, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._task, advance=n, note=note[max(0, len(note) - self._max_note):])

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
