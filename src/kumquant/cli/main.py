"""From arguments to an exit code. Subcommands are imported when they are called, so that ``--help`` is quick.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from .. import __version__
from ..errors import Error
from .model_folder import with_local_model
from .options import HelpFormatter, add_common

PROGRAM = "kumquant"
INTERRUPTED = 130

COMMANDS = {
    "demo": "convert the demo model, check it, ask it a few things: the tour",
    "download": "a model from the hub, only the files that are needed",
    "plan": "what converting a model would do, before it is done",
    "convert": "a Hugging Face checkpoint to a tensor cache",
    "models": "the model families and quantization modes, and what each supports",
    "export": "a tensor cache as a GGUF file or as safetensors",
    "inspect": "what is in a cache or a manifest",
    "verify": "compare every shard with the manifest",
    "pack": "make a model open in milliseconds, for as much disk again",
    "generate": "answer one prompt",
    "chat": "talk with a model",
    "embed": "texts to vectors, with an encoder",
    "evaluate": "perplexity of a text, divergence from another model",
    "bench": "speed and memory of a model on this machine",
    "doctor": "what this machine is and how fast models will be",
}


class Command(Protocol):
    """What a subcommand's module has."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the subcommand's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Do it; returns the exit code. Errors are raised."""


def entry_point() -> NoReturn:
    """The ``kumquant`` program."""
    _open_missing_streams()
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show, or a pipe cannot mean, is no crash
            stream.reconfigure(errors=errors)
    sys.exit(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's own). Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except SystemExit as stop:  # argparse: help, version, wrong usage
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        if arguments[:1] == ["convert"]:
            _complain("interrupted; the same command goes on where this one stopped", debug=False)
        return INTERRUPTED
    except BrokenPipeError:  # the reader has left, as in `kumquant inspect … | head`
        _silence_stdout()
        return 1
    except Error as error:
        _complain(str(error), debug)
        return error.exit_code
    except MemoryError:
        _complain("not enough memory\nA 4-bit mode, a smaller model or a shorter context needs less.", debug)
        return 1
    except OSError as error:  # stdout's disk is full, a path's name is too long, …
        where = "" if error.filename is None else f"{error.filename}: "
        _complain(f"{where}cannot read or write: {error.strerror or error}", debug)
        return 1
    except Exception as error:  # a bug of ours: still one line, and how to see more
        _complain(f"{type(error).__name__}: {error}\nThis is a bug. Run with --debug for details.", debug)
        return 1


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Run one subcommand. Returns its exit code; errors are raised."""
    args = command_parser(name).parse_args(arguments)
    log = logging.getLogger(__package__.partition(".")[0])
    before = log.level
    log.setLevel(logging.ERROR if args.quiet else before)
    try:
        return _command(name).run(with_local_model(args))
    finally:
        log.setLevel(before)


def command_parser(name: str) -> argparse.ArgumentParser:
    """The parser of one subcommand."""
    command = _command(name)
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}", description=command.__doc__, formatter_class=HelpFormatter,
        allow_abbrev=False, add_help=False,
    )
    command.configure(parser)
    add_common(parser)
    return parser


def main_parser() -> argparse.ArgumentParser:
    """The parser of what stands before the subcommand."""
    width = max(map(len, COMMANDS)) + 2
    table = "\n".join(f"  {name:{width}}{help_text}" for name, help_text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog=PROGRAM, usage=f"{PROGRAM} COMMAND [options]", formatter_class=HelpFormatter, allow_abbrev=False,
        description="Small language models, quantized, on a plain CPU.", add_help=False,
        epilog=f"commands:\n{table}\n\n{PROGRAM} COMMAND --help says more about each.",
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS)
    parser.add_argument("-h", "--help", action="help", help="show this and exit")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}",
                        help="show the version and exit")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _run(arguments: list[str]) -> int:
    position = next((i for i, word in enumerate(arguments) if not word.startswith("-")), len(arguments))
    parser = main_parser()
    name = parser.parse_args(arguments[:position + 1]).command
    if name is None:
        parser.error("which command? Run kumquant --help for the list.")
    return run_command(name, arguments[position + 1:])


def _command(name: str) -> Command:
    module: Any = importlib.import_module(f".{name}", __package__)
    return module


def _complain(message: str, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"{PROGRAM}: error: {message}", file=sys.stderr)


def _open_missing_streams() -> None:
    """Streams that the caller closed (`<&-`) lead nowhere; else the next file opened would take their place."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (stays open as long as the process)


def _silence_stdout() -> None:
    """Nothing more can be written; also not by the interpreter's own flush at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # stdout is no real file, as in tests
        return
