"""Tokenizers rebuilt from GGUF metadata."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tokenizers
from gguf_for_tests import bpe_metadata, sentencepiece_metadata

from kumquant.errors import CheckpointError, Error, UnsupportedError
from kumquant.tokenizer import gguf_pre_tokenizer_name, tokenizer_files_from_gguf
from kumquant.tokenizer.gguf_pre_tokenizers import PRE_TOKENIZERS


def rebuilt(metadata: dict[str, Any]) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(tokenizer_files_from_gguf(metadata, "m.gguf")["tokenizer.json"])


def wordpiece_metadata() -> dict[str, Any]:
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581hello", "\u2581world", "\u2581wor", "ld", "s", "\u2581!"]
    return {"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": tokens,
            "tokenizer.ggml.token_type": [3] * 4 + [1] * 6, "tokenizer.ggml.bos_token_id": 2,
            "tokenizer.ggml.cls_token_id": 2, "tokenizer.ggml.seperator_token_id": 3,
            "tokenizer.ggml.unknown_token_id": 1, "tokenizer.ggml.padding_token_id": 0}


@pytest.mark.parametrize("pre", list(PRE_TOKENIZERS))
def test_every_way_of_cutting_words_is_a_tokenizer(pre: str) -> None:
    tokenizer = rebuilt(bpe_metadata(pre))
    text = "hello  world's\n\n 1234 \u4f60\u597d"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text
    found = gguf_pre_tokenizer_name(tokenizer, PRE_TOKENIZERS[pre].ignore_merges)
    if pre != "default":
        assert found is not None
        assert PRE_TOKENIZERS[found].patterns == PRE_TOKENIZERS[pre].patterns or found in ("bloom", "poro-chat")


def test_byte_level() -> None:
    tokenizer = rebuilt(bpe_metadata("llama-bpe"))
    tokens = tokenizer.encode("hello world12<end> <tool>").tokens
    assert tokens == ["<s>", "hello", "\u0120world", "12", "<end>", "\u0120", "<tool>"]  # llama-bpe begins with BOS
    assert tokenizer.decode(tokenizer.encode("hello<end><tool>").ids) == "hello<tool>"  # a control token is no text
    assert rebuilt(bpe_metadata("qwen2")).encode("hello12").tokens == ["hello", "1", "2"]
    without = {**bpe_metadata("llama-bpe"), "tokenizer.ggml.add_bos_token": False}
    assert rebuilt(without).encode("hello").tokens == ["hello"]


def test_sentencepiece() -> None:
    tokenizer = rebuilt(sentencepiece_metadata())
    assert tokenizer.encode("hello world").tokens == ["<s>", "\u2581hello", "\u2581world"]
    assert tokenizer.encode("\u00e9", add_special_tokens=False).tokens == ["\u2581", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("hello  world \u00e9\n").ids) == "hello  world \u00e9\n"
    bare = {**sentencepiece_metadata(), "tokenizer.ggml.add_space_prefix": False}
    assert rebuilt(bare).encode("lo", add_special_tokens=False).tokens == ["lo"]


def test_wordpiece() -> None:
    tokenizer = rebuilt(wordpiece_metadata())
    assert tokenizer.encode("Hello WORLDS! xyz").tokens == [
        "[CLS]", "hello", "world", "##s", "!", "[UNK]", "[SEP]"]


def test_the_config_has_special_tokens_and_the_template() -> None:
    metadata = {**bpe_metadata("qwen2"), "general.architecture": "llama", "llama.context_length": 64}
    files = tokenizer_files_from_gguf(metadata, "m.gguf")
    config = json.loads(files["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"], config["model_max_length"]) == ("<s>", "<end>", 64)
    assert config["chat_template"].endswith("{% endfor %}")
    assert [token["special"] for token in config["added_tokens_decoder"].values()] == [True, True, False]


def test_phi_3_swallows_spaces_behind_its_marks() -> None:
    metadata = {**sentencepiece_metadata(), "general.name": "Phi-3 mini"}
    tokenizer = rebuilt(metadata)
    assert tokenizer.encode("</s>   hello").ids == tokenizer.encode("</s>hello").ids


def test_no_tokenizer_no_files() -> None:
    assert tokenizer_files_from_gguf({}, "m.gguf") == {}
    assert tokenizer_files_from_gguf({"tokenizer.ggml.model": "no_vocab"}, "m.gguf") == {}


@pytest.mark.parametrize(("changes", "error", "message"), [
    ({"tokenizer.ggml.model": "t5"}, UnsupportedError, "kind of tokenizer"),
    ({"tokenizer.ggml.model": ["gpt2"]}, UnsupportedError, "kind of tokenizer"),
    ({"tokenizer.ggml.pre": "klingon"}, UnsupportedError, "cutting words"),
    ({"tokenizer.ggml.pre": [1]}, UnsupportedError, "cutting words"),
    ({"tokenizer.ggml.tokens": []}, CheckpointError, "no tokens"),
    ({"tokenizer.ggml.tokens": [1, 2]}, CheckpointError, "no list of strings"),
    ({"tokenizer.ggml.token_type": [1]}, CheckpointError, "does not fit"),
    ({"tokenizer.ggml.bos_token_id": 10**6}, CheckpointError, "names no token"),
    ({"tokenizer.ggml.merges": ["h z"]}, CheckpointError, "no token"),
    ({"tokenizer.ggml.merges": ["hello"]}, CheckpointError, "no token"),
])
def test_metadata_that_lie(changes: dict[str, Any], error: type[Error], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        tokenizer_files_from_gguf({**bpe_metadata("qwen2"), **changes}, "m.gguf")
    assert "m.gguf" in str(caught.value)
