"""Kumquant and its peers on the same weights, paired: in turns in every round, on the same CPUs.

    python benchmarks/compare_peers.py --work /tmp/bench --out benchmarks/results/NAME.json \\
        --llamacpp BIN --ik-llamacpp BIN --peer-python PYTHON [--smollm2 FOLDER] [--rounds 5]
        [--models S L SmolLM2] [--engines kumquant openvino …] [--measures "decode @0" "batch 8" …] [--threads 1 2]

Run it with a Python that has Kumquant, on an otherwise idle machine; benchmarks/README.md says how the peers are
installed. A peer whose option is missing is left out. --prepare only makes the models: checkpoints and caches (q4f16_1)
and, from these, every peer's own file of the very same codes and scales.

Rounds are added to those that NAME.json has already, so models, engines and measures can be taken in parts. Only
figures of one round are compared with each other: take the engines of a measure together. NAME.md is the report.

Each engine runs in processes of its own, pinned to as many CPUs as it has threads, and limits.c before them. Which
of a peer's settings run for what is SETTINGS; --settings all runs all of them for everything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from comparison_report import report
from machine_facts import git_commit, machine, output_of
from make_models import SHAPES, write_checkpoint

import kumquant
from kumquant.bench import Kumquant, Peer, PeerError, Workload, find_peer, run_pinned
from kumquant.processors import processors_for

HERE = Path(__file__).parent
QUANTIZATION = "q4f16_1"
CONTEXT_LENGTH = 8192  # S has 1,024 by its config; nothing else of the model depends on it
DECODED, BATCH_PROMPT = 64, 64
OPEN = "open"  # gives "first token" and "peak memory"

SHORT = ("prefill 512", "decode @0", "decode @512")
LONG = ("decode @4096",)
BATCHES = ("batch 8", "batch 32")
MEASURES = (*SHORT, *LONG, *BATCHES, OPEN)
WORKLOADS = {
    "prefill 512": Workload("prefill", 512),
    "decode @0": Workload("decode", DECODED, 0),
    "decode @512": Workload("decode", DECODED, 512),
    "decode @4096": Workload("decode", DECODED, 4096),
    "batch 8": Workload("decode", DECODED, BATCH_PROMPT, 8),
    "batch 32": Workload("decode", DECODED, BATCH_PROMPT, 32),
}

# What each setting is for; where a setting lost every measure by far in earlier rounds of all, it is left out. S has
# heads of 32, for which the flash attention of llama.cpp and its fork is slow.
EVERYTHING = frozenset(MEASURES)
SPEEDS = EVERYTHING - {OPEN}
SETTINGS: dict[tuple[str, str], dict[str, frozenset[str]]] = {
    ("kumquant", "default"): dict.fromkeys(("S", "L", "SmolLM2"), EVERYTHING),
    ("kumquant", "int8 KV"): dict.fromkeys(("S", "L", "SmolLM2"), frozenset({"decode @512", "decode @4096"})),
    ("kumquant", "packed"): dict.fromkeys(("S", "L", "SmolLM2"), frozenset({OPEN})),
    ("llama.cpp", "default"): {"S": EVERYTHING - {"decode @512", "decode @4096"}, "L": EVERYTHING,
                               "SmolLM2": EVERYTHING - {"decode @4096"}},
    ("llama.cpp", "fa off, q8_0 K"): dict.fromkeys(("S", "L", "SmolLM2"), SPEEDS),
    ("ik_llama.cpp", "rtr, fa off"): {"S": SPEEDS},
    ("ik_llama.cpp", "rtr"): dict.fromkeys(("L", "SmolLM2"), SPEEDS - {"decode @4096"}),
    ("ik_llama.cpp", "rtr, q8_0 KV"): dict.fromkeys(("L", "SmolLM2"), SPEEDS),
    ("ik_llama.cpp", "repacked file"): dict.fromkeys(("S", "L", "SmolLM2"), frozenset({OPEN})),
    ("openvino", "default"): dict.fromkeys(("S", "L", "SmolLM2"), EVERYTHING),
    ("onnxruntime", "default"): dict.fromkeys(("S", "L", "SmolLM2"), EVERYTHING),
}
ENGINES = tuple(dict.fromkeys(engine for engine, _ in SETTINGS))


@dataclass(frozen=True)
class Model:
    """A model and those who run it. packed: Kumquant with a panels file beside another copy of the cache."""

    name: str
    engines: tuple[Peer, ...]
    packed: Kumquant


def prepare(options: argparse.Namespace, name: str, peers: list[Peer]) -> Model:
    """Make what is missing: checkpoint, caches, peers' models. A peer that fails at it is left out, and said."""
    cache, packed = (options.work / f"{name}-{QUANTIZATION}{suffix}" for suffix in ("-8k", "-8k-packed"))
    if not (cache / "tensor-cache.json").exists():
        source = options.smollm2 if name == "SmolLM2" else options.work / f"{name}-8k"
        if name in SHAPES and not (source / "model.safetensors").exists():
            write_checkpoint(source, replace(SHAPES[name], context_length=CONTEXT_LENGTH))
        kumquant.convert(source, cache, QUANTIZATION)
    if not packed.exists():
        packed.mkdir()
        for path in cache.iterdir():
            os.link(path, packed / path.name)
    kumquant.pack(packed)
    own = Kumquant({"default": (), "int8 KV": ("--kv-dtype", "int8")})
    own_packed = Kumquant({"packed": ()})
    own.prepare(cache, options.work)
    own_packed.prepare(packed, options.work)
    engines: list[Peer] = [own]
    work = options.work / "peers" / name
    work.mkdir(parents=True, exist_ok=True)
    for peer in peers:
        try:
            peer.prepare(cache, work)
            engines.append(peer)
        except kumquant.Error as error:
            print(f"{name}: without {peer.name}: {error}", file=sys.stderr)
    return Model(name, tuple(engines), own_packed)


def peers_of(options: argparse.Namespace) -> list[Peer]:
    """A new object for each peer that the options name; each keeps the paths of one model."""
    locations = {"llama.cpp": options.llamacpp, "ik_llama.cpp": options.ik_llamacpp}
    peers = [find_peer(name, location) for name, location in locations.items() if location]
    if options.peer_python:
        peers += [find_peer(name, None, options.peer_python) for name in ("openvino", "onnxruntime")]
    for peer in peers:
        if how := peer.how_to_install():
            print(f"{peer.name} is not installed: {how}", file=sys.stderr)
    return [peer for peer in peers if peer.how_to_install() is None and peer.name in options.engines]


def turns_of(model: Model, options: argparse.Namespace) -> list[tuple[Peer, str, frozenset[str]]]:
    """(engine, setting, measures) of one round."""
    turns: list[tuple[Peer, str, frozenset[str]]] = []
    for engine in (*model.engines, model.packed):
        if engine.name not in options.engines:
            continue
        for setting in engine.settings:
            usual = SETTINGS.get((engine.name, setting), {}).get(model.name, frozenset())
            measures = frozenset(options.measures) & (EVERYTHING if options.settings == "all" else usual)
            if measures:
                turns.append((engine, setting, measures))
    return turns


def figures_of(engine: Peer, setting: str, measures: frozenset[str], threads: int) -> dict[str, float]:
    """Measure -> figure, each kind of work in processes of its own."""
    processors = processors_for(threads)
    found: dict[str, float] = {}
    for kind in (SHORT, LONG, BATCHES):
        chosen = [name for name in kind if name in measures]
        if chosen:
            speeds = engine.measure(setting, [WORKLOADS[name] for name in chosen], threads, processors)
            found |= {name: speeds.tokens_per_s[WORKLOADS[name]] for name in chosen}
            if tuple(chosen) == SHORT:
                found["peak memory, 512 and decode"] = speeds.peak_rss_bytes
    if OPEN in measures:
        opening = engine.open(setting, threads, processors)
        found |= {"first token": opening.seconds, "peak memory": opening.peak_rss_bytes}
    return found


def one_round(model: Model, options: argparse.Namespace, limits: Path, number: int) -> Iterator[dict[str, Any]]:
    """Odd rounds run the engines in the opposite order, so that none is always first."""
    for threads in options.threads:
        block = {"round": number, "model": model.name, "threads": threads}
        alongside = json.loads(run_pinned([str(limits), "1"]).stdout)
        yield block | {"limits": {f"{one['measure']}, {one['unit']}": one["value"] for one in alongside
                                  if one["threads"] == threads or one["measure"] == "round trip"}}
        turns = turns_of(model, options)
        for engine, setting, measures in turns if number % 2 == 0 else reversed(turns):
            try:
                figures = figures_of(engine, setting, measures, threads)
            except PeerError as error:
                print(f"{model.name}, {threads} threads, {engine.name} ({setting}): {error}", file=sys.stderr)
                continue
            yield block | {"engine": engine.name, "setting": setting, "figures": figures}


def build_limits(folder: str) -> Path:
    program = Path(folder) / "limits"
    compiler = os.environ.get("CC", "cc")
    subprocess.run([compiler, "-O3", "-march=native", "-pthread", str(HERE / "limits.c"), "-o", str(program)],
                   check=True)
    return program


def versions(options: argparse.Namespace) -> dict[str, str]:
    """Of the peers, as far as they can be asked."""
    found = {}
    if options.llamacpp:
        found["llama.cpp"] = "the source in llama-cpp-python 0.3.36, -march=native"
    if options.ik_llamacpp:
        commit = output_of("git", "rev-parse", "--short", "HEAD", cwd=options.ik_llamacpp)
        found["ik_llama.cpp"] = f"{commit}, -march=native"
    if options.peer_python:
        ask = "import importlib.metadata as found, sys; print(*sys.argv[1:], found.version(sys.argv[1]))"
        found["openvino"] = output_of(options.peer_python, "-c", ask, "openvino-genai")
        found["onnxruntime"] = output_of(options.peer_python, "-c", ask, "onnxruntime-genai")
    return found


def parse_arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--work", type=Path, required=True, help="folder for models, caches and the peers' files")
    parser.add_argument("--llamacpp", type=Path, help="folder of llama-bench and llama-batched-bench")
    parser.add_argument("--ik-llamacpp", type=Path, help="the same of ik_llama.cpp, llama-quantize too")
    parser.add_argument("--peer-python", help="a Python with openvino-genai and onnxruntime-genai")
    parser.add_argument("--smollm2", type=Path, help="checkpoint folder of SmolLM2-135M")
    parser.add_argument("--models", nargs="+", choices=(*SHAPES, "SmolLM2"), default=list(SHAPES))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--measures", nargs="+", choices=MEASURES, default=list(MEASURES))
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--settings", choices=("usual", "all"), default="usual")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prepare", action="store_true", help="make the models and stop")
    parser.add_argument("--out", type=Path, help="the result, .json; default benchmarks/results/<cpu>-<date>.json")
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    options.work.mkdir(parents=True, exist_ok=True)
    models = [prepare(options, name, peers_of(options)) for name in options.models]
    if options.prepare:
        return
    here, now = machine(), datetime.datetime.now(datetime.UTC)
    cpu = re.sub(r"[^a-z0-9]+", "-", f"{here['cpu']}-{here['cpu_family']}-{here['cpu_model']}".lower())
    out = options.out or HERE / "results" / f"{cpu}-{now.date()}.json"
    new = {"machine": here, "runs": [], "entries": []}
    found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else new
    first = 1 + max((entry["round"] for entry in found["entries"]), default=-1)
    found["versions"] = found.get("versions", {}) | versions(options)
    found["runs"].append({"first_round": first, "at": now.isoformat(timespec="minutes"), "load": os.getloadavg(),
                          "kumquant": git_commit()})
    with tempfile.TemporaryDirectory() as folder:
        limits = build_limits(folder)
        for number in range(first, first + options.rounds):
            for model in models:
                for entry in one_round(model, options, limits, number):
                    print(json.dumps(entry), file=sys.stderr, flush=True)
                    found["entries"].append(entry)
                    write(out, found)
    text = report(found)
    out.with_suffix(".md").write_text(text)
    print(text)


def write(out: Path, found: dict[str, Any]) -> None:
    """An entry to a line."""
    entries = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in found["entries"])
    head = json.dumps({key: value for key, value in found.items() if key != "entries"}, indent=1, ensure_ascii=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(f'{head[:-2]},\n "entries": [\n{entries}\n]\n}}\n')


if __name__ == "__main__":
    main()
