"""Perplexity, KL and agreement against the same numbers computed the plain way."""

import math

import numpy as np
import pytest
from checkpoints_for_tests import tiny_llama
from tokenizers_for_tests import byte_level

import kumquant
from kumquant.errors import CheckpointError, RequestError
from kumquant.evaluate.measures import Scores, divergence, log_softmax
from kumquant.tokenizer import Tokenizer

TEXT = "hello world, this is a small text. " * 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """source/ and its caches q0f16/ and q4f16_1/, with a tokenizer, and text.txt."""
    folder = tmp_path_factory.mktemp("evaluate")
    source = tiny_llama(folder / "source", vocab_size=266, max_position_embeddings=128)
    byte_level().save(str(source / "tokenizer.json"))
    for mode in ("q0f16", "q4f16_1"):
        kumquant.convert(source, folder / mode, quantization=mode)
    (folder / "text.txt").write_text(TEXT)
    return folder


def plain_rows(folder, mode, window, activations):
    """float64 log probabilities and targets of every scored position."""
    token_ids = Tokenizer.open(folder / mode).encode(TEXT, add_special_tokens=False)
    rows, targets = [], []
    with kumquant.LLM(folder / mode, threads=1) as llm:
        for begin in range(0, len(token_ids), window):
            ids = token_ids[begin:begin + window]
            if len(ids) > 1:
                logits = llm.logits(ids, activations=activations)[:-1].astype(np.float64)
                rows.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
                targets += ids[1:]
    return np.concatenate(rows), np.array(targets)


@pytest.mark.parametrize("window", [7, 50, 128])
def test_perplexity_is_that_of_windows_that_stand_alone(folder, window):
    result = kumquant.evaluate(folder / "q4f16_1", folder / "text.txt", window=window, threads=1)
    logprobs, targets = plain_rows(folder, "q4f16_1", window, "int8")
    nll = -logprobs[np.arange(len(targets)), targets].mean()
    assert result.scored_tokens == len(targets)
    assert result.mean_nll == pytest.approx(nll, rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(nll), rel=1e-5)
    assert (result.window, result.against, result.mean_kl) == (window, None, None)


def test_divergence_from_another_cache(folder):
    result = kumquant.evaluate(folder / "q4f16_1", folder / "text.txt", folder / "q0f16", threads=1)
    mine, targets = plain_rows(folder, "q4f16_1", 128, "int8")
    theirs, _ = plain_rows(folder, "q0f16", 128, "float32")
    kl = (np.exp(theirs) * (theirs - mine)).sum(axis=1).mean()
    assert result.mean_kl == pytest.approx(kl, rel=1e-3)
    assert result.top1_agreement == (mine.argmax(axis=1) == theirs.argmax(axis=1)).mean()
    nll = -theirs[np.arange(len(targets)), targets].mean()
    assert result.against_perplexity == pytest.approx(math.exp(nll), rel=1e-5)


def test_a_lossless_cache_does_not_diverge_from_its_source(folder):
    result = kumquant.evaluate(folder / "q0f16", folder / "text.txt", folder / "source", threads=1)
    assert (result.mean_kl, result.top1_agreement) == (0.0, 1.0)
    assert result.perplexity == result.against_perplexity


def test_the_same_folder_measures_int8_activations(folder):
    both = {}
    for activations in ("int8", "float32"):
        both[activations] = kumquant.evaluate(
            folder / "q4f16_1", folder / "text.txt", folder / "q4f16_1", activations=activations, threads=1)
    assert both["float32"].mean_kl == 0.0
    assert 0.0 < both["int8"].mean_kl < 1e-3


def test_only_the_first_tokens_count(folder):
    result = kumquant.evaluate(folder / "q0f16", folder / "text.txt", num_tokens=11, window=5, threads=1)
    assert (result.tokens, result.windows, result.scored_tokens) == (11, 2, 8)


@pytest.mark.parametrize(("options", "message"), [
    ({"window": 129}, "window: does not fit the context; found 129; expected 2 to 128"),
    ({"window": 1}, "window: does not fit the context"),
])
def test_options_out_of_range(folder, options, message):
    with pytest.raises(RequestError, match=message):
        kumquant.evaluate(folder / "q0f16", folder / "text.txt", threads=1, **options)


def test_a_text_that_is_none(folder, tmp_path):
    for name, content, message in (("short", b"h", "too short; found 1"), ("bytes", b"\xff\xfe", "UTF-8")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RequestError, match=message):
            kumquant.evaluate(folder / "q0f16", tmp_path / name)
    with pytest.raises(RequestError, match="cannot be read"):
        kumquant.evaluate(folder / "q0f16", tmp_path / "missing")


def test_another_vocabulary_is_refused(folder, tmp_path):
    other = tiny_llama(tmp_path / "other", vocab_size=300)
    with pytest.raises(RequestError, match="different vocabularies; found 300 tokens; expected 266"):
        kumquant.evaluate(folder / "q0f16", folder / "text.txt", other)


def test_a_reference_with_missing_tensors_is_refused(folder, tmp_path):
    other = tiny_llama(tmp_path / "other", vocab_size=266)
    config = (other / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
    (other / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=r"missing; expected model\.layers\.2\."):
        kumquant.evaluate(folder / "q0f16", folder / "text.txt", other)


def test_log_softmax_of_large_logits():
    rows = np.array([[1000.0, 999.0, -1000.0], [0.0, 0.0, 0.0]], dtype=np.float32)
    expected = [[-0.31326166, -1.3132616, -2000.3132], [-1.0986123] * 3]
    np.testing.assert_allclose(log_softmax(rows), expected, rtol=1e-6)


def test_divergence_of_known_distributions():
    expected, other = np.log([[0.5, 0.5], [1.0, 1e-30]]), np.log([[0.25, 0.75], [0.5, 0.5]])
    kl = 0.5 * math.log(2) + 0.5 * math.log(2 / 3) + math.log(2)
    assert divergence(expected.astype(np.float32), other.astype(np.float32)) == pytest.approx(kl, rel=1e-6)


def test_scores_do_not_depend_on_how_rows_arrive():
    rng = np.random.default_rng(0)
    logits, reference = rng.normal(size=(2, 100, 17)).astype(np.float32)
    targets = rng.integers(0, 17, size=100)
    whole, parts = Scores(), Scores()
    whole.add(logits, targets, reference)
    for begin in range(0, 100, 7):
        rows = slice(begin, begin + 7)
        parts.add(logits[rows], targets[rows], reference[rows])
    assert (whole.count, whole.agreements) == (parts.count, parts.agreements) == (100, whole.agreements)
    assert whole.kl == pytest.approx(parts.kl, rel=1e-12) and whole.nll == pytest.approx(parts.nll, rel=1e-9)
