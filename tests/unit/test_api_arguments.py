"""Arguments of the wrong kind are refused as such, by name, before anything is read or written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints_for_tests import tiny_llama
from tokenizers_for_tests import byte_level

import kumquant as kq
from kumquant.chat import stop_token_ids
from kumquant.engine.prompts import split_prompts

CALLS = {
    "open": lambda path, out: kq.TensorCache.open(path), "LLM": lambda path, out: kq.LLM(path),
    "source": lambda path, out: kq.convert(path, out), "out": lambda path, out: kq.convert(out.parent, path),
    "lora": lambda path, out: kq.convert(out.parent, out, lora=[path]),
    "only lora": lambda path, out: kq.convert(out.parent, out, lora=path),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("path", [None, 5, b"model", "a\0b", {"a"}])
def test_what_is_no_path(call, path, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(kq.RequestError, match="path"):
        CALLS[call](path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [
    {"model": 5}, {"model": None}, {"text": 5}, {"text": "a\0"}, {"against": b"model"}, {"threads": "x"},
    {"window": 1.5}, {"num_tokens": "x"},
])
def test_what_evaluate_refuses(arguments):
    with pytest.raises(kq.RequestError, match=next(iter(arguments))):
        kq.evaluate(**{"model": "model", "text": "text", **arguments})


@pytest.mark.parametrize("arguments", [
    {"quantization": None}, {"quantization": 5}, {"quantization": ["q4f16_1", None]}, {"threads": "x"},
    {"threads": 1.5}, {"threads": 2**70}, {"threads": True}, {"threads": 0},
])
def test_what_convert_refuses(arguments, tmp_path):
    with pytest.raises(kq.RequestError, match=next(iter(arguments))):
        kq.convert(tmp_path, tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prompts", [
    np.array(3), np.array("a"), {1, 2}, {"a"}, {"a": 1}, {1: 2}, b"ab", 5, None, [np.array(3)], [{1, 2}], [{1: 2}],
    [1.5], [[1, "a"]], [None],
])
def test_what_is_no_prompt(prompts):
    with pytest.raises(kq.RequestError, match="not a prompt"):
        split_prompts(prompts)


def test_prompts_that_are_arrays():
    assert split_prompts(np.array([1, 2])) == [[1, 2]]
    assert split_prompts(np.array([[1, 2], [3, 4]])) == [[1, 2], [3, 4]]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "mlc-chat-config.json"])
@pytest.mark.parametrize("value", ["2", 2.0, True, -1, [2, None], [[2]], {"a": 2}])
def test_an_end_that_is_no_token_id(tmp_path: Path, name, value):
    (tmp_path / name).write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(kq.CheckpointError, match=rf'{name}: the key "eos_token_id"'):
        stop_token_ids(tmp_path)


@pytest.mark.parametrize(("value", "ids"), [(None, set()), (5, {5}), ([5, 99], {5, 99}), ([], set())])
def test_ends_in_either_spelling(tmp_path: Path, value, ids):
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": value}))
    assert stop_token_ids(tmp_path) == ids


def test_a_tokenizer_of_another_model_is_blamed_not_the_prompt(tmp_path: Path):
    source = tiny_llama(tmp_path / "source")
    byte_level().save(str(source / "tokenizer.json"))
    kq.convert(source, tmp_path / "out")
    with kq.LLM(tmp_path / "out") as model:
        with pytest.raises(kq.CheckpointError, match=r"tokenizer\.json: the tokenizer gives ids .* 0 to 100"):
            model.generate("zzz \u00ff\u0416")
        with pytest.raises(kq.RequestError, match="prompt: token id out of range"):
            model.generate([101])
        for params in (5, "x", [5], {"max_tokens": 3}, [kq.SamplingParams(), kq.SamplingParams()]):
            with pytest.raises(kq.RequestError, match="params"):
                model.generate([5], params)
        for token_ids in (np.array(3), {1, 2}, {1: 2}, None, 5, [1.5], b"ab"):
            with pytest.raises(kq.RequestError):
                model.logits(token_ids)


@pytest.mark.parametrize("name", [None, 5, b"model.norm.weight", ["model.norm.weight"]])
def test_what_is_no_parameter(name, tmp_path: Path):
    kq.convert(tiny_llama(tmp_path / "source"), tmp_path / "out")
    with pytest.raises(kq.RequestError, match="not the name of a parameter"):
        kq.TensorCache.open(tmp_path / "out").dequantize(name)
