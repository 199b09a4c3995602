"""Measure a model's speed and memory on this machine. Needs no tokenizer.

Prefill is measured once, decode at every --context, and every --batch above 1 from prompts of 64 tokens.
The tests take turns, round by round, so that a disturbance hits all of them; the median counts. A default
that the model's context has no room for is shortened.

--compare measures other runtimes beside it: the same weights and work, as many threads on the same
processors, all in turn in every round, in processes of their own; of a runtime's settings the better
one counts. What is not installed is left out, with how to install it. openvino and onnxruntime come
with pip (openvino-genai, onnxruntime-genai) and take plain Llama models in q4f16_1 or q4f32_1; for others
name a model folder of theirs: openvino=FOLDER. llama.cpp is llama-bench and llama-batched-bench on PATH,
or in FOLDER with llama.cpp=FOLDER, else the package llama-cpp-python. Exit code 1: one of them failed,
or none is installed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from ..bench import (
    DEFAULT_BATCH,
    DEFAULT_CONTEXT,
    DEFAULT_DECODE,
    DEFAULT_PREFILL,
    DEFAULT_ROUNDS,
    PEER_NAMES,
    BenchReport,
    BenchSettings,
    Comparison,
    Spread,
    compare,
    find_peer,
    run_bench,
)
from ..errors import RequestError
from .options import add_activations, add_json, add_kv_dtype, add_model, add_threads, whole, whole_list
from .output import counted, format_bytes, print_facts, print_json, print_table, remark
from .progress import progress_for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant bench DIR [options]"
    add_model(parser)
    add_json(parser)
    add_threads(parser)
    parser.add_argument("--prefill", type=whole(1), metavar="N",
                        help=f"prompt tokens (default {DEFAULT_PREFILL})")
    parser.add_argument("--decode", type=whole(1), metavar="N",
                        help=f"tokens to decode (default {DEFAULT_DECODE})")
    parser.add_argument("--context", type=whole_list(0), metavar="N,…",
                        help=f"tokens before decoding starts (default {_listed(DEFAULT_CONTEXT)})")
    parser.add_argument("--batch", type=whole_list(1), metavar="N,…",
                        help=f"sequences decoded together (default {_listed(DEFAULT_BATCH)})")
    parser.add_argument("--rounds", type=whole(1), metavar="N", default=DEFAULT_ROUNDS,
                        help=f"how often each test runs, warmed up (default {DEFAULT_ROUNDS})")
    add_activations(parser)
    add_kv_dtype(parser)
    parser.add_argument("--compare", type=_peers, metavar="NAME[=FOLDER],…",
                        help="other runtimes to measure beside: " + ", ".join(PEER_NAMES))
    parser.add_argument("--peer-python", metavar="PATH",
                        help="the Python that has the runtimes' packages (default: this one)")
    parser.add_argument("--peer-models", type=Path, metavar="FOLDER",
                        help="keep the runtimes' own models here for the next time (default: a temporary folder)")


def run(args: argparse.Namespace) -> int:
    if args.compare:
        return _run_comparison(args)
    settings = BenchSettings(args.prefill, args.decode, args.context, args.batch, args.rounds)
    report = run_bench(args.model, settings, threads=args.threads, activations=args.activations, kv_dtype=args.kv_dtype,
                       progress=progress_for(args))
    if args.json:
        print_json(asdict(report))
    else:
        _print(report)
    return 0


def _run_comparison(args: argparse.Namespace) -> int:
    if args.activations != "int8":
        raise RequestError("no other runtime here computes so", where="--compare with --activations",
                           found=args.activations, expected="int8")
    peers = [find_peer(name, location, args.peer_python) for name, location in args.compare]
    settings = BenchSettings(args.prefill, args.decode, args.context, args.batch, args.rounds)
    report = compare(args.model, peers, settings, threads=args.threads, kv_dtype=args.kv_dtype,
                     models=args.peer_models, progress=progress_for(args))
    for one in report.missing:
        remark(args, f"{one.peer} is not installed: {one.reason}")
    for one in report.failed:
        remark(args, f"{one.peer} failed: {one.reason}")
    if args.json:
        print_json(asdict(report))
    else:
        _print_comparison(report)
    return 1 if report.failed else 0


def _peers(text: str) -> list[tuple[str, Path | None]]:
    """An argparse type: "llama.cpp=/opt/bin,openvino" as names and locations."""
    found: list[tuple[str, Path | None]] = []
    for part in text.split(","):
        name, _, location = part.partition("=")
        if name not in PEER_NAMES:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(PEER_NAMES)}")
        if name in dict(found):
            raise argparse.ArgumentTypeError(f"{name} is named twice")
        found.append((name, Path(location) if location else None))
    return found


def _print_comparison(report: Comparison) -> None:
    rows = []
    for one in report.results:
        unit = one.unit if one.unit == "tokens/s" else ""  # the others' figures say theirs
        rows.append([one.measure, unit, "kumquant", "", *_cells(one.unit, one.kumquant), ""])
        rows += [["", "", peer.peer, peer.setting, *_cells(one.unit, peer.figure), f"{peer.ratio.median:.2f}"]
                 for peer in one.peers]
    print_table(["measure", "", "runtime", "setting", "median", "min", "max", "ratio"], rows, "<<<<>>>>")
    print()
    print_facts([("machine", f"{report.cpu}, {counted(report.threads, 'thread')}"), ("rounds", f"{report.rounds}"),
                 ("ratio", "kumquant to the other, within a round")])


_FORMATS: dict[str, Callable[[float], str]] = {
    "tokens/s": lambda value: f"{value:,.1f}", "s": lambda value: f"{value * 1e3:,.0f} ms", "bytes": format_bytes,
}


def _cells(unit: str, spread: Spread) -> list[str]:
    return [_FORMATS[unit](value) for value in (spread.median, spread.min, spread.max)]


def _print(report: BenchReport) -> None:
    rows = [
        [one.test, f"{one.tokens}", f"{one.context}", f"{one.batch}", f"{one.tokens_per_s:,.1f}",
         f"{one.min:,.1f}", f"{one.max:,.1f}"]
        for one in report.results
    ]
    print_table(["test", "tokens", "context", "batch", "tokens/s", "min", "max"], rows, "<>>>>>>")
    print()
    print_facts([
        ("machine", f"{report.cpu}, {report.isa}, {counted(report.threads, 'thread')}"),
        ("KV cache", report.kv_dtype),
        ("open", f"{report.open_s * 1e3:.1f} ms"),
        ("first token", f"{report.first_token_s * 1e3:.1f} ms (opening and a prompt of 16 tokens)"),
        ("peak memory", format_bytes(report.peak_rss_bytes)),
    ])


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
