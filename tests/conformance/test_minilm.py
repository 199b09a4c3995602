"""all-MiniLM-L6-v2, a real sentence encoder, against the vectors of sentence-transformers.

Needs the folder that ../shared/real/make_minilm.py makes; KUMQUANT_MINILM says where it is.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from kumquant import LLM, TensorCache, convert

REFERENCE = Path(__file__).parent / "reference"
SHARED = Path(__file__).parents[2].parent / "shared" / "real"
SOURCE = Path(os.environ.get("KUMQUANT_MINILM", "no folder named"))
pytestmark = [
    pytest.mark.skipif(not (SHARED / "minilm_reference.npz").is_file(), reason="skipped: no ../shared/real"),
    pytest.mark.skipif(not (SOURCE / "model.safetensors").is_file(),
                       reason="skipped: KUMQUANT_MINILM names no folder made by ../shared/real/make_minilm.py"),
]
# Of the vectors' cosines with the float32 ones, the least and the mean: stock rounding (--compat) on the 25 sentences,
# some of them odd (empty, three scripts, 256 tokens of one list). docs/embeddings.md has the measured values.
FLOORS = {"q4f16_1": (0.85, 0.94), "q4f32_1": (0.85, 0.94)}


@pytest.fixture(scope="module")
def reference():
    return np.load(SHARED / "minilm_reference.npz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("minilm")
    convert(SOURCE, made, ["q0f32", "q4f16_1", "q4f32_1"])
    return made


def test_vectors_are_those_of_sentence_transformers(folder, reference):
    with LLM(folder / "q0f32") as llm:
        sentences = [str(sentence) for sentence in reference["sentences"]]
        assert [len(llm.embedder.encode(sentence)) for sentence in sentences] == reference["tokens"].tolist()
        vectors = llm.embed(sentences)
    assert np.abs(vectors - reference["embeddings"]).max() <= 3e-3  # the weights are stored as bfloat16
    assert (vectors * reference["embeddings"]).sum(axis=1).min() >= 0.9999
    assert np.abs((vectors[0:20:2] * vectors[1:20:2]).sum(axis=1) - reference["pair_cosine"]).max() <= 3e-3


def test_vectors_are_those_of_transformers_on_the_same_weights(folder, reference):
    """reference/minilm_bfloat16.npz (make_reference_minilm.py) has the weights rounded as the cache stores them."""
    stored = np.load(REFERENCE / "minilm_bfloat16.npz")
    sentences = [str(sentence) for sentence in reference["sentences"]]
    with LLM(folder / "q0f32") as llm:
        assert np.abs(llm.embed(sentences) - stored["vectors"]).max() <= 1e-5
        states = llm.hidden_states(llm.embedder.encode(sentences[0]))
    assert np.abs(states - stored["states"]).max() <= 1e-5


@pytest.mark.parametrize("mode", FLOORS)
def test_the_loss_of_four_bits_is_what_is_stated(folder, reference, mode):
    TensorCache.open(folder / mode).verify()
    with LLM(folder / mode) as llm:
        vectors = llm.embed([str(sentence) for sentence in reference["sentences"]])
    cosines = (vectors * reference["embeddings"]).sum(axis=1)
    least, mean = FLOORS[mode]
    assert cosines.min() >= least and cosines.mean() >= mean


def test_a_vector_is_the_same_alone_and_in_a_batch(folder, reference):
    sentences = [str(sentence) for sentence in reference["sentences"]]
    with LLM(folder / "q4f16_1", threads=2) as llm, LLM(folder / "q4f16_1", threads=1) as other:
        together = llm.embed(sentences)
        for index, sentence in enumerate(sentences):
            assert np.array_equal(other.embed(sentence)[0], together[index])
