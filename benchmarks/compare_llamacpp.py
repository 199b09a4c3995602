"""Kumquant and llama.cpp on the same weights, paired: alternating in every round, on the same CPUs.

    benchmarks/build-llamacpp /tmp/llamacpp
    python benchmarks/make_models.py /tmp/bench --gguf
    python benchmarks/compare_llamacpp.py --llamacpp /tmp/llamacpp/build/bin --work /tmp/bench

Run it with a Python that has Kumquant, on an otherwise idle machine: about five minutes a round on two cores.
Caches (q4f16_1) and Q4_0 files, both 4.5 bits a weight, are made in WORK where they are missing. Writes
benchmarks/results/<cpu>-<date>.json, every single figure, and the .md table that comparison_report.py makes
of it.

Each measure is one process, pinned to as many CPUs as it has threads. llama.cpp runs in two settings, as it
comes and with `-fa off -ctk q8_0` (faster for small heads); the report takes the better one for each measure.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from comparison_report import report
from make_models import SHAPES

HERE = Path(__file__).parent
QUANTIZATION = "q4f16_1"
LLAMACPP_SETTINGS = {"default": [], "fa off, q8_0 K": ["-fa", "off", "-ctk", "q8_0"]}
BATCHED_PROMPT, BATCH, DECODED = 64, 8, 64


@dataclass(frozen=True)
class Finished:
    stdout: str
    peak_rss_bytes: int


def run(command: list[str], cpus: set[int]) -> Finished:
    """Run a command on these CPUs only. Raises RuntimeError with the end of its stderr when it fails."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, preexec_fn=pin_to(cpus))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        if process.returncode != 0:
            tail = stderr.read().decode(errors="replace")[-2000:]
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{tail}")
        return Finished(stdout.read().decode(), usage.ru_maxrss * 1024)


def pin_to(cpus: set[int]) -> Callable[[], None]:
    return lambda: os.sched_setaffinity(0, cpus)


def measure_kumquant(cache: Path, threads: int, cpus: set[int]) -> dict[str, Any]:
    """One round of `kumquant bench`: tokens/s by measure in "speeds", peak memory, opening times."""
    finished = run(
        [
            sys.executable,
            "-m",
            "kumquant",
            "bench",
            str(cache),
            "--json",
            "--rounds",
            "1",
            "--threads",
            str(threads),
            "--prefill",
            "512",
            "--decode",
            str(DECODED),
            "--context",
            "0,512",
            "--batch",
            f"1,{BATCH}",
        ],
        cpus,
    )
    found = json.loads(finished.stdout)
    speeds = {}
    for result in found["results"]:
        if result["test"] == "prefill":
            speeds["prefill 512"] = result["tokens_per_s"]
        elif result["batch"] == 1:
            speeds[f"decode @{result['context']}"] = result["tokens_per_s"]
        else:
            speeds[f"decode batch {result['batch']}"] = result["tokens_per_s"]
    return {
        "engine": "kumquant",
        "setting": found["isa"],
        "speeds": speeds,
        "peak_rss_bytes": found["peak_rss_bytes"],
        "process_peak_rss_bytes": finished.peak_rss_bytes,
        "open_s": found["open_s"],
        "first_token_s": found["first_token_s"],
    }


def measure_llamacpp(binaries: Path, model: Path, threads: int, cpus: set[int], setting: str) -> dict[str, Any]:
    """One round of llama-bench and llama-batched-bench. The peak is llama-bench's, so of batch 1 only."""
    options = ["-m", str(model), "-t", str(threads), *LLAMACPP_SETTINGS[setting]]
    single = run(
        [
            str(binaries / "llama-bench"),
            *options,
            "-r",
            "1",
            "-o",
            "jsonl",
            "-p",
            "512",
            "-n",
            str(DECODED),
            "-d",
            "0,512",
        ],
        cpus,
    )
    speeds = {}
    for result in map(json.loads, single.stdout.splitlines()):
        if result["n_gen"]:
            speeds[f"decode @{result['n_depth']}"] = result["avg_ts"]
        elif result["n_depth"] == 0:
            speeds[f"prefill {result['n_prompt']}"] = result["avg_ts"]
    batched = run(
        [
            str(binaries / "llama-batched-bench"),
            *options,
            "-tb",
            str(threads),
            "--output-format",
            "jsonl",
            "-c",
            str(2 * BATCH * (BATCHED_PROMPT + DECODED)),
            "-npp",
            str(BATCHED_PROMPT),
            "-ntg",
            str(DECODED),
            "-npl",
            str(BATCH),
        ],
        cpus,
    )
    lines = [line for line in batched.stdout.splitlines() if line.startswith("{")]
    speeds[f"decode batch {BATCH}"] = json.loads(lines[-1])["speed_tg"]
    return {
        "engine": "llama.cpp",
        "setting": setting,
        "speeds": speeds,
        "peak_rss_bytes": single.peak_rss_bytes,
    }


def cache_of(options: argparse.Namespace, name: str) -> Path:
    return options.work / f"{name}-{QUANTIZATION}"


def q4_0_of(options: argparse.Namespace, name: str) -> Path:
    return options.work / f"{name}-q4_0.gguf"


def prepare(options: argparse.Namespace, name: str) -> None:
    """Make the cache and the Q4_0 file of one model where they are missing."""
    every_cpu = os.sched_getaffinity(0)
    cache, q4_0 = cache_of(options, name), q4_0_of(options, name)
    if not options.only_llamacpp and not (cache / "tensor-cache.json").exists():
        source = str(options.work / name)
        run(
            [sys.executable, "-m", "kumquant", "convert", source, "-o", str(cache), "-q", QUANTIZATION],
            every_cpu,
        )
    if not q4_0.exists():
        pure = ["--pure", "--token-embedding-type", "q4_0", "--output-tensor-type", "q4_0"]
        f16 = str(options.work / f"{name}-f16.gguf")
        run([str(options.llamacpp / "llama-quantize"), *pure, f16, str(q4_0), "Q4_0"], every_cpu)


def build_limits(folder: str) -> Path:
    program = Path(folder) / "limits"
    subprocess.run(
        [
            os.environ.get("CC", "cc"),
            "-O3",
            "-march=native",
            "-pthread",
            str(HERE / "limits.c"),
            "-o",
            str(program),
        ],
        check=True,
    )
    return program


def one_round(options: argparse.Namespace, limits: Path, number: int) -> Iterator[dict[str, Any]]:
    """All measures once. Odd rounds run the engines in the opposite order, so that none is always first."""
    allowed = sorted(os.sched_getaffinity(0))
    for name, threads in itertools.product(options.models, options.threads):
        cpus = set(allowed[-threads:])
        measures: list[Callable[[], dict[str, Any]]] = [
            partial(measure_llamacpp, options.llamacpp, q4_0_of(options, name), threads, cpus, setting)
            for setting in LLAMACPP_SETTINGS
        ]
        if not options.only_llamacpp:
            measures.insert(0, partial(measure_kumquant, cache_of(options, name), threads, cpus))
        block = {"round": number, "model": name, "threads": threads}
        yield block | {"limits": json.loads(run([str(limits), "1"], set(allowed)).stdout)}
        for measure in measures if number % 2 == 0 else reversed(measures):
            yield block | measure()


def machine() -> dict[str, Any]:
    """What the numbers depend on. A virtual CPU's name often says little, so its family and model too."""
    cpuinfo = Path("/proc/cpuinfo").read_text()

    def field(key: str) -> str:
        match = re.search(rf"^{key}\s*: (.*)$", cpuinfo, re.MULTILINE)
        return match.group(1) if match else "unknown"

    return {
        "cpu": field("model name"),
        "cpu_family": field("cpu family"),
        "cpu_model": field("model"),
        "cache": field("cache size"),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
    }


def git_commit() -> str:
    """The commit under test, marked where tracked files differ from it."""
    return subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, check=True, capture_output=True, text=True
    ).stdout.strip()


def parse_arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--llamacpp", type=Path, required=True, help="folder of llama-bench and its companions")
    parser.add_argument("--work", type=Path, required=True, help="folder that make_models.py filled")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--only-llamacpp", action="store_true", help="to try the script without Kumquant")
    parser.add_argument("--out", type=Path, help="name of the result without suffix")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    here, today = machine(), datetime.date.today().isoformat()
    cpu = re.sub(r"[^a-z0-9]+", "-", f"{here['cpu']}-{here['cpu_family']}-{here['cpu_model']}".lower())
    out = options.out or HERE / "results" / f"{cpu}-{today}"
    out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "date": today,
        "machine": here,
        "kumquant_commit": git_commit(),
        "quantization": QUANTIZATION,
        "llamacpp": "llama-cpp-python 0.3.36, -march=native, Q4_0",
        "measurements": [],
    }
    for name in options.models:
        prepare(options, name)
    with tempfile.TemporaryDirectory() as folder:
        limits = build_limits(folder)
        for number in range(options.rounds):
            for measurement in one_round(options, limits, number):
                print(json.dumps(measurement), file=sys.stderr, flush=True)
                found["measurements"].append(measurement)
                out.with_name(out.name + ".json").write_text(json.dumps(found, indent=1) + "\n")
    text = report(found)
    out.with_name(out.name + ".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
