"""How long opening a model takes, to ready and to the first token, and how much memory it then has at most.

    python benchmarks/open_speed.py DIR [DIR ...] [--threads 1,2] [--rounds 5] [--json]

Each DIR is a cache folder whose files are in the page cache. In every round, in turns and each in a process of its own:

* first: without a panels file, as kumquant convert left the folder. Weights are packed at load;
* reopened: with the panels file that ``kumquant pack`` writes (here before the first round; deleted afterwards, unless
  it was there already).

Times start after the imports. The prompt has 16 tokens. "peak" is the process's resident peak, mapped pages included,
after a prompt of 512 tokens and 64 decoded ones (or what the context has room for), beside the size of the shards.
Median (minimum to maximum) of the rounds. In every round the cores' round trip is taken too, and how long the system
needs to give a process as much new memory as the panels take (one thread, huge pages): a virtual machine may have to
get it from its host first, and packing cannot be faster than that. "user" and "system" are the processor time of
opening, of all threads: the program's own, and the kernel's, most of it for new memory.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from kumquant import TensorCache, _native, pack
from kumquant.bench.machine import cpu_name
from kumquant.runtime import remove_panels, verify_panels

ONE_OPENING = """
import json, re, resource, sys, time
from pathlib import Path
from kumquant.engine import LLM, SamplingParams
def resident(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
folder, panels, threads = sys.argv[1], sys.argv[2] == "reopened", int(sys.argv[3])
imported, before = resident("VmHWM"), resource.getrusage(resource.RUSAGE_SELF)
start = time.perf_counter()
llm = LLM(folder, threads=threads, panels=panels)
opened, after = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
llm.generate([list(range(16))], SamplingParams(max_tokens=1, temperature=0, ignore_eos=True))
first_token = time.perf_counter()
assert (llm.model.panels_path is not None) == panels
small = resident("VmHWM")
prompt = min(512, llm.context_length - 64)
llm.generate([list(range(prompt))], SamplingParams(max_tokens=64, temperature=0, ignore_eos=True))
print(json.dumps({"open_s": opened - start, "open_user_s": after.ru_utime - before.ru_utime,
                  "open_system_s": after.ru_stime - before.ru_stime, "first_token_s": first_token - start,
                  "first_token_rss_bytes": small, "peak_rss_bytes": resident("VmHWM"),
                  "file_rss_bytes": resident("RssFile"), "imported_rss_bytes": imported}))
"""
NEW_MEMORY = """
import mmap, sys, time
memory = mmap.mmap(-1, int(sys.argv[1]), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
start = time.perf_counter()
for page in range(0, len(memory), 4096):
    memory[page] = 1
print(time.perf_counter() - start)
"""
KINDS = ("first", "reopened")


def measure(folder: Path, threads: list[int], rounds: int) -> list[dict[str, Any]]:
    cache = TensorCache.open(folder)
    had_panels = verify_panels(folder) is not None
    packed = pack(folder)
    for shard in cache.manifest.shards:
        (folder / shard.data_path).read_bytes()
    runs: dict[tuple[int, str], list[dict[str, Any]]] = {(count, kind): [] for count in threads for kind in KINDS}
    round_trips, new_memory = [], []
    try:
        for number in range(rounds):
            round_trips.append(_native.core_round_trip())
            new_memory.append(float(run_python(NEW_MEMORY, packed.nbytes)))
            for count, kind in list(runs)[:: 1 if number % 2 == 0 else -1]:
                runs[count, kind].append(json.loads(run_python(ONE_OPENING, folder, kind, count)))
    finally:
        if not had_panels:
            remove_panels(folder)
    return [
        {"folder": folder.name, "kind": kind, "threads": count, "cache_bytes": cache.manifest.nbytes,
         "panels_bytes": packed.nbytes, "round_trip_s": round_trips, "new_memory_s": new_memory,
         **{key: [run[key] for run in of_kind] for key in of_kind[0]}}
        for (count, kind), of_kind in runs.items()
    ]


def run_python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def spread(values: list[float], scale: float, digits: int) -> str:
    ordered = (min(values), statistics.median(values), max(values))
    low, middle, high = (f"{value * scale:,.{digits}f}" for value in ordered)
    return f"{middle} ({low}–{high})"


def print_report(machine: dict[str, Any], results: list[dict[str, Any]]) -> None:
    print(f"{machine['cpu']}, {machine['cores']} CPUs, Linux {machine['kernel']}, load {machine['load']:.1f} before; "
          f"{machine['rounds']} rounds\n")
    print("| model | threads | | open, ms | user, ms | system, ms | to first token, ms | peak memory, MB | "
          "of the shards |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in results:
        share = statistics.median(row["peak_rss_bytes"]) / row["cache_bytes"]
        print(f"| {row['folder']} | {row['threads']} | {row['kind']} | {spread(row['open_s'], 1e3, 1)} | "
              f"{spread(row['open_user_s'], 1e3, 0)} | {spread(row['open_system_s'], 1e3, 0)} | "
              f"{spread(row['first_token_s'], 1e3, 0)} | {spread(row['peak_rss_bytes'], 1e-6, 1)} | {share:.2f} × |")
    new_memory = {row["folder"]: f"{row['folder']} {spread(row['new_memory_s'], 1e3, 0)}" for row in results}
    print(f"\nNew memory alone, ms: {'; '.join(new_memory.values())}.")
    trips = [trip for row in results for trip in row["round_trip_s"]]
    print(f"Cores' round trip {spread(trips, 1e9, 0)} ns; the imports take "
          f"{statistics.median(results[0]['imported_rss_bytes']) / 1e6:.0f} MB of the memory.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    machine = {"cpu": cpu_name(), "cores": os.cpu_count(), "kernel": os.uname().release, "load": os.getloadavg()[0],
               "rounds": args.rounds}
    threads = [int(count) for count in args.threads.split(",")]
    results = [row for folder in args.folders for row in measure(folder, threads, args.rounds)]
    if args.json:
        print(json.dumps({"machine": machine, "results": results}, indent=2))
    else:
        print_report(machine, results)


if __name__ == "__main__":
    main()
