"""Options that several subcommands share: same option, same name, same meaning."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from ..processors import MAX_THREADS


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The same text on every Python version and terminal: fixed width, each option's value named once."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=100)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = ", ".join(action.option_strings)
        if not action.option_strings or action.nargs == 0:
            return names or super()._format_action_invocation(action)
        return f"{names} {self._format_args(action, str(action.metavar or action.dest.upper()))}"


def add_common(parser: argparse.ArgumentParser) -> None:
    """What every subcommand has."""
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--quiet", action="store_true", help="only results and errors, no progress")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="DIR", help="a cache folder made by kumquant convert or MLC-LLM, or its name "
                                                     "on the hub (org/model)")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON (keys: docs/json.md)")


def add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=whole(1, MAX_THREADS), metavar="N",
                        help="threads (default: the physical cores); results do not depend on it")


def add_activations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--activations", choices=("int8", "float32"), default="int8",
                        help="how group-quantized layers compute: int8 (default, fast) or float32 (exact)")


def add_kv_dtype(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kv-dtype", choices=("auto", "float32", "float16", "int8"), default="auto",
                        help="keys and values: auto (default: float16, float32 where layers compute so), float32, "
                             "float16, or int8 (half the memory of float16)")


def whole(low: int, high: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer of at least ``low`` (and at most ``high``)."""
    bounds = f"at least {low}" if high is None else f"{low} to {high}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from None
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"{value} is out of range: {bounds}")
        return value

    return parse


def whole_list(low: int) -> Callable[[str], tuple[int, ...]]:
    """An argparse type: integers of at least ``low``, separated by commas."""
    one = whole(low)
    return lambda text: tuple(one(part) for part in text.split(","))
