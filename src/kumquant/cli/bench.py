"""Measure a model's speed and memory on this machine. Needs no tokenizer.

Prefill is measured once, decode at every --context, and every --batch above 1 from prompts of 64 tokens.
The tests take turns, round by round, so that a disturbance hits all of them; the median counts. A default
that the model's context has no room for is shortened.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..bench import (
    DEFAULT_BATCH,
    DEFAULT_CONTEXT,
    DEFAULT_DECODE,
    DEFAULT_PREFILL,
    DEFAULT_ROUNDS,
    BenchReport,
    BenchSettings,
    run_bench,
)
from .options import add_activations, add_json, add_kv_dtype, add_model, add_threads, whole, whole_list
from .output import format_bytes, print_facts, print_json, print_table
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
                        help=f"how often each test runs (default {DEFAULT_ROUNDS})")
    add_activations(parser)
    add_kv_dtype(parser)


def run(args: argparse.Namespace) -> int:
    settings = BenchSettings(args.prefill, args.decode, args.context, args.batch, args.rounds)
    report = run_bench(args.model, settings, threads=args.threads, activations=args.activations, kv_dtype=args.kv_dtype,
                       progress=progress_for(args))
    if args.json:
        print_json(asdict(report))
    else:
        _print(report)
    return 0


def _print(report: BenchReport) -> None:
    rows = [
        [one.test, f"{one.tokens}", f"{one.context}", f"{one.batch}", f"{one.tokens_per_s:,.1f}",
         f"{one.min:,.1f}", f"{one.max:,.1f}"]
        for one in report.results
    ]
    print_table(["test", "tokens", "context", "batch", "tokens/s", "min", "max"], rows, "<>>>>>>")
    print()
    print_facts([
        ("machine", f"{report.cpu}, {report.isa}, {report.threads} threads"),
        ("KV cache", report.kv_dtype),
        ("open", f"{report.open_s * 1e3:.1f} ms"),
        ("first token", f"{report.first_token_s * 1e3:.1f} ms (opening and a prompt of 16 tokens)"),
        ("peak memory", format_bytes(report.peak_rss_bytes)),
    ])


def _listed(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))
