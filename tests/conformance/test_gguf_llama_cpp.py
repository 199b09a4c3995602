"""GGUF against llama.cpp itself, where llama-cpp-python is installed: tokens of rebuilt tokenizers, exports run."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from gguf_architectures_for_tests import ARCHITECTURES
from gguf_for_tests import LLAMA, VOCAB, bpe_metadata, random_values, sentencepiece_metadata, write_floats

from kumquant import LLM, convert
from kumquant.export import export
from kumquant.tokenizer import tokenizer_files_from_gguf

llama_cpp = pytest.importorskip("llama_cpp", reason="skipped: llama-cpp-python is not installed")

WORDS = [
    "hello", "world", "na\xefve", "Stra\xdfe", "\u043c\u0438\u0440", "\u3053\u3093\u306b", "\u4e16\u754c",
    "\uc548\ub155", "\u0645\u0631\u062d", "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0001f642",
    "\U0001f469\u200d\U0001f467", "1", "22", "333", "12345", "don't", "I'M", "a+b==c", "foo_bar", "HTTPServer",
    "<end>", "<tool>", "\u2026", "---", "\xbd", '"', "'", "(", ")",
]
SPACES = (" ", "  ", "\n", "\n\n", "\t", " \n", "\r\n", "    ", "\u00a0", "\u3000", "")


def strings(count: int = 2000, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return ["", " ", "\n", " hello ", *(
        "".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 20))) for _ in range(count))]


@pytest.mark.parametrize("tokenizer", [
    *(pytest.param(bpe_metadata(pre), id=pre) for pre in (
        "gpt-2", "llama-bpe", "qwen2", "smollm", "deepseek-llm", "deepseek-coder", "deepseek-v3", "falcon", "tekken",
        "gpt-4o", "default")),
    pytest.param(sentencepiece_metadata(), id="sentencepiece"),
])
def test_rebuilt_tokenizers_agree_token_for_token(tmp_path: Path, tokenizer: dict[str, Any]) -> None:
    path = write_floats(tmp_path / "vocab.gguf", {**LLAMA, **tokenizer}, {})
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ours = tokenizers.Tokenizer.from_str(tokenizer_files_from_gguf(tokenizer, str(path))["tokenizer.json"])
    for text in strings():
        expected = theirs.tokenize(text.encode(), add_bos=True, special=True)
        assert ours.encode(text).ids == expected, repr(text)


@pytest.mark.parametrize(("mode", "least"), [("q0f16", 0.9999), ("q4f16_1", 0.99)])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_llama_cpp_runs_an_export(tmp_path: Path, name: str, mode: str, least: float) -> None:
    """Its logits agree but for its own rounding: activations to float16, and to 8 bits beside Q4_0."""
    tokenizer = bpe_metadata("qwen2")
    size = len(tokenizer["tokenizer.ggml.tokens"])
    metadata, shapes = ARCHITECTURES[name]
    shapes = {name: (size, *shape[1:]) if shape[0] == VOCAB else shape for name, shape in shapes.items()}
    vocabulary = {f"{metadata['general.architecture']}.vocab_size": size}
    write_floats(tmp_path / "in.gguf", {**metadata, **tokenizer, **vocabulary}, random_values(shapes))
    convert(tmp_path / "in.gguf", tmp_path / "cache", mode)
    export(tmp_path / "cache", tmp_path / "out.gguf")
    token_ids = list(range(40, 72))
    theirs = llama_cpp.Llama(str(tmp_path / "out.gguf"), verbose=False, logits_all=True, n_ctx=64)
    theirs.eval(token_ids)
    expected = np.array(theirs.scores[: len(token_ids)])
    found = LLM(tmp_path / "cache").logits(token_ids, activations="float32")
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > least
