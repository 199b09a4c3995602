"""Tell what this machine is, and how fast models of some sizes will answer on it.

Decoding reads every weight once per token, so memory bandwidth divided by the model's size is the speed to
expect at most.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..bench import Diagnosis, diagnose
from .options import add_json, add_threads
from .output import format_bytes, print_facts, print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant doctor [options]"
    add_json(parser)
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    diagnosis = diagnose(threads=args.threads)
    if args.json:
        print_json(asdict(diagnosis))
    else:
        _print(diagnosis)
    return 0


def _print(found: Diagnosis) -> None:
    print_facts([
        ("cpu", found.cpu),
        ("features", " ".join(found.features) or "none that Kumquant has kernels for"),
        ("kernels", f"{found.isa} (this machine can run: {', '.join(found.isa_available)})"),
        ("processors", f"{found.processors} usable, {found.physical_cores} physical cores"),
        ("threads", f"{found.threads}"),
        ("memory", f"{format_bytes(found.memory_bytes)}, {format_bytes(found.available_bytes)} available"),
        *((f"bandwidth, {one.threads} thr.", f"{one.bytes_per_s / 1e9:.1f} GB/s") for one in found.bandwidth),
        *(("note", note) for note in found.notes),
    ])
    print()
    rows = [
        [one.model, format_bytes(one.nbytes), f"{one.tokens_per_s:,.0f}", "yes" if one.fits else "no"]
        for one in found.expected
    ]
    print_table(["model at 4.5 bits", "size", "tokens/s at most", "fits"], rows, "<>>>")
