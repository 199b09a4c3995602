"""How many decode steps go into one native call."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .model import Model, StepInput, StepOutput
from .pages import PagePool

MAX_CALL_S = 8e-3  # half a frame on a screen
MAX_CALL_STEPS = 16


class Pace:
    """Counts out decode steps by the time they take.

    Between two native calls Python works for 30 us and more: nothing beside a step of most models, a twentieth of a
    small one's. So as many steps as last ``max_call_s`` together go at once; nobody who reads, waits or gives up
    notices. Which tokens come does not depend on it.
    """

    def __init__(self, max_call_s: float = MAX_CALL_S) -> None:
        self._max_call_s = max_call_s
        self._num_sequences, self._step_s = 0, 0.0

    def decode(self, model: Model, pool: PagePool, inputs: Sequence[StepInput], most: int) -> list[list[StepOutput]]:
        """``model.decode`` of as many steps as are quick together, at most ``most``."""
        begin = time.perf_counter()
        outputs = model.decode(pool, inputs, min(self.num_steps(len(inputs)), most))
        self.note(len(inputs), (time.perf_counter() - begin) / len(outputs[0]))
        return outputs

    def num_steps(self, num_sequences: int) -> int:
        """Steps of the next call; 1 as long as no step of so many sequences was timed."""
        if num_sequences != self._num_sequences:
            return 1
        return max(1, min(int(self._max_call_s / self._step_s), MAX_CALL_STEPS))

    def note(self, num_sequences: int, step_s: float) -> None:
        """A step of so many sequences took ``step_s`` seconds."""
        self._num_sequences, self._step_s = num_sequences, max(step_s, 1e-9)
