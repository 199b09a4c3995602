"""Checkpoints: what is read, in what order, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints_for_tests import header_of, random_tensors, tiny_llama, write_checkpoint, write_safetensors

from kumquant.checkpoint import open_checkpoint
from kumquant.errors import CheckpointError, UnsupportedError


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("num_files", [1, 3])
def test_tensors_read_back(tmp_path: Path, dtype: Any, num_files: int) -> None:
    tensors = random_tensors({"a": (3, 5), "b": (7,), "c": (), "d": (0, 4)}, dtype)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors, num_files=num_files))
    for name, array in tensors.items():
        info = checkpoint.tensors[name]
        assert (info.dtype, info.shape, info.nbytes) == (np.dtype(dtype).name, array.shape, array.nbytes)
        read = checkpoint.read(name)
        assert read.dtype == array.dtype and read.shape == array.shape and read.tobytes() == array.tobytes()
        assert not read.flags.writeable


def test_released_tensors_can_be_read_again(tmp_path: Path) -> None:
    tensors = random_tensors({"a": (300, 50), "b": (40_000,)}, np.float32)
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, tensors))
    view = checkpoint.read("b")
    checkpoint.prefetch("b")
    checkpoint.release("b", 100, 90_000)
    checkpoint.release("a")
    assert np.array_equal(view, tensors["b"]) and np.array_equal(checkpoint.read("a"), tensors["a"])


def test_data_need_not_be_aligned(tmp_path: Path) -> None:
    tensors = random_tensors({"a": (5,), "b": (3, 3)}, np.float32)
    write_checkpoint(tmp_path, tensors)
    text = json.dumps(header_of(tensors)).encode()
    write_safetensors(tmp_path / "model.safetensors", tensors, text + b" " * (3 - len(text) % 4), pad_to=1)
    assert np.array_equal(open_checkpoint(tmp_path).read("b"), tensors["b"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_columns_are_the_rows_of_the_transpose(tmp_path: Path, dtype: Any) -> None:
    matrix = np.random.default_rng(2).standard_normal((37, 71)).astype(dtype)
    write_checkpoint(tmp_path, {"a": np.ones(1, np.float16), "m": matrix})  # so that float32 is not aligned
    checkpoint = open_checkpoint(tmp_path)
    for begin, end in ((0, 71), (5, 5), (31, 70), (70, 71)):
        columns = checkpoint.read_columns("m", begin, end)
        assert columns.dtype == dtype and columns.flags.c_contiguous
        np.testing.assert_array_equal(columns, matrix.T[begin:end])


def test_order_of_one_file_is_that_of_its_offsets(tmp_path: Path) -> None:
    tensors = random_tensors({"layers.10": (2,), "layers.2": (3,), "a": (1,)})
    header = header_of(tensors)
    write_checkpoint(tmp_path, tensors)
    write_safetensors(tmp_path / "model.safetensors", tensors, dict(sorted(header.items())))
    assert list(open_checkpoint(tmp_path).tensors) == ["layers.10", "layers.2", "a"]


def test_order_with_an_index_is_that_of_its_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    first, second = random_tensors({"a": (1,), "z": (2,)}), random_tensors({"b": (1,), "c": (2,)})
    write_safetensors(tmp_path / "one.safetensors", first)
    write_safetensors(tmp_path / "two.safetensors", second)
    weight_map = {"c": "two.safetensors", "z": "one.safetensors",
                  "b": "two.safetensors", "a": "one.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    checkpoint = open_checkpoint(tmp_path)
    assert list(checkpoint.tensors) == ["c", "b", "z", "a"]
    assert [file.name for file in checkpoint.files] == ["two.safetensors", "one.safetensors"]


def test_other_dtypes_can_be_listed_but_not_read(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_checkpoint(tmp_path, {"positions": np.arange(5)}))
    assert checkpoint.tensors["positions"].dtype == "I64" and checkpoint.tensors["positions"].num_values == 5
    with pytest.raises(UnsupportedError, match="positions has dtype I64"):
        checkpoint.read("positions")
    with pytest.raises(CheckpointError, match="no tensor nothing"):
        checkpoint.read("nothing")


def test_a_file_replaced_after_opening_is_noticed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_llama(tmp_path))
    checkpoint.check_unchanged()
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: the file changed"):
        checkpoint.read("model.norm.weight")


# ---- folders


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no such folder\n.*a name on the hub \(org/model\)"):
        open_checkpoint(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        open_checkpoint(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="not a JSON object; found list"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="no weights"):
        open_checkpoint(tmp_path)
    (tmp_path / "part.bin").write_text("")
    with pytest.raises(CheckpointError, match=r"no weights; found part\.bin"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", 7])
def test_an_index_cannot_lead_out_of_the_folder(tmp_path: Path, name: object) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(CheckpointError, match="tensor a is said to be in a file outside the folder"):
        open_checkpoint(tmp_path)


def test_index_and_files_must_agree(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path, num_files=2)
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    moved = {**index["weight_map"], "model.norm.weight": "model-00001-of-00002.safetensors",
             "lm_head.weight": "model-00002-of-00002.safetensors"}
    path.write_text(json.dumps({"weight_map": moved}))
    with pytest.raises(CheckpointError, match=r"says that tensor .* is in this file, but it is not"):
        open_checkpoint(folder)
    del index["weight_map"]["lm_head.weight"]
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is in this file, but .* does not say so"):
        open_checkpoint(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors: the index names this file"):
        open_checkpoint(folder)
    path.write_text('{"weight_map": {}}')
    with pytest.raises(CheckpointError, match="no weight_map"):
        open_checkpoint(folder)


# ---- headers

GOOD = {"a": {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}


def entry(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "a": {**GOOD["a"], **changes}}


@pytest.mark.parametrize(("header", "message"), [
    (b"{not json", "not JSON"),
    (b"\xff\xfe", "not JSON"),
    (b"[]", "not a JSON object"),
    (b"[" * 100_000, "not JSON"),
    (json.dumps(GOOD).encode()[:-1] + b', "a": {}}', "has a name twice; found a"),
    ({"a": GOOD["a"], "b": 1}, "entry for b is incomplete"),
    ({"a": {"dtype": "F16"}}, "entry for a is incomplete"),
    ({**GOOD, "__metadata__": 3}, "__metadata__ is not an object"),
    (entry(dtype="F17"), "tensor a has an unknown dtype; found F17"),
    (entry(dtype=["F16"]), "tensor a has an unknown dtype"),
    (entry(shape=[2, -3]), "tensor a has an impossible shape"),
    (entry(shape=[2.0, 3]), "tensor a has an impossible shape"),
    (entry(shape=[True, 6]), "tensor a has an impossible shape"),
    (entry(shape=6), "tensor a has an impossible shape"),
    (entry(data_offsets=[0]), "impossible data_offsets"),
    (entry(data_offsets=[12, 0]), "impossible data_offsets"),
    (entry(data_offsets=[0, 2**80]), "impossible data_offsets"),
    (entry(shape=[2, 4]), "wrong size for F16 .*found 12 bytes; expected 16"),
    (entry(shape=[2**40, 2**40]), "wrong size"),
    (entry(shape=[1, 3], data_offsets=[0, 6]), "tensor b leaves a hole .*; found offset 12; expected 6"),
    (entry(shape=[2, 4], data_offsets=[0, 16]), "tensor b overlaps the tensor before it"),
    ({"b": GOOD["b"]}, "tensor b leaves a hole"),
    ({"a": GOOD["a"]}, "data after the last tensor; found 16 bytes of data; expected 12"),
    ({**GOOD, "c": {"dtype": "F32", "shape": [4], "data_offsets": [16, 32]}}, "truncated"),
])
def test_bad_headers(tmp_path: Path, header: object, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    write_safetensors(tmp_path / "model.safetensors", {"data": np.zeros(8, np.float16)}, header)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(tmp_path)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [
    (b"", "too short"),
    (b"1234567", "too short"),
    ((0).to_bytes(8, "little"), "length is impossible"),
    ((1 << 62).to_bytes(8, "little") + b"{}", "length is impossible"),
    ((3).to_bytes(8, "little") + b"{}", "length is impossible"),
    ((-1).to_bytes(8, "little", signed=True) + b"{}", "length is impossible"),
])
def test_bad_beginnings(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)
