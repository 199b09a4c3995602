"""List the model families and quantization modes, and what each supports.

WebLLM runs what MLC can compile a library for; ready-made ones exist for a few models, mostly in q4f16_1 and
q4f32_1; "with f16": where the GPU has shader-f16. "AWQ": AWQ checkpoints convert to it. A cache of any other
family or mode can still be opened, inspected and verified.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterable
from dataclasses import asdict

from ..models import Support, support
from .options import add_json
from .output import LINE_WIDTH, print_json, print_table


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant models [options]"
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    table = support()
    if args.json:
        print_json(asdict(table))
    else:
        _print(table)
    return 0


def _print(table: Support) -> None:
    families = [[one.model_type, one.kind, _yes(one.convert), _yes(one.run), _yes(one.webllm)]
                for one in table.families]
    print_table(["family", "kind", "convert", "run", "WebLLM"], families, "<<<<<")
    _print_names("known and not run", table.read_only_families)
    print()
    made = [one for one in table.modes if one.convert != "no" or one.run]
    modes = [
        [one.name, str(one.bits or "–"), str(one.group_size or "–"), one.dtype, one.layout if one.bits else "–",
         "plain" if one.plain_ends or not one.bits else "quantized", one.convert.removesuffix(" sources"),
         _yes(one.run), "no" if not one.webllm else f"with {one.needs.removeprefix('shader-')}" if one.needs else "yes"]
        for one in made
    ]
    print_table(["mode", "bits", "group", "dtype", "layout", "ends", "convert", "run", "WebLLM"], modes, "<>><<<<<<")
    _print_names("read, verified and dequantized only", [one.name for one in table.modes if one not in made])
    _print_names("known and refused", table.refused_modes)


def _print_names(what: str, names: Iterable[str]) -> None:
    print()
    print(textwrap.fill(f"{what}: {', '.join(names)}", LINE_WIDTH, break_on_hyphens=False))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
