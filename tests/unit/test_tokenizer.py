from __future__ import annotations

import random
from pathlib import Path

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders
from tokenizers_for_tests import byte_level, sentencepiece

from kumquant.errors import CheckpointError, RequestError, UnsupportedError
from kumquant.tokenizer import StreamDecoder, Tokenizer, has_tokenizer

TEXTS = ["hello world", " leading and  double spaces ", "é日本 🎉🎉👨‍👩‍👧", "line\nbreaks\n\n",
         "hi hi world", "\u00a0naïve"]


def metaspace() -> Backend:
    tokenizer = sentencepiece()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


BACKENDS = {"byte level": byte_level, "sentencepiece": sentencepiece, "metaspace": metaspace}


@pytest.fixture(params=BACKENDS)
def tokenizer(request) -> Tokenizer:
    return Tokenizer(BACKENDS[request.param]())


def pieces(tokenizer: Tokenizer, token_ids: list[int], skip_special_tokens: bool = True) -> list[str]:
    decoder = StreamDecoder(tokenizer, skip_special_tokens)
    return [*(decoder.push(token_id) for token_id in token_ids), decoder.flush()]


@pytest.mark.parametrize("skip", [True, False])
def test_pieces_of_random_tokens_are_the_whole_text(tokenizer, skip):
    rng = random.Random(7)
    for _ in range(150):
        token_ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(1, 160))]
        assert "".join(pieces(tokenizer, token_ids, skip)) == tokenizer.decode(token_ids, skip)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_of_text_never_break_a_character(tokenizer, text):
    token_ids = tokenizer.encode(text * 20)
    got = pieces(tokenizer, token_ids)
    assert "".join(got) == tokenizer.decode(token_ids)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in got)


def test_special_tokens_between_words_do_not_cost_the_space():
    tokenizer = Tokenizer(sentencepiece())
    token_ids = [1, *tokenizer.encode("hi", add_special_tokens=False), 2, *tokenizer.encode("hi world")]
    assert "".join(pieces(tokenizer, token_ids)) == tokenizer.decode(token_ids) == "hi hi world"


def test_an_unfinished_character_comes_out_on_flush():
    tokenizer = Tokenizer(byte_level())
    token_ids = tokenizer.encode("🎉")[:-1]
    got = pieces(tokenizer, token_ids)
    assert got[:-1] == [""] * len(token_ids)
    assert got[-1] == tokenizer.decode(token_ids) == "\N{REPLACEMENT CHARACTER}"


def test_a_streams_window_stays_short():
    tokenizer = Tokenizer(byte_level())
    decoder = StreamDecoder(tokenizer)
    for token_id in tokenizer.encode("hello world " * 100):
        decoder.push(token_id)
        assert len(decoder._window) < 64


def test_padding_and_truncation_of_the_file_are_off(tmp_path: Path):
    backend = byte_level()
    backend.enable_padding(length=32)
    backend.enable_truncation(4)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.open(tmp_path)
    assert has_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("hello world, hello")) == "hello world, hello"
    assert len(tokenizer.encode("x")) == 1


def test_bos_comes_from_the_post_processor():
    tokenizer = Tokenizer(sentencepiece())
    assert tokenizer.encode("hi")[0] == 1
    assert tokenizer.encode("hi", add_special_tokens=False)[0] != 1
    assert tokenizer.prefix_ids == (1,)
    assert Tokenizer(sentencepiece(add_bos=False)).prefix_ids == ()


def test_special_ids_and_byte_tokens():
    tokenizer = Tokenizer(sentencepiece())
    assert tokenizer.special_ids == {0, 1, 2}
    assert len(tokenizer.byte_fallback_ids) == 256
    assert Tokenizer(byte_level()).byte_fallback_ids == frozenset()


def test_an_id_without_a_token_vanishes():
    tokenizer = Tokenizer(byte_level())
    assert tokenizer.decode([*tokenizer.encode("hello"), 10_000_000]) == "hello"
    assert tokenizer.id_to_token(10_000_000) is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", ""])
def test_a_damaged_file_is_refused(tmp_path: Path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.open(tmp_path)


def test_a_folder_without_tokenizer_json_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        Tokenizer.open(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"x")
    with pytest.raises(UnsupportedError, match=r"only tokenizer\.model"):
        Tokenizer.open(tmp_path)


def test_text_that_is_not_unicode_is_refused():
    with pytest.raises(RequestError, match="not valid Unicode"):
        Tokenizer(byte_level()).encode("a\ud800b")


def test_negative_ids_are_refused():
    with pytest.raises(RequestError, match="token id"):
        Tokenizer(byte_level()).decode([-1])
