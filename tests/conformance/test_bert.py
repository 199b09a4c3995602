"""BERT, converted, against hidden states of Transformers (make_reference_hidden_states.py writes them)."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from reference_encoders import ENCODERS, LENGTHS, token_ids, weight

from kumquant import LLM, CheckpointError, RequestError, SamplingParams, TensorCache, UnsupportedError, convert
from kumquant.models import family_of
from kumquant.runtime.reference import forward

# The makers of small checkpoints are shared with the unit tests.
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

from checkpoints_for_tests import write_checkpoint

REFERENCE = Path(__file__).parent / "reference"
NAMES = json.loads((REFERENCE / "encoder_names.json").read_text())


def checkpoint(folder: Path, model: str, label: str | None = None) -> Path:
    """A checkpoint with the tensors that Transformers saves, of the bare encoder or of the training model."""
    tensors = {name: weight(model, name.removeprefix("bert."), tuple(shape))
               for name, shape in NAMES[label or model].items()}
    tensors["embeddings.position_ids"] = np.arange(80, dtype=np.int64)[None]  # in older checkpoints
    return write_checkpoint(folder, tensors, ENCODERS[model])


@pytest.fixture(scope="module")
def caches(tmp_path_factory):
    """(model, mode) -> the converted folder."""
    folder = tmp_path_factory.mktemp("encoders")
    made = {}
    for model in ENCODERS:
        source = checkpoint(folder / model, model)
        for mode in ("q0f32", "q4f32_1"):
            made[model, mode] = folder / f"{model}-{mode}"
            convert(source, made[model, mode], mode)
    return made


@pytest.mark.parametrize("model", ENCODERS)
def test_hidden_states_are_those_of_transformers(model, caches):
    stored = np.load(REFERENCE / "hidden_states.npz")
    with LLM(caches[model, "q0f32"], threads=1) as llm:
        for length in LENGTHS:
            expected = stored[f"{model}/{length}"]
            states = llm.hidden_states(token_ids(model, length))
            assert states.dtype == np.float32
            assert np.abs(states - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("model", ENCODERS)
def test_quantized_states_are_those_of_the_dequantized_weights(model, caches):
    cache = TensorCache.open(caches[model, "q4f32_1"])
    assert "embeddings.position_embeddings.q_weight" in cache
    weights = {tensor.name: cache.dequantize(tensor.name) for tensor in cache.plan}
    with LLM(cache.folder, threads=1) as llm:
        for length in LENGTHS:
            ids = token_ids(model, length)
            expected = forward(cache.spec, weights, ids)
            exact = llm.hidden_states(ids, activations="float32")
            assert np.abs(exact - expected).max() <= 1e-5 * np.abs(expected).max()
            fast = llm.hidden_states(ids)
            assert 0 < np.abs(fast - expected).max() <= 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("model", ENCODERS)
def test_the_training_models_checkpoint_gives_the_same_cache(model, caches, tmp_path):
    """Names with "bert." in front; the heads of the training tasks are left out."""
    assert "bert.embeddings.LayerNorm.weight" in NAMES[f"{model}/pretraining"]
    convert(checkpoint(tmp_path / "source", model, f"{model}/pretraining"), tmp_path / "cache", "q4f32_1")
    plain, prefixed = TensorCache.open(caches[model, "q4f32_1"]), TensorCache.open(tmp_path / "cache")
    assert plain.keys() == prefixed.keys()
    assert not any("pooler" in name or "position_ids" in name for name in plain)
    assert all(np.array_equal(plain[name], prefixed[name]) for name in plain)


def test_bge_counts_neither_pooler_nor_position_ids(caches, tmp_path):
    """Never inferred; the same tensors, another BitsPerParam (the format's 5.4)."""
    report = convert(checkpoint(tmp_path / "source", "bert"), tmp_path / "cache", "q4f32_1", model_type="bert-bge")
    plain, bge = TensorCache.open(caches["bert", "q4f32_1"]), TensorCache.open(tmp_path / "cache")
    assert report.model_type == "bert-bge" and bge.family.model_type in ("bert", "bert-bge")
    assert {name: array.tobytes() for name, array in plain.items()} == {
        name: array.tobytes() for name, array in bge.items()}
    uncounted = 30 * 30 + 30 + 80
    assert plain.manifest.num_values - bge.manifest.num_values == uncounted
    with LLM(tmp_path / "cache") as llm:
        assert llm.embed([[1, 2, 3]]).shape == (1, 30)


def test_a_classifier_is_refused(tmp_path):
    """Its head is part of the answer, unlike those of the training tasks."""
    source = checkpoint(tmp_path / "source", "bert")
    tensors = {name: weight("bert", name, tuple(shape)) for name, shape in NAMES["bert"].items()}
    write_checkpoint(source, {**tensors, "classifier.weight": np.zeros((2, 30), np.float32)}, ENCODERS["bert"])
    with pytest.raises(CheckpointError, match=r"classifier\.weight"):
        convert(source, tmp_path / "out", "q0f32")


@pytest.mark.parametrize(("key", "value"), [
    ("position_embedding_type", "relative_key"), ("is_decoder", True), ("add_cross_attention", True),
    ("hidden_act", "mish"),
])
def test_what_a_bert_may_not_ask_for(key, value):
    family = family_of(ENCODERS["bert"])
    with pytest.raises(UnsupportedError, match=key):
        family.config({**ENCODERS["bert"], key: value})


def test_an_encoder_gives_no_text(caches):
    with LLM(caches["bert", "q0f32"]) as llm:
        for ask in (lambda: llm.generate([[1, 2]], SamplingParams(max_tokens=1)), lambda: llm.logits([1, 2]),
                    lambda: llm.chat([{"role": "user", "content": "Hello"}]),
                    lambda: llm.stream([1, 2], SamplingParams())):
            with pytest.raises(RequestError, match=r"an encoder.*\n.*embed"):
                ask()
        assert llm.context_length == 80


def test_what_hidden_states_refuses(caches):
    with LLM(caches["bert", "q0f32"]) as llm:
        for ids, message in (([], "empty"), ([1] * 81, "longer"), ([72], "out of range"), ("text", "not token ids")):
            with pytest.raises(RequestError, match=message):
                llm.hidden_states(ids)
