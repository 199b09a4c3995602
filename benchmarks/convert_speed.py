"""How fast the quantizing kernels and a whole conversion are, in bytes of the source.

    python benchmarks/convert_speed.py [SOURCE ...] [-q q4f16_1] [--rounds 5] [--out DIR] [--json]

First every kernel on one thread, 16 MiB of float16, bfloat16 and float32 at a time. Then for each
checkpoint folder SOURCE (``make_models.py`` makes them) whole conversions: reading from a warm page cache,
quantizing, writing, md5 and flushing to the disk, each in a process of its own, with its peak memory.
Median (minimum to maximum) of the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
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
import json, re, sys
from pathlib import Path
from kumquant.convert import convert
def peak_kib():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
imported = peak_kib()
report = convert(sys.argv[1], sys.argv[2], sys.argv[3])
peak = peak_kib()
print(json.dumps({"seconds": report.seconds, "source_bytes": report.source_bytes, "cache_bytes":
report.cache_bytes,
                  "peak_rss_bytes": peak * 1024, "imported_rss_bytes": imported * 1024}))
"""


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


def measure_conversion(source: Path, mode: str, rounds: int, scratch: Path) -> dict[str, Any]:
    runs = []
    for _ in range(rounds):
        out = Path(tempfile.mkdtemp(dir=scratch, prefix="convert-speed-"))
        try:
            command = [sys.executable, "-c", ONE_CONVERSION, str(source), str(out), mode]
            runs.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        finally:
            shutil.rmtree(out)
    return {
        "source": str(source), "mode": mode, "source_bytes": runs[0]["source_bytes"],
        "cache_bytes": runs[0]["cache_bytes"],
        "gb_per_s": [run["source_bytes"] / run["seconds"] / 1e9 for run in runs],
        "peak_rss_bytes": max(run["peak_rss_bytes"] for run in runs),
        "imported_rss_bytes": max(run["imported_rss_bytes"] for run in runs),
    }


def spread(speeds: list[float]) -> str:
    return f"{statistics.median(speeds):.2f} ({min(speeds):.2f} to {max(speeds):.2f}) GB/s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, metavar="SOURCE")
    parser.add_argument("-q", "--quantization", default="q4f16_1", choices=list(SCHEMES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()), help="where caches are written")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(),
               "load": os.getloadavg()[0]}
    modes = [args.quantization] if SCHEMES[args.quantization].is_quantized else []
    kernels = measure_kernels(modes, args.rounds)
    conversions = [measure_conversion(source, args.quantization, args.rounds, args.out) for source in args.sources]
    if args.json:
        print(json.dumps({"machine": machine, "kernels": kernels, "conversions": conversions}, indent=2))
        return
    print(f"{machine['cores']} cores, load {machine['load']:.1f} before")
    for row in kernels:
        what = f"{row['source']} to {row['mode']}, {row['isa']}"
        print(f"kernel, one thread: {what}: {spread(row['gb_per_s'])}")
    for row in conversions:
        sizes = f"{row['source_bytes'] / 1e6:.0f} MB to {row['cache_bytes'] / 1e6:.0f} MB"
        peak, imported = row["peak_rss_bytes"] / 2**20, row["imported_rss_bytes"] / 2**20
        print(f"{row['source']} to {row['mode']}: {spread(row['gb_per_s'])}, {sizes}, "
              f"peak {peak:.0f} MiB of which {imported:.0f} MiB before it started")


if __name__ == "__main__":
    main()
