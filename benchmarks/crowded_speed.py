"""Decode speed while other programs want the processors too: beside 0, 1 and 2 busy loops, and with all threads kept on
one processor.

    python benchmarks/crowded_speed.py CACHE [--threads 1,2] [--seconds 2] [--out FILE.json]

Threads that wait for each other must not take the processor from the one they wait for.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kumquant.models import TensorCache
from kumquant.runtime import Model, SamplerConfig, StepInput

TOKENS = 16
PAGES = 1


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Programs that compute without end."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    time.sleep(0.2)
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@contextmanager
def on_one_processor() -> Iterator[None]:
    """All threads of this process there are now, as the system sometimes places them by itself."""
    usable = os.sched_getaffinity(0)
    tasks = [int(task) for task in os.listdir("/proc/self/task")]
    for task in tasks:
        os.sched_setaffinity(task, {min(usable)})
    try:
        yield
    finally:
        for task in tasks:
            os.sched_setaffinity(task, usable)


def speeds(model: Model, seconds: float) -> list[float]:
    """Tokens per second of each run of TOKENS steps."""
    pool = model.new_pool(PAGES)
    sequence = model.new_sequence(pool, SamplerConfig())
    sequence.add_pages(pool.allocate(PAGES))
    found, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        sequence.native.reset(0, sequence.pages)
        begin, token = time.perf_counter(), 1
        for _ in range(TOKENS):
            token = model.step(pool, [StepInput(sequence, [token], "sample")])[0].token_id
        found.append(TOKENS / (time.perf_counter() - begin))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", type=Path)
    parser.add_argument("--threads", type=lambda text: [int(one) for one in text.split(",")], default=[1, 2])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, help="also write the rows there, as JSON")
    options = parser.parse_args()
    rows = []
    print(f"{'threads':>7}  {'beside':16}{'tok/s':>8}{'slowest':>9}")
    for threads in options.threads:
        model = Model(TensorCache.open(options.cache), threads=threads)
        speeds(model, 0.5)
        for name, place in (("nothing", busy_loops(0)), ("1 busy loop", busy_loops(1)), ("2 busy loops", busy_loops(2)),
                            ("on 1 processor", on_one_processor())):
            with place:
                found = speeds(model, options.seconds)
            row = {"threads": threads, "beside": name, "median": statistics.median(found), "slowest": min(found)}
            rows.append(row)
            print(f"{threads:7}  {name:16}{row['median']:8.1f}{row['slowest']:9.1f}", flush=True)
        del model
    if options.out is not None:
        options.out.write_text(json.dumps({"cache": options.cache.name, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
