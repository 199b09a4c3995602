"""Texts to vectors: pooling as the folder says it, batches, cutting, prompts; LLM.embed and kumquant embed."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from checkpoints_for_tests import tiny_llama
from encoders_for_tests import CLS, SEP, sentence_encoder, write_modules

from kumquant import LLM, RequestError, TensorCacheError, UnsupportedError, convert
from kumquant.cli import main
from kumquant.engine.embedding import MAX_STEP_SEQUENCES, MAX_STEP_TOKENS, batches, pool
from kumquant.models import Pooling, load_pooling

TEXTS = ["the cat sat on the mat", "dogs", "", "the dog ran : the dogs sat on the cats on the mats", "cat"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    convert(sentence_encoder(folder / "source"), folder / "cache", "q4f32_1")
    return folder


@pytest.fixture(scope="module")
def llm(folders):
    with LLM(folders / "cache", threads=2) as opened:
        yield opened


def test_vectors_are_pooled_hidden_states(llm):
    vectors = llm.embed(TEXTS)
    assert vectors.shape == (5, 24) and vectors.dtype == np.float32
    for text, vector in zip(TEXTS, vectors):
        states = llm.hidden_states(llm.embedder.encode(text))
        mean = states.mean(axis=0)
        assert np.allclose(vector, mean / np.linalg.norm(mean), atol=1e-6)
        assert np.allclose(llm.embed(text, normalize=False)[0], mean, atol=1e-6)


def test_a_vector_does_not_depend_on_the_texts_beside_it(llm, folders):
    texts = [" ".join(["cat", "dog", "sat", "mats"][i % 4:][:1 + i % 3]) for i in range(3 * MAX_STEP_SEQUENCES)] + TEXTS
    together = llm.embed(texts)
    with LLM(folders / "cache", threads=1) as one_thread:
        for index in (0, 1, 100, len(texts) - 2, len(texts) - 1):
            assert np.array_equal(together[index], one_thread.embed(texts[index])[0])
    assert np.array_equal(llm.embed(texts[::-1])[::-1], together)


def test_long_texts_are_cut_before_the_ending(llm):
    ids = llm.embedder.encode(TEXTS[3])
    assert len(ids) == 12 and ids[0] == CLS and ids[-1] == SEP
    assert ids[:-1] == llm.tokenizer.encode(TEXTS[3])[:11]
    assert llm.embedder.encode("") == [CLS, SEP]


def test_token_ids_are_taken_as_they_are(llm):
    ids = llm.embedder.encode(TEXTS[0])
    assert np.array_equal(llm.embed([ids]), llm.embed([TEXTS[0]]))
    assert llm.embed([]).shape == (0, 24)
    for wrong, message in (([[]], "empty"), ([[5] * 13], "longer"), ([[99]], "out of range")):
        with pytest.raises(RequestError, match=message):
            llm.embed(wrong)


def test_batches_hold_what_a_step_may():
    lengths = [3] * 200 + [700, 400, 2000, 1]
    found = list(batches(lengths))
    assert sorted(index for batch in found for index in batch) == list(range(len(lengths)))
    assert found[0] == [202] and found[1] == [200]  # longest first; 700 + 400 is too much for one step
    for batch in found[1:]:
        assert sum(lengths[i] for i in batch) <= MAX_STEP_TOKENS and len(batch) <= MAX_STEP_SEQUENCES
    assert list(batches([])) == []


def test_pooling_modes():
    states = np.array([[1, 8], [3, 2], [5, 2]], np.float32)
    expected = {"cls": [1, 8], "last": [5, 2], "max": [5, 8], "mean": [3, 4],
                "mean_sqrt_len": [9 / 3**0.5, 12 / 3**0.5], "weightedmean": [22 / 6, 18 / 6]}
    for mode, vector in expected.items():
        assert np.allclose(pool(states, (mode,)), vector)
    assert np.allclose(pool(states, ("cls", "max")), [1, 8, 5, 8])


@pytest.mark.parametrize(("config", "modes"), [
    ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ("cls",)),
    ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ("max", "mean")),
    ({"pooling_mode_lasttoken": True}, ("last",)),
    ({"pooling_mode": "lasttoken"}, ("last",)),
    ({"pooling_mode": ["cls", "mean"]}, ("cls", "mean")),
])
def test_pooling_of_a_sentence_transformers_folder(tmp_path, config, modes):
    write_modules(tmp_path, "Transformer", "Pooling", pooling=config, max_seq_length=None, do_lower_case=True)
    assert load_pooling(tmp_path) == Pooling(modes, normalize=False, lowercase=True)


def test_what_pooling_refuses(tmp_path):
    write_modules(tmp_path, "Transformer", "Pooling", "Dense")
    with pytest.raises(UnsupportedError, match="Dense"):
        load_pooling(tmp_path)
    for pooling in ({"word_embedding_dimension": 24}, {"pooling_mode": "median"}):
        write_modules(tmp_path, "Transformer", "Pooling", pooling=pooling)
        with pytest.raises(UnsupportedError, match="pooling mode"):
            load_pooling(tmp_path)
    write_modules(tmp_path, "Transformer", "Pooling", max_seq_length=-1)
    with pytest.raises(TensorCacheError, match="max_seq_length"):
        load_pooling(tmp_path)
    for text, message in (("{", "not a list of modules"), ('["Pooling"]', "not a list of modules"),
                          ('[{"type": "a.Pooling", "path": "../x"}]', "outside the folder")):
        (tmp_path / "modules.json").write_text(text)
        with pytest.raises(TensorCacheError, match=message):
            load_pooling(tmp_path)


def test_prompts(tmp_path, folders):
    source = sentence_encoder(tmp_path / "source")
    prompts = {"prompts": {"query": "query : ", "document": ""}, "default_prompt_name": None}
    (source / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    convert(source, tmp_path / "cache", "q0f32")
    with LLM(tmp_path / "cache") as llm:
        assert np.array_equal(llm.embed("cat", prompt_name="query"), llm.embed("query : cat"))
        assert not np.array_equal(llm.embed("cat"), llm.embed("query : cat"))
        with pytest.raises(RequestError, match="no such prompt"):
            llm.embed("cat", prompt_name="question")
    (tmp_path / "cache" / "config_sentence_transformers.json").write_text(
        json.dumps({**prompts, "default_prompt_name": "query"}))
    with LLM(tmp_path / "cache") as llm:
        assert np.array_equal(llm.embed("cat"), llm.embed("cat", prompt_name="query"))


def test_what_a_conversion_keeps(tmp_path, folders):
    chat_config = json.loads((folders / "cache" / "mlc-chat-config.json").read_text())
    assert chat_config["model_task"] == "embedding"
    assert chat_config["embedding_metadata"] == {
        "model_type": "encoder", "pooling_strategy": "mean", "normalize": True}
    for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "tokenizer.json"):
        assert (folders / "cache" / name).read_bytes() == (folders / "source" / name).read_bytes()
    report = convert(folders / "source", tmp_path / "compat", "q4f32_1", compat=True)
    assert "pool by cls, not by mean" in " ".join(report.warnings)
    chat_config = json.loads((tmp_path / "compat" / "mlc-chat-config.json").read_text())
    assert chat_config["embedding_metadata"]["pooling_strategy"] == "cls"
    assert load_pooling(tmp_path / "compat").modes == ("mean",)  # Kumquant reads the model's own files


def test_a_folder_of_mlcs_pools_as_its_config_says(tmp_path, folders):
    """No modules.json and no config.json: what MLC's converter leaves."""
    convert(folders / "source", tmp_path / "cache", "q4f32_1", compat=True)
    for name in ("config.json", "modules.json"):
        (tmp_path / "cache" / name).unlink()
    with LLM(tmp_path / "cache") as llm:
        states = llm.hidden_states(llm.tokenizer.encode("the cat"))
        assert np.allclose(llm.embed("the cat")[0], states[0] / np.linalg.norm(states[0]), atol=1e-6)


def test_a_model_that_writes_text_says_that_it_makes_no_vectors(tmp_path):
    convert(tiny_llama(tmp_path / "source"), tmp_path / "cache", "q0f16")
    with LLM(tmp_path / "cache") as llm:
        with pytest.raises(RequestError, match="not an embedding model"):
            llm.embed("cat")
        assert llm.hidden_states([1, 2, 3]).shape == (3, 48)


def test_text_needs_a_tokenizer(tmp_path, folders):
    convert(folders / "source", tmp_path / "cache", "q4f32_1")
    (tmp_path / "cache" / "tokenizer.json").unlink()
    with LLM(tmp_path / "cache") as llm:
        with pytest.raises(RequestError, match="tokenizer"):
            llm.embed("cat")
        assert llm.embed([[CLS, 5, SEP]]).shape == (1, 24)


def test_a_closed_llm_makes_no_vectors(folders):
    llm = LLM(folders / "cache")
    llm.embed("cat")
    llm.close()
    with pytest.raises(RequestError, match="closed"):
        llm.embed("cat")


def test_an_encoder_has_no_head(capsys, folders, tmp_path):
    (tmp_path / "tensor-cache.json").write_bytes((folders / "cache" / "tensor-cache.json").read_bytes())
    for folder in (folders / "cache", tmp_path):
        assert main(["inspect", str(folder)]) == 0
        dimensions = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("dimensions"))
        assert dimensions.split(maxsplit=1)[1] == "layers 2, hidden 24, FFN 40, vocabulary 14"
    assert main(["bench", str(folders / "cache"), "--threads", "1"]) == 2
    assert "an encoder gives no logits" in capsys.readouterr().err


def run(capsys, *arguments):
    assert main(["embed", *map(str, arguments)]) == 0
    return capsys.readouterr()


def test_command_prints_a_vector_a_line(capsys, folders, llm):
    output = run(capsys, folders / "cache", "cat", "the dog")
    vectors = np.array([[float(value) for value in line.split(" ")] for line in output.out.splitlines()])
    assert np.allclose(vectors, llm.embed(["cat", "the dog"]), atol=1e-6)
    assert output.err.startswith("[2 texts, 7 tokens, ")


def test_command_reads_lines_and_writes_npy(capsys, folders, llm, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("cat\n\nthe dog\n"))
    path = tmp_path / "vectors.npy"
    output = run(capsys, folders / "cache", "-", "--npy", path, "--no-normalize", "--quiet")
    assert output.out == f"{path}: 3 vectors of 24 dimensions\n"
    assert output.err == ""
    assert np.array_equal(np.load(path), llm.embed(["cat", "", "the dog"], normalize=False))


def test_command_refuses(capsys, folders, tmp_path):
    assert main(["embed", str(folders / "cache"), "cat", "--json", "--npy", str(tmp_path / "x.npy")]) == 2
    assert main(["embed", str(folders / "cache"), "cat", "--prompt-name", "query"]) == 2
    assert "no such prompt" in capsys.readouterr().err
    assert main(["embed", str(folders / "cache"), "cat", "--npy", str(tmp_path / "none" / "x.npy")]) == 1
    assert list(tmp_path.iterdir()) == []
    assert main(["generate", str(folders / "cache"), "--prompt", "cat"]) == 2
    assert "kumquant embed" in capsys.readouterr().err
