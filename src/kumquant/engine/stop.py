"""Stop strings: found across token boundaries, and never shown, not even in part."""

from __future__ import annotations

import re
from collections.abc import Sequence


class StopMatcher:
    """Passes text on except what is, or may yet become, a stop string.

    >>> matcher = StopMatcher(["END"])
    >>> matcher.push("one E"), matcher.push("ND two"), matcher.stopped
    ('one ', '', True)
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._first_character = re.compile("|".join({re.escape(string[0]) for string in self._stop}))
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The part of the text so far that is now certain to stand before every stop string."""
        if not self._stop:
            return text
        text = self._held + text
        if not self._first_character.search(text):  # most pieces: no stop string begins here
            return text
        ends = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if ends:
            self.stopped, self._held = True, ""
            return text[:min(ends)]
        certain = len(text) - self._undecided(text)
        self._held = text[certain:]
        return text[:certain]

    def flush(self) -> str:
        """What was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _undecided(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for match in self._first_character.finditer(text, max(len(text) - self._longest + 1, 0)):
            end = text[match.start():]
            if any(stop.startswith(end) for stop in self._stop):
                return len(end)
        return 0
