"""``kumquant demo`` on a stand-in for the demo model: which commands it runs, and when it converts."""

import json

import pytest
from checkpoints_for_tests import tiny_llama
from tokenizers_for_tests import byte_level

from kumquant.cli import main
from kumquant.demo import QUESTIONS

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to stand in."""
    source = tiny_llama(tmp_path / "source", vocab_size=266, max_position_embeddings=512)
    byte_level().save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    monkeypatch.setattr("kumquant.demo.stops.DEMO_MODEL", source)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def commands(out):
    return [line.split()[2] for line in out.splitlines() if line.startswith("$ kumquant ")]


def test_the_tour(here, capsys):
    assert main(["demo", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    rest = ["inspect", "verify", *["generate"] * len(QUESTIONS), "bench"]
    assert commands(out) == ["convert", *rest]
    assert (here / "kumquant-demo" / "tensor-cache.json").is_file()
    for part in ("\nok: 1 shard, 25 tensors, ", "\nfamily            llama\n", "\ndecode ", "# Now you: kumquant chat"):
        assert part in out
    assert main(["demo", "--quiet"]) == 0
    assert commands(capsys.readouterr().out) == rest
    assert main(["demo", "--quiet", "--force", "-q", "q0f16"]) == 0
    assert commands(capsys.readouterr().out) == ["convert", *rest]


def test_a_failing_step_ends_it(here, capsys):
    assert main(["demo", "--quiet", "-q", "q9"]) == 1
    captured = capsys.readouterr()
    assert commands(captured.out) == ["convert"] and "q9: unknown quantization mode" in captured.err
    assert list(here.iterdir()) == []


def test_without_the_model_it_says_what_to_do(here, capsys, monkeypatch):
    monkeypatch.setattr("kumquant.demo.stops.DEMO_MODEL", here / "nothing")
    assert main(["demo"]) == 1
    assert capsys.readouterr() == ("", (
        f"kumquant: error: {here / 'nothing'}: the demo model is not here\n"
        "Install Kumquant from a wheel or a complete clone.\n"))
