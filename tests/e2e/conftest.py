"""The whole program in a process of its own, and the small models it is run on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# The makers of small checkpoints and tokenizers are shared with the unit tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from checkpoints_for_tests import tiny_llama
from tokenizers_for_tests import byte_level

Run = Callable[..., subprocess.CompletedProcess]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def kumquant() -> Run:
    """Runs one command line; returns the finished process with its output as text."""
    def run(*arguments: object, stdin: str = "", cwd: Path | None = None) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "kumquant", *map(str, arguments)]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, cwd=cwd, timeout=300)

    return run


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of random weights with a tokenizer of bytes and a chat template."""
    source = tiny_llama(tmp_path_factory.mktemp("tiny") / "source", vocab_size=266, max_position_embeddings=256)
    byte_level().save(str(source / "tokenizer.json"))
    config = {"chat_template": CHAT_TEMPLATE, "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    return source


@pytest.fixture(scope="session")
def tiny_cache(kumquant: Run, tiny_source: Path) -> Path:
    cache = tiny_source.parent / "cache"
    run = kumquant("convert", tiny_source, "-o", cache, "-q", "q4f16_1", "--quiet")
    assert (run.returncode, run.stderr) == (0, "")
    return cache
