"""What converting a model would do: family, sizes, memory, time, what is lost and what stops it.

Only headers and configs are read; of a model on the hub nothing else is fetched. Sizes are exact. Memory and
times are expected: quantizing is measured on this machine, reading and writing taken as a gigabyte a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..convert import ModePlan, PlanReport, plan
from .options import add_json, add_threads
from .output import counted, format_bytes, print_facts, print_json, print_table, warn


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant plan SOURCE [-q MODE …] [options]"
    parser.add_argument("source", metavar="SOURCE", help="a checkpoint, as for kumquant convert")
    parser.add_argument("-q", "--quantization", metavar="MODE", action="append", default=[],
                        help="the mode to plan for; repeatable (default: every mode)")
    parser.add_argument("--lora", metavar="DIR", action="append", default=[], help="as for kumquant convert")
    parser.add_argument("--model-type", metavar="NAME", help="as for kumquant convert")
    parser.add_argument("--compat", action="store_true", help="as for kumquant convert")
    parser.add_argument("--tensors", action="store_true", help="also list every tensor and its route")
    add_threads(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    report = plan(args.source, args.quantization, args.compat, args.threads, lora=args.lora, model_type=args.model_type)
    warn(args, report.warnings)
    if args.json:
        print_json(_document(report))
        return 0
    print_facts([
        ("source", report.source), ("family", report.model_type), ("parameters", f"{report.num_values:,}"),
        ("to read", f"{format_bytes(report.source_bytes)} in {counted(len(report.tensors), 'tensor')}"),
    ])
    print()
    print_table(["mode", "cache", "bits a parameter", "memory", "time", "lossy"],
                [_row(mode, report) for mode in report.modes], "<>>>>>")
    for modes in _alike(report.modes):
        print()
        _print_routes(modes)
    if args.tensors:
        print()
        _print_tensors(report)
    return 0


def _row(mode: ModePlan, report: PlanReport) -> list[str]:
    if mode.stopped_by is not None:
        return [mode.quantization, "stopped", "", "", "", ""]
    return [mode.quantization, format_bytes(mode.cache_bytes), f"{mode.bits_per_parameter:.4f}",
            format_bytes(mode.peak_memory_bytes), f"{mode.seconds:.1f} s",
            _share(mode.lossy_bytes, report.source_bytes)]


def _share(part: int, whole: int) -> str:
    """A percentage that says 0 and 100 only where they are exact."""
    if part in (0, whole):
        return "100%" if part else "0%"
    return f"{min(99, max(1, round(100 * part / whole)))}%"


def _alike(modes: Sequence[ModePlan]) -> list[list[ModePlan]]:
    """Modes that take every tensor the same way, side by side."""
    groups: dict[object, list[ModePlan]] = {}
    for mode in modes:
        groups.setdefault((mode.routes, mode.stopped_by), []).append(mode)
    return list(groups.values())


def _print_routes(modes: Sequence[ModePlan]) -> None:
    print(", ".join(mode.quantization for mode in modes))
    if modes[0].stopped_by is not None:
        print(f"  stopped by: {modes[0].stopped_by}")
    for use in modes[0].routes:
        loss = "lossless" if use.is_lossless else "lossy"
        print(f"  {counted(use.tensors, 'tensor')}, {format_bytes(use.source_bytes)}: {use.route} ({loss})")


def _print_tensors(report: PlanReport) -> None:
    modes = [mode.quantization for mode in report.modes if mode.stopped_by is None]
    rows = [[tensor.name, "x".join(map(str, tensor.shape)), tensor.stored_as, tensor.record,
             *(tensor.routes.get(mode, "") for mode in modes)] for tensor in report.tensors]
    print_table(["tensor", "shape", "stored as", "goes into", *modes], rows, "<" * (4 + len(modes)))


def _document(report: PlanReport) -> dict[str, Any]:
    document = asdict(report)
    for tensor in document["tensors"]:
        tensor["routes"] = [{"quantization": mode, "route": route} for mode, route in tensor["routes"].items()]
    return document
