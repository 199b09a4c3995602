"""``kumquant chat`` on the fake model: pipes, commands, history, whole outputs."""

import io
import json

import fake_llm
import pytest
from test_cli_generate import interrupt_after

from kumquant.cli import main
from kumquant.cli.chat import HELP, read_message


@pytest.fixture(autouse=True)
def models(monkeypatch):
    """Answers tell how many questions the model has seen, and the last one."""
    def answer(prompt):
        questions = [line for line in prompt.splitlines() if line.startswith("user: ")]
        system = "S" if prompt.startswith("system: ") else ""
        return f"{system}{len(questions)}: {questions[-1].removeprefix('user: ')}"

    return fake_llm.install(monkeypatch, answer)


def chat(monkeypatch, capsys, text, *arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    code = main(["chat", "model", "--temperature", "0", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def piped(monkeypatch, capsys, text, *arguments):
    code, out, err = chat(monkeypatch, capsys, text, "--quiet", *arguments)
    assert (code, err) == (0, "")
    return out.splitlines()


def test_every_line_is_a_question_with_the_history_before_it(monkeypatch, capsys):
    assert piped(monkeypatch, capsys, "red\nblue\n\ngreen") == ["1: red", "2: blue", "3: green"]


def test_speed_after_each_answer(monkeypatch, capsys):
    _, out, err = chat(monkeypatch, capsys, "red\nblue\n")
    assert out == "1: red\n2: blue\n"
    assert [line.endswith(" tokens/s]") for line in err.splitlines()] == [True, True]


def test_system_message(monkeypatch, capsys):
    assert piped(monkeypatch, capsys, "red\n", "--system", "Be kind.") == ["S1: red"]
    lines = piped(monkeypatch, capsys, "red\n/system Be kind.\nred\n/system\nred\n")
    assert lines == ["1: red", "S1: red", "1: red"]


def test_reset_undo_retry(monkeypatch, capsys):
    assert piped(monkeypatch, capsys, "red\nblue\n/reset\ngreen\n") == ["1: red", "2: blue", "1: green"]
    assert piped(monkeypatch, capsys, "red\nblue\n/undo\ngreen\n") == ["1: red", "2: blue", "2: green"]
    assert piped(monkeypatch, capsys, "red\nblue\n/retry\n") == ["1: red", "2: blue", "2: blue"]


def test_several_lines_in_one_message(monkeypatch, capsys):
    assert piped(monkeypatch, capsys, 'red \\\nand blue\n"""\nthe end\nof it\n"""\nlast\n') == [
        "1: red ", "2: the end", "3: last"]


def test_set_and_show(monkeypatch, capsys):
    lines = piped(monkeypatch, capsys, "/set max_tokens 4\nred\n/set seed 5\n/set\n")
    assert lines == [
        "1: r", "max_tokens 4", "temperature 0.0", "top_k 0", "top_p 1.0", "min_p 0.0",
        "repetition_penalty 1.0", "presence_penalty 0.0", "frequency_penalty 0.0", "seed 5",
    ]


def test_help_and_quit(monkeypatch, capsys):
    assert piped(monkeypatch, capsys, "/help\n/quit\nred\n") == HELP.splitlines()


def test_save(monkeypatch, capsys, tmp_path):
    path = tmp_path / "dialog.json"
    piped(monkeypatch, capsys, f"red\n/save {path}\n", "--system", "Be kind.")
    assert json.loads(path.read_text()) == [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": "red"},
        {"role": "assistant", "content": "S1: red"},
    ]


def test_save_replaces_nothing_but_files(monkeypatch, capsys, tmp_path):
    code, _, err = chat(monkeypatch, capsys, f"/save {tmp_path}\n", "--quiet")
    assert code == 2
    assert err.startswith(f"kumquant: error: {tmp_path}: is there and is no regular file")


@pytest.mark.parametrize(("line", "message"), [
    ("/dance", "/dance: no such command"), ("/undo", "there is no turn to take back"),
    ("/set colour 3", "colour: no such setting"), ("/set top_p 7", "top_p: value out of range"),
    ("/set temperature warm", "temperature: not a number; found 'warm'"), ("/save", "/save: which file?"),
    ("x" * 5000, "the prompt is longer than the context"),
])
def test_in_a_pipe_an_error_ends_it(monkeypatch, capsys, line, message):
    code, out, err = chat(monkeypatch, capsys, f"{line}\nred\n", "--quiet")
    assert (code, out) == (2, "")
    assert err.startswith(f"kumquant: error: {message}")


class Terminal:
    """Stands in for a person at a keyboard."""

    def __init__(self, monkeypatch, *lines):
        self._lines = iter(lines)
        self.prompts = []
        monkeypatch.setattr("sys.stdin", self)
        monkeypatch.setattr("builtins.input", self.input)

    def isatty(self):
        return True

    def input(self, prompt):
        self.prompts.append(prompt)
        line = next(self._lines, None)
        if line is None:
            raise EOFError
        if isinstance(line, BaseException):
            raise line
        return line


def test_on_a_terminal_an_error_is_told_and_the_dialog_goes_on(monkeypatch, capsys):
    Terminal(monkeypatch, "red", "/dance", "x" * 5000, "blue")
    assert main(["chat", "model", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.out == "1: red\n2: blue\n"
    assert "error: /dance: no such command" in captured.err
    assert "error: the prompt is longer than the context" in captured.err


def test_a_path_is_not_a_command(monkeypatch, capsys):
    Terminal(monkeypatch, "/etc/passwd is a file")
    assert main(["chat", "model", "--quiet"]) == 0
    assert capsys.readouterr() == ("1: /etc/passwd is a file\n", "")


def test_ctrl_c_at_the_prompt_gives_a_new_prompt(monkeypatch, capsys):
    terminal = Terminal(monkeypatch, KeyboardInterrupt(), "red")
    assert main(["chat", "model", "--quiet"]) == 0
    assert capsys.readouterr().out == "\n1: red\n"
    assert terminal.prompts == ["> ", "> ", "> "]


def test_ctrl_c_ends_an_answer_and_keeps_it(monkeypatch, capsys, tmp_path):
    interrupt_after(monkeypatch, 4)
    Terminal(monkeypatch, "reddish", f"/save {tmp_path / 'kept.json'}")
    assert main(["chat", "model", "--quiet", "--temperature", "0"]) == 0
    assert capsys.readouterr().out == "1: r\n"
    assert json.loads((tmp_path / "kept.json").read_text())[1] == {"role": "assistant", "content": "1: r"}


def test_read_message_asks_for_more():
    prompts, lines = [], iter(["a\\", "b\\", "c"])

    def read_line(prompt):
        prompts.append(prompt)
        return next(lines)

    assert read_message(read_line) == "a\nb\nc"
    assert prompts == ["> ", ". ", ". "]
