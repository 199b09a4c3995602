"""How numbers and tables look on stdout, and where remarks go."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

LINE_WIDTH = 80  # that running text keeps to


def print_json(value: Any) -> None:
    """One JSON document, readable by people too."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def remark(args: argparse.Namespace, text: str) -> None:
    """A line on stderr that is no result; nothing under --quiet."""
    if not args.quiet:
        print(text, file=sys.stderr, flush=True)


def warn(args: argparse.Namespace, messages: Iterable[str]) -> None:
    """Warnings on stderr, one each."""
    for message in messages:
        remark(args, f"warning: {message}")


def format_bytes(count: float) -> str:
    """4_300_000_000 as "4.3 GB": decimal units, as disks and file managers count."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def counted(count: int, noun: str) -> str:
    """1 as "1 shard", 31 as "31 shards", thousands separated."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> None:
    """Columns two spaces apart. align: one of "<" and ">" per column."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, align, widths))
        print("  ".join(cells).rstrip())


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and what they are, one to a line."""
    width = max(len(name) for name, _ in facts)
    for name, value in facts:
        print(f"{name:{width}}  {value}".rstrip())
