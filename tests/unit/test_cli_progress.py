"""Progress goes to stderr: lines in a log, a bar on a terminal, nothing under --quiet."""

import argparse

import pytest

from kumquant.cli.output import counted, format_bytes
from kumquant.cli.progress import LineProgress, progress_for
from kumquant.cli.progress_bar import ProgressBar
from kumquant.progress import NO_PROGRESS


def work(progress):
    progress.start(200, "verify")
    progress.advance(50, "params_shard_0.bin")
    progress.advance(150)
    progress.finish()


def test_a_log_gets_lines(capsys):
    work(LineProgress(seconds_between=0.0))
    assert capsys.readouterr() == ("", "verify: 25%  params_shard_0.bin\nverify: 100%\n")


def test_short_work_is_silent(capsys):
    work(LineProgress())
    assert capsys.readouterr() == ("", "")


def test_a_bar_leaves_stdout_alone(capsys):
    bar = ProgressBar()
    work(bar)
    bar.finish()  # a second time does nothing
    assert capsys.readouterr().out == ""


def test_which_one(monkeypatch):
    assert progress_for(argparse.Namespace(quiet=True)) is NO_PROGRESS
    assert isinstance(progress_for(argparse.Namespace(quiet=False)), LineProgress)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert isinstance(progress_for(argparse.Namespace(quiet=False)), ProgressBar)


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (67_456, "67.5 kB"), (56_974_848, "57.0 MB"),
    (4_300_000_000, "4.3 GB"), (2e12, "2.0 TB"),
])
def test_sizes(count, text):
    assert format_bytes(count) == text


def test_plurals():
    assert [counted(n, "shard") for n in (0, 1, 31, 1200)] == ["0 shards", "1 shard", "31 shards", "1,200 shards"]
