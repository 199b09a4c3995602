"""docs/cli.md is what the parsers say, docs/json.md lists exactly the keys that the commands print."""

import json
import re
from pathlib import Path

import fake_llm
import pytest
from checkpoints_for_tests import tiny_llama
from encoders_for_tests import sentence_encoder
from tokenizers_for_tests import byte_level

from kumquant import convert
from kumquant.cli import main
from kumquant.cli.reference import cli_reference

DOCS = Path(__file__).parents[2] / "docs"
AS_FOUND = {"metadata"}  # objects whose keys are not ours


def test_cli_reference_is_up_to_date():
    written = (DOCS / "cli.md").read_text(encoding="utf-8")
    assert written == cli_reference(), "run .venv/bin/python scripts/write-cli-reference"


def documented_keys(command):
    text = (DOCS / "json.md").read_text(encoding="utf-8")
    section = re.search(rf"^## kumquant {command}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    cells = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    return {key for cell in cells for key in re.findall(r"`([^`]+)`", cell)}


def keys_of(value, prefix=""):
    if isinstance(value, dict) and prefix not in AS_FOUND:
        paths = {f"{prefix}.{key}" if prefix else key: item for key, item in value.items()}
        return set().union(*(keys_of(item, path) for path, item in paths.items()))
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return set().union(*(keys_of(item, f"{prefix}[]") for item in value))
    return {prefix}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("documents")
    source = tiny_llama(folder / "source", vocab_size=266, max_position_embeddings=256)
    byte_level().save(str(source / "tokenizer.json"))
    assert main(["convert", str(source), "-o", str(folder / "cache"), "-q", "q4f32_1", "--quiet"]) == 0
    return folder


def document_of(capsys, *arguments):
    assert main([*map(str, arguments), "--json", "--quiet"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return json.loads(captured.out)


def assert_documented(command, document):
    assert keys_of(document) == documented_keys(command)


def test_convert(capsys, cache, tmp_path):
    assert_documented("convert", document_of(capsys, "convert", cache / "source", "-o", tmp_path / "out"))


def test_export(capsys, cache, tmp_path):
    document = document_of(capsys, "export", cache / "cache", "--to", "gguf", "-o", tmp_path / "m.gguf")
    assert_documented("export", document)


def test_inspect(capsys, cache):
    document = document_of(capsys, "inspect", cache / "cache")
    assert_documented("inspect", document)
    assert (document["family"], document["quantization"]) == ("llama", "q4f32_1")


def test_models(capsys):
    document = document_of(capsys, "models")
    assert_documented("models", document)
    assert {"name": "q4f32_1", "run": True, "convert": "yes", "webllm": True}.items() <= next(
        mode for mode in document["modes"] if mode["name"] == "q4f32_1").items()


def test_verify(capsys, cache):
    assert_documented("verify", document_of(capsys, "verify", cache / "cache"))


def test_evaluate(capsys, cache):
    arguments = [cache / "cache", DOCS / "json.md", "--tokens", 100, "--against", cache / "source"]
    assert_documented("evaluate", document_of(capsys, "evaluate", *arguments))


def test_embed(capsys, tmp_path):
    convert(sentence_encoder(tmp_path / "source"), tmp_path / "cache", "q0f16")
    document = document_of(capsys, "embed", tmp_path / "cache", "the cat")
    assert_documented("embed", document)
    assert [len(one["embedding"]) for one in document["embeddings"]] == [document["dimensions"]]


def test_bench(capsys, cache):
    small = ["--rounds", 1, "--prefill", 8, "--decode", 2, "--context", 0, "--batch", "1,2", "--threads", 1]
    document = document_of(capsys, "bench", cache / "cache", *small)
    assert_documented("bench", document)
    kinds = [(one["test"], one["tokens"], one["context"], one["batch"]) for one in document["results"]]
    assert kinds == [("prefill", 8, 0, 1), ("decode", 2, 0, 1), ("decode", 2, 64, 2)]


def test_doctor(capsys, monkeypatch):
    monkeypatch.setattr("kumquant.bench.diagnosis.BANDWIDTH_BUFFER", 2**20)
    document = document_of(capsys, "doctor", "--threads", 1)
    assert_documented("doctor", document)
    assert document["isa"] == document["isa_available"][-1]


def test_generate(capsys, monkeypatch):
    fake_llm.install(monkeypatch, "Hello.")
    arguments = ["--prompt", "Hi", "--logprobs", 1]
    assert_documented("generate", document_of(capsys, "generate", "model", *arguments))
