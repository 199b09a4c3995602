"""Arguments of the wrong kind are refused as such, by name, before anything is read or written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

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
