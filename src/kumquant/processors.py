"""The processors this process may use, and how many threads that means by default."""

from __future__ import annotations

import os
from pathlib import Path

# Far more than any machine has use for; beyond it a slip of the finger would exhaust the system's threads.
MAX_THREADS = 1024


def default_threads() -> int:
    """Physical cores among the processors this process may run on.

    A core's second hardware thread adds little to this work and costs the first one. Where the topology is
    unknown every processor counts.
    """
    cores = {_siblings(processor) for processor in available_processors()}
    return max(len(cores), 1)


def available_processors() -> list[int]:
    """Logical processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def processors_for(threads: int) -> list[int]:
    """As many processors as threads, as far as there are: one of each physical core first, the highest ones, since
    what else a machine does tends to sit on the lowest.
    """
    by_core: dict[str, list[int]] = {}
    for processor in reversed(available_processors()):
        by_core.setdefault(_siblings(processor), []).append(processor)
    depth = max(map(len, by_core.values()))
    in_turns = [core[turn] for turn in range(depth) for core in by_core.values() if turn < len(core)]
    return sorted(in_turns[:threads])


def _siblings(processor: int) -> str:
    """The hardware threads of a processor's core, as Linux has it ("0,4"); elsewhere the processor itself."""
    path = Path(f"/sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list")
    try:
        return path.read_text().strip()
    except OSError:
        return str(processor)
