"""How fast the quantizing kernels and a whole conversion are, in bytes of the source.

    python benchmarks/convert_speed.py [SOURCE ...] [-q q4f16_1] [--rounds 5] [--out DIR] [--against SRC] [--json FILE]

First every kernel on one thread, 16 MiB of float16, bfloat16 and float32 at a time. Then for each SOURCE, a
checkpoint folder (``make_models.py`` makes them) or a GGUF file, whole conversions: reading from a warm page cache,
quantizing, writing, md5 and flushing to the disk, each in a process of its own, with its peak memory and its CPU
time. The disk's limit alongside: in the same round as many bytes as the cache has, written plainly to one file in
the same folder and flushed. --against: the src folder of another tree, built, measured in the same rounds in
alternating order; a ratio compares the two within one round. Median (minimum to maximum) of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from kumquant import _native
from kumquant.quant import new_outputs, round_to_nearest
from kumquant.schemes import SCHEMES

ONE_CONVERSION = """
import json, re, sys, time
from pathlib import Path
from kumquant.convert import convert
def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
imported = peak_kib()
report = convert(sys.argv[1], sys.argv[2], sys.argv[3])
peak = peak_kib()
print(json.dumps({"seconds": report.seconds, "source_bytes": report.source_bytes, "cache_bytes": report.cache_bytes,
                  "peak_rss_bytes": peak * 1024, "imported_rss_bytes": imported * 1024,
                  "cpu_seconds": time.process_time()}))
"""
_WRITTEN_AT_A_TIME = os.urandom(1 << 20)
HERE = Path(__file__).resolve().parent.parent / "src"


def measure_kernels(modes: list[str], rounds: int) -> list[dict[str, Any]]:
    values = np.random.default_rng(0).standard_normal((2048, 4096), dtype=np.float32) * np.float32(0.02)
    results = []
    for mode in modes:
        for source in (np.float16, ml_dtypes.bfloat16, np.float32):
            weight = values.astype(source)[: 1024 if source is np.float32 else 2048]
            codes, scales = new_outputs(*weight.shape, SCHEMES[mode])
            for isa in _native.isa_list():
                speeds = []
                for _ in range(rounds):
                    start = time.perf_counter()
                    round_to_nearest(weight, SCHEMES[mode], codes, scales, isa)
                    speeds.append(weight.nbytes / (time.perf_counter() - start) / 1e9)
                results.append({"mode": mode, "source": str(weight.dtype), "isa": isa, "gb_per_s": speeds})
    return results


def convert_once(source: Path, mode: str, scratch: Path, tree: Path) -> dict[str, Any]:
    """One conversion by the package in ``tree``; process_seconds: with the start of the interpreter and imports."""
    out = Path(tempfile.mkdtemp(dir=scratch, prefix="convert-speed-"))
    try:
        started = time.perf_counter()
        command = [sys.executable, "-c", ONE_CONVERSION, str(source), str(out), mode]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        answer = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        return {**json.loads(answer), "process_seconds": time.perf_counter() - started}
    finally:
        shutil.rmtree(out)


def plain_write_seconds(nbytes: int, scratch: Path) -> float:
    """What the disk needs for that many bytes at best: one file, one flush."""
    with tempfile.NamedTemporaryFile(dir=scratch, prefix="convert-speed-", buffering=0) as file:
        started = time.perf_counter()
        for begin in range(0, nbytes, len(_WRITTEN_AT_A_TIME)):
            file.write(_WRITTEN_AT_A_TIME[: nbytes - begin])
        os.fsync(file.fileno())
        return time.perf_counter() - started


def measure_source(source: Path, mode: str, rounds: int, scratch: Path, trees: dict[str, Path]) -> dict[str, Any]:
    warm_up(source)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trees}
    plain, loads = [], []
    for number in range(rounds):
        loads.append(os.getloadavg()[0])
        for name in list(trees)[:: -1 if number % 2 else 1]:
            runs[name].append(convert_once(source, mode, scratch, trees[name]))
        plain.append(plain_write_seconds(runs[name][-1]["cache_bytes"], scratch))
    size = runs["this"][0]["source_bytes"]
    return {"source": str(source), "mode": mode, "source_bytes": size,
            "cache_bytes": runs["this"][0]["cache_bytes"], "load": loads, "plain_write_seconds": plain,
            "disk_limit_gb_per_s": [size / seconds / 1e9 for seconds in plain], "runs": runs}


def warm_up(source: Path) -> None:
    """Read every file of the source once, so that the page cache has it."""
    for file in [source] if source.is_file() else sorted(source.iterdir()):
        with file.open("rb", buffering=0) as opened:
            while opened.read(1 << 24):
                pass


def spread(values: list[float], unit: str = "GB/s", digits: int = 2) -> str:
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle} ({low} to {high}) {unit}"


def print_source(row: dict[str, Any]) -> None:
    size = row["source_bytes"]
    print(f"{row['source']} to {row['mode']}: {size / 1e6:.0f} MB to {row['cache_bytes'] / 1e6:.0f} MB, load "
          f"{min(row['load']):.1f} to {max(row['load']):.1f}")
    for name, runs in row["runs"].items():
        rates = [size / run["seconds"] / 1e9 for run in runs]
        whole = [size / run["process_seconds"] / 1e9 for run in runs]
        peak = max(run["peak_rss_bytes"] for run in runs) / 2**20
        imported = max(run["imported_rss_bytes"] for run in runs) / 2**20
        print(f"  {name}: {spread(rates)}; with the program's start {spread(whole)}; CPU time "
              f"{spread([run['cpu_seconds'] for run in runs], 's')}; peak {peak:.0f} MiB of which {imported:.0f} MiB "
              "before it started")
    print(f"  plain write and flush of as many bytes as the cache: {spread(row['disk_limit_gb_per_s'])} of the source")
    if "against" in row["runs"]:
        ratios = [old["seconds"] / new["seconds"] for old, new in zip(row["runs"]["against"], row["runs"]["this"])]
        print(f"  this over against, within a round: {spread(ratios, 'times')}")


def cpu_name() -> str:
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, metavar="SOURCE")
    parser.add_argument("-q", "--quantization", default="q4f16_1", choices=list(SCHEMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()), help="where caches are written")
    parser.add_argument("--against", type=Path, metavar="SRC", help="the src folder of another tree, built")
    parser.add_argument("--no-kernels", action="store_true", help="whole conversions only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured here, too")
    args = parser.parse_args()
    trees = {"this": HERE} | ({"against": args.against.resolve()} if args.against else {})
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "load": os.getloadavg()[0],
               "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}
    print("{cpu}, {cores} CPUs, load {load:.1f} before, {date}".format(**machine), flush=True)
    modes = [args.quantization] if SCHEMES[args.quantization].is_quantized and not args.no_kernels else []
    kernels = measure_kernels(modes, args.rounds)
    for row in kernels:
        what = f"{row['source']} to {row['mode']}, {row['isa']}"
        print(f"kernel, one thread: {what}: {spread(row['gb_per_s'])}", flush=True)
    conversions = []
    for source in args.sources:
        conversions.append(measure_source(source, args.quantization, args.rounds, args.out, trees))
        print_source(conversions[-1])
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "kernels": kernels, "conversions": conversions}, indent=1))


if __name__ == "__main__":
    main()
