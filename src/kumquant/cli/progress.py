"""Progress on stderr: a bar on a terminal, a line now and then in a log, nothing under --quiet."""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from ..progress import NO_PROGRESS, Progress

SECONDS_BETWEEN_LINES = 5.0


def progress_for(args: argparse.Namespace) -> Progress:
    """The progress display that fits the options and the terminal."""
    if args.quiet:
        return NO_PROGRESS
    if sys.stderr.isatty():
        # Drawing a bar is the only thing rich is needed for; without a terminal it is not even imported.
        bar: Progress = importlib.import_module(".progress_bar", __package__).ProgressBar()
        return bar
    return LineProgress()


class LineProgress:
    """A line every few seconds; nothing at all for work that is over sooner."""

    def __init__(self, seconds_between: float = SECONDS_BETWEEN_LINES) -> None:
        self._seconds_between = seconds_between
        self._total = self._done = 0
        self._what = ""
        self._next_line_at = 0.0

    def start(self, total_bytes: int, what: str) -> None:
        self._total, self._done, self._what = total_bytes, 0, what
        self._next_line_at = time.monotonic() + self._seconds_between

    def advance(self, n: int, note: str = "") -> None:
        self._done += n
        if time.monotonic() >= self._next_line_at:
            self._next_line_at = time.monotonic() + self._seconds_between
            share = self._done / self._total if self._total else 1.0
            print(f"{self._what}: {share:.0%}  {note}".rstrip(), file=sys.stderr, flush=True)

    def finish(self) -> None:
        pass
