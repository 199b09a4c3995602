"""The program around the subcommands: help, version, exit codes, one line for every error."""

import os
import subprocess
import sys

import pytest

import kumquant
from kumquant.cli import main
from kumquant.cli.main import COMMANDS, command_parser
from kumquant.errors import (
    CapacityError,
    CheckpointError,
    Error,
    RequestError,
    TensorCacheError,
    UnsupportedError,
)

HELP = """\
usage: kumquant COMMAND [options]

Small language models, quantized, on a plain CPU.

options:
  -h, --help  show this and exit
  --version   show the version and exit
  --debug     show the traceback of an error

commands:
  demo      convert the demo model, check it, ask it a few things: the tour
  download  a model from the hub, only the files that are needed
  plan      what converting a model would do, before it is done
  convert   a Hugging Face checkpoint to a tensor cache
  models    the model families and quantization modes, and what each supports
  export    a tensor cache as a GGUF file or as safetensors
  inspect   what is in a cache or a manifest
  verify    compare every shard with the manifest
  pack      make a model open in milliseconds, for as much disk again
  generate  answer one prompt
  chat      talk with a model
  embed     texts to vectors, with an encoder
  evaluate  perplexity of a text, divergence from another model
  bench     speed and memory of a model on this machine
  doctor    what this machine is and how fast models will be

kumquant COMMAND --help says more about each.
"""


def test_help(capsys):
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == HELP


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"kumquant {kumquant.__version__}\n"


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "kumquant: error: which command? Run kumquant --help for the list.\n"),
    (["--fast"], "kumquant: error: unrecognized arguments: --fast\n"),
    (["verify"], "kumquant verify: error: the following arguments are required: DIR\n"),
    (["verify", "x", "--fast"], "kumquant verify: error: unrecognized arguments: --fast\n"),
    (["verify", "x", "--qui"], "kumquant verify: error: unrecognized arguments: --qui\n"),
    (["bench", "x", "--rounds", "0"],
     "kumquant bench: error: argument --rounds: 0 is out of range: at least 1\n"),
    (["bench", "x", "--context", "0,a"],
     "kumquant bench: error: argument --context: 'a' is not an integer\n"),
    (["generate", "x", "--logit-bias", "7"],
     "kumquant generate: error: argument --logit-bias: '7' is not ID=X, as in 42=-1.5\n"),
])
def test_wrong_usage_is_exit_code_2(capsys, arguments, message):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("usage: kumquant") and captured.err.endswith(message)


def test_an_empty_output_is_not_the_working_directory(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "x", "-o", ""]) == 2
    assert capsys.readouterr().err == "kumquant: error: -o/--output: is empty; expected a folder to write\n"


def test_an_unknown_command_is_exit_code_2(capsys):
    assert main(["transmogrify"]) == 2
    assert "invalid choice: 'transmogrify'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_the_common_options(name):
    text = command_parser(name).format_help()
    assert text.startswith(f"usage: kumquant {name} ")
    assert "--quiet" in text and "--debug" in text and "-h, --help" in text
    assert max(map(len, text.splitlines())) <= 110


def failing(monkeypatch, error):
    def run(args):
        raise error

    monkeypatch.setattr("kumquant.cli.verify.run", run)
    return main(["verify", "x"])


@pytest.mark.parametrize(("kind", "code"), [
    (Error, 1), (TensorCacheError, 1), (CheckpointError, 1), (UnsupportedError, 1), (CapacityError, 1),
    (RequestError, 2),
])
def test_each_kind_of_error_has_its_exit_code_and_no_traceback(monkeypatch, capsys, kind, code):
    error = kind("is wrong", where="here", found="this", expected="that", hint="Do something.")
    assert failing(monkeypatch, error) == code
    message = "kumquant: error: here: is wrong; found this; expected that\nDo something.\n"
    assert capsys.readouterr() == ("", message)


def test_an_output_that_cannot_be_written_is_no_bug(monkeypatch, capsys):
    assert failing(monkeypatch, OSError(28, "No space left on device")) == 1
    assert failing(monkeypatch, OSError(36, "File name too long", "xx")) == 1
    assert capsys.readouterr().err == ("kumquant: error: cannot read or write: No space left on device\n"
                                       "kumquant: error: xx: cannot read or write: File name too long\n")


@pytest.mark.parametrize("stream", [0, 1, 2])
def test_a_stream_that_is_closed_leads_nowhere(stream):
    run = subprocess.run([sys.executable, "-m", "kumquant", "verify", "/nowhere"], capture_output=True, text=True,
                         check=False, preexec_fn=lambda: os.close(stream))
    expected = "" if stream == 2 else "kumquant: error: /nowhere: no such file or folder\nCheck the path.\n"
    assert (run.returncode, run.stdout, run.stderr) == (1, "", expected)


def test_a_bug_is_one_line_too(monkeypatch, capsys):
    assert failing(monkeypatch, KeyError("oops")) == 1
    expected = "kumquant: error: KeyError: 'oops'\nThis is a bug. Run with --debug for details.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("arguments", [["--debug", "verify", "/nowhere"], ["verify", "/nowhere", "--debug"]])
def test_debug_shows_the_traceback(capsys, arguments):
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "kumquant: error: /nowhere: no such file or folder" in err


def test_ctrl_c_is_130(monkeypatch, capsys):
    assert failing(monkeypatch, KeyboardInterrupt()) == 130
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_leaves_is_no_error_message(monkeypatch, capsys):
    assert failing(monkeypatch, BrokenPipeError()) == 1
    assert capsys.readouterr() == ("", "")


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


def test_python_m_is_the_same_program():
    run = python("-m", "kumquant", "--help")
    assert (run.returncode, run.stdout, run.stderr) == (0, HELP, "")


def test_help_and_version_import_nothing_heavy():
    code = (
        "import sys; from kumquant.cli import main; main(['--version']); main(['--help']);"
        "print([m for m in ('numpy', 'rich', 'tokenizers', 'jinja2') if m in sys.modules])"
    )
    assert python("-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", ["chat", "inspect", "verify", "bench"])
def test_a_checkpoint_is_told_from_a_damaged_cache(command, tmp_path, capsys):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    for source in (gguf, tmp_path):
        assert main([command, str(source)]) == 1
        assert capsys.readouterr() == ("", (
            f"kumquant: error: {source}: a checkpoint, not a tensor cache\n"
            f"Convert it first: kumquant convert {source} -o FOLDER\n"))
