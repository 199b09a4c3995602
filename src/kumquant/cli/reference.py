"""The command line's reference, docs/cli.md, as the parsers themselves tell it."""

from __future__ import annotations

from .main import COMMANDS, command_parser, main_parser

INTRODUCTION = """\
# The command line

Written by `scripts/write-cli-reference` from each command's `--help`; a test keeps it true.

Results go to stdout, progress and remarks to stderr. Exit codes: 0 done, 1 failed, 2 wrong usage (an
option, a prompt, a parameter), 130 interrupted by Ctrl-C. `python -m kumquant` is the same program. The keys
of every `--json` are in [json.md](json.md).
"""


def cli_reference() -> str:
    """The text of docs/cli.md."""
    parts = [INTRODUCTION, _section("kumquant", main_parser().format_help())]
    parts += [_section(f"kumquant {name}", command_parser(name).format_help()) for name in COMMANDS]
    return "\n".join(parts)


def _section(title: str, help_text: str) -> str:
    return f"## {title}\n\n```\n{help_text}```\n"
