"""Talk with a model: streaming, with history.

On a terminal, type and press Enter. A line that ends with a backslash goes on in the next one; a line of
three double quotes begins a text of several lines, another one ends it. Ctrl-C ends an answer and keeps what
is there; Ctrl-D leaves. /help lists the commands. From a pipe it is the same, and
an error ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

from ..engine import LLM
from ..errors import Error, RequestError
from .dialog import Dialog
from .options import add_activations, add_kv_dtype, add_model, add_threads
from .output import remark
from .sampling import add_sampling, sampling_params
from .streaming import remark_speed, show_pieces

PROMPT, CONTINUATION = "> ", ". "
BLOCK = '"""'

HELP = """\
/help               this list
/system [TEXT]      set the system message, or remove it; the dialog begins anew
/reset              begin anew
/undo               take the last question and its answer back
/retry              ask the last question again
/set [NAME VALUE]   show the sampling parameters, or set one: /set temperature 0.7
/save FILE          write the dialog as JSON
/quit               leave (also Ctrl-D)"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant chat DIR [options]"
    add_model(parser)
    parser.add_argument("--system", metavar="TEXT", help="the system message")
    add_threads(parser)
    add_activations(parser)
    add_kv_dtype(parser)
    add_sampling(parser)


def run(args: argparse.Namespace) -> int:
    with LLM(args.model, threads=args.threads, activations=args.activations, kv_dtype=args.kv_dtype) as llm:
        dialog = Dialog(sampling_params(args, llm.default_params), args.system)
        chat = Chat(llm, dialog, args)
        if sys.stdin.isatty():
            with contextlib.suppress(ImportError):  # a line editor and a history for input(), where there is one
                importlib.import_module("readline")
            remark(args, "Type a message. /help lists the commands; Ctrl-D leaves.")
            chat.converse()
        else:
            chat.answer_lines()
    return 0


class Chat:
    """The loop around a dialog."""

    def __init__(self, llm: LLM, dialog: Dialog, args: argparse.Namespace) -> None:
        self._llm, self._dialog, self._args = llm, dialog, args
        self._commands: dict[str, Callable[[str], None]] = {
            "/help": self._help, "/system": self._system, "/reset": self._reset, "/undo": self._undo,
            "/retry": self._retry, "/set": self._set, "/save": self._save,
        }

    def converse(self) -> None:
        """On a terminal: until Ctrl-D or /quit. An error is told, and the dialog goes on."""
        while True:
            try:
                text = read_message(input)
                if text is None or not self._take(text):
                    return
            except KeyboardInterrupt:
                print()
            except Error as error:
                print(f"error: {error}", file=sys.stderr)

    def answer_lines(self) -> None:
        """From a pipe: one answer for each message. An error ends it."""
        def next_line(prompt: str) -> str:
            line = sys.stdin.readline()
            if not line:
                raise EOFError
            return line.rstrip("\n")

        while (text := read_message(next_line)) is not None and self._take(text):
            pass

    def _take(self, text: str) -> bool:
        """A command or a question. Returns False when the user wants to leave."""
        name, _, rest = text.strip().partition(" ")
        if name == "/quit":
            return False
        if name in self._commands:
            self._commands[name](rest.strip())
        elif name.startswith("/") and name[1:].isalpha():
            raise RequestError("no such command", where=name, hint="/help lists the commands.")
        elif text.strip():
            self._answer(text)
        return True

    def _answer(self, question: str) -> None:
        self._dialog.ask(question)
        try:
            stream = self._llm.chat(self._dialog.messages, self._dialog.params, stream=True)
            show_pieces(stream)
        except Error:
            self._dialog.drop_question()
            raise
        self._dialog.answer(stream.result.text)
        remark_speed(self._args, stream.result)

    def _help(self, rest: str) -> None:
        print(HELP)

    def _system(self, rest: str) -> None:
        self._dialog.system = rest or None
        self._reset("")

    def _reset(self, rest: str) -> None:
        self._dialog.reset()
        remark(self._args, "[a new dialog]")

    def _undo(self, rest: str) -> None:
        self._dialog.undo()
        remark(self._args, "[taken back]")

    def _retry(self, rest: str) -> None:
        self._answer(self._dialog.undo())

    def _set(self, rest: str) -> None:
        if not rest:
            print(self._dialog.settings())
            return
        name, _, value = rest.partition(" ")
        self._dialog.set(name, value.strip())

    def _save(self, rest: str) -> None:
        if not rest:
            raise RequestError("which file?", where="/save", expected="/save FILE")
        self._dialog.save(Path(rest))
        remark(self._args, f"[saved in {rest}]")


def read_message(read_line: Callable[[str], str]) -> str | None:
    """One message from lines; None at the end of the input.

    read_line: takes the prompt to show, returns a line without its end, raises EOFError after the last.
    """
    try:
        line = read_line(PROMPT)
    except EOFError:
        return None
    lines = []
    try:
        if line.strip() == BLOCK:
            while (line := read_line(CONTINUATION)).strip() != BLOCK:
                lines.append(line)
            return "\n".join(lines)
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = read_line(CONTINUATION)
    except EOFError:  # the end of the input ends the message too
        return "\n".join(lines)
    return "\n".join([*lines, line])
