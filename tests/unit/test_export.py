"""export: GGUF files that give the same bytes back, safetensors that say what the codes stand for."""

from __future__ import annotations

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints_for_tests import tiny_llama
from gguf_architectures_for_tests import ARCHITECTURES, POSITIONS
from gguf_for_tests import (
    LLAMA,
    bpe_metadata,
    llama_shapes,
    random_values,
    sentencepiece_metadata,
    write_floats,
    write_q4_0,
)

from kumquant import TensorCache, convert
from kumquant.checkpoint import open_checkpoint
from kumquant.checkpoint.gguf.header import read_header
from kumquant.cli.main import main
from kumquant.errors import RequestError, UnsupportedError
from kumquant.export import export
from kumquant.tokenizer import Tokenizer


def tensor_bytes(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    data = path.read_bytes()
    return {tensor.name: (tensor.type.name, tensor.shape, data[tensor.begin : tensor.begin + tensor.nbytes])
            for tensor in read_header(path).tensors}


@pytest.mark.parametrize(("metadata", "shapes"), [
    *(pytest.param(*parts, id=name) for name, parts in ARCHITECTURES.items()),
    pytest.param(LLAMA, llama_shapes(tied=True), id="llama tied"),
])
def test_gguf_to_cache_to_gguf_gives_the_same_tensor_bytes(tmp_path: Path, metadata: dict, shapes: dict) -> None:
    """And metadata that mean the same. GPT-2's positions become 4 bits in the cache: nothing keeps those of F16."""
    write_q4_0(tmp_path / "in.gguf", metadata, shapes, plain=(POSITIONS,))
    convert(tmp_path / "in.gguf", tmp_path / "cache", "q4f16_1")
    report = export(tmp_path / "cache", tmp_path / "out.gguf")
    before, after = tensor_bytes(tmp_path / "in.gguf"), tensor_bytes(tmp_path / "out.gguf")
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name] and name != POSITIONS] == []
    assert all(route.is_lossless for route in report.routes)
    one, two = open_checkpoint(tmp_path / "in.gguf").config, open_checkpoint(tmp_path / "out.gguf").config
    ropes = [config.pop("rope_scaling", None) or {} for config in (one, two)]
    assert one == two
    assert ropes[0].pop("rope_type", None) == ropes[1].pop("rope_type", None)
    assert ropes[0].keys() == ropes[1].keys()
    for key, value in ropes[0].items():
        np.testing.assert_allclose(ropes[1][key], value, rtol=1e-6, err_msg=key)


def test_models_that_llama_cpp_would_compute_otherwise_stay_here(tmp_path: Path) -> None:
    """It takes the scale of Gemma's queries from their width, and divisors for llamas only."""
    metadata, shapes = ARCHITECTURES["gemma3"]
    convert(write_floats(tmp_path / "in.gguf", metadata, random_values(shapes)), tmp_path / "gemma", "q0f16")
    tiny_llama(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "llama", "q0f16")
    for folder, changes, match in (
        ("gemma", {"query_pre_attn_scalar": 20}, "attention_scale"),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope scaling"),
    ):
        path = tmp_path / folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        with pytest.raises(UnsupportedError, match=match):
            export(tmp_path / folder, tmp_path / "out.gguf")
        assert not (tmp_path / "out.gguf").exists()


def test_gemma_goes_out_as_its_text_part_under_its_own_names(tmp_path: Path) -> None:
    metadata, shapes = ARCHITECTURES["gemma3"]
    source = write_floats(tmp_path / "in.gguf", metadata, random_values(shapes))
    convert(source, tmp_path / "cache", "q0f16")
    path = tmp_path / "cache" / "config.json"
    text = json.loads(path.read_text())
    path.write_text(json.dumps({"model_type": "gemma3", "text_config": text, "vision_config": {}}))
    export(tmp_path / "cache", tmp_path / "out", "safetensors")
    back = open_checkpoint(tmp_path / "out")
    assert back.tensors.keys() == open_checkpoint(source).tensors.keys()
    assert back.config["model_type"] == "gemma3_text" and back.config["layer_types"] == text["layer_types"]


def test_plain_caches_go_out_in_float(tmp_path: Path) -> None:
    write_floats(tmp_path / "in.gguf", LLAMA, random_values(llama_shapes()))
    convert(tmp_path / "in.gguf", tmp_path / "cache", "q0f16")
    export(tmp_path / "cache", tmp_path / "out.gguf")
    assert tensor_bytes(tmp_path / "out.gguf") == tensor_bytes(tmp_path / "in.gguf")


@pytest.mark.parametrize("mode", ["q4f16_1", "q4f32_1", "q4bf16_1", "q4f16_0", "q3f16_1", "q0bf16"])
def test_every_mode_goes_out_and_comes_back_as_the_same_numbers(tmp_path: Path, mode: str) -> None:
    tiny_llama(tmp_path / "hf", hidden_size=64, intermediate_size=96, num_attention_heads=4, head_dim=16,
               num_key_value_heads=2)
    convert(tmp_path / "hf", tmp_path / "cache", mode)
    report = export(tmp_path / "cache", tmp_path / "out.gguf")
    cache = TensorCache.open(tmp_path / "cache")
    back = open_checkpoint(tmp_path / "out.gguf")
    if mode != "q3f16_1":
        assert all(route.is_lossless for route in report.routes)
    for tensor in cache.plan:
        if len(tensor.shape) == 1:
            continue
        whole = np.concatenate([_read(back, name) for name in tensor.sources])
        if mode == "q3f16_1":
            np.testing.assert_allclose(whole, cache.dequantize(tensor.name), rtol=1e-3, atol=1e-7)
        else:
            np.testing.assert_array_equal(whole, cache.dequantize(tensor.name))


def _read(checkpoint, name: str) -> np.ndarray:
    if checkpoint.tensors[name].stored_as:
        pytest.importorskip("gguf", reason="skipped: the gguf package is not installed")
    return checkpoint.read(name).astype(np.float32)


def test_safetensors_hold_what_the_codes_stand_for(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "hf", rope_scaling={"rope_type": "linear", "factor": 2.0})
    convert(tmp_path / "hf", tmp_path / "cache", "q4bf16_1")
    report = export(tmp_path / "cache", tmp_path / "out", "safetensors")
    cache, back = TensorCache.open(tmp_path / "cache"), open_checkpoint(tmp_path / "out")
    assert set(back.tensors) == set(open_checkpoint(tmp_path / "hf").tensors)
    for tensor in cache.plan:
        whole = np.concatenate([back.read(name).astype(np.float32) for name in tensor.sources])
        np.testing.assert_array_equal(whole, cache.dequantize(tensor.name))
    assert back.read("model.norm.weight").dtype == ml_dtypes.bfloat16
    assert back.config["torch_dtype"] == "float32" and back.config["rope_scaling"]["factor"] == 2.0
    assert report.format == "safetensors" and all(route.is_lossless for route in report.routes)


@pytest.mark.parametrize("tokenizer", [bpe_metadata("llama-bpe") | {"tokenizer.ggml.eot_token_id": 256},
                                       bpe_metadata("qwen2"), bpe_metadata("smollm"),
                                       sentencepiece_metadata()])
def test_the_tokenizer_goes_out_as_it_came(tmp_path: Path, tokenizer: dict) -> None:
    size = len(tokenizer["tokenizer.ggml.tokens"])
    shapes = {name: (size, shape[1]) if shape[0] == 48 else shape for name, shape in llama_shapes().items()}
    write_floats(tmp_path / "in.gguf", {**LLAMA, **tokenizer}, random_values(shapes))
    convert(tmp_path / "in.gguf", tmp_path / "cache", "q0f16")
    export(tmp_path / "cache", tmp_path / "out.gguf")
    found = read_header(tmp_path / "out.gguf").metadata
    assert "tokenizer.ggml.eot_token_id" in tokenizer or "tokenizer.ggml.eot_token_id" not in found
    for key, value in tokenizer.items():
        if key != "tokenizer.ggml.scores":
            assert found[key] == value, key
    convert(tmp_path / "out.gguf", tmp_path / "again", "q0f16")
    one, two = Tokenizer.open(tmp_path / "cache"), Tokenizer.open(tmp_path / "again")
    for text in ("hello world", " world==12  \n\n<end>'s", "", "x\u00e9\U0001f642====="):
        assert one.encode(text) == two.encode(text)


def test_a_tokenizer_that_llama_cpp_has_no_equal_of_is_left_out_and_said(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "hf")
    (tmp_path / "hf" / "tokenizer.json").write_text(json.dumps(
        {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}))
    convert(tmp_path / "hf", tmp_path / "cache", "q0f16")
    report = export(tmp_path / "cache", tmp_path / "out.gguf")
    assert any("tokenizer cannot be exported" in warning for warning in report.warnings)
    assert read_header(tmp_path / "out.gguf").metadata["tokenizer.ggml.model"] == "no_vocab"


def test_refusals_leave_everything_as_it_was(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "hf")
    convert(tmp_path / "hf", tmp_path / "cache", "q4f16_1")
    (tmp_path / "there.gguf").write_text("mine")
    with pytest.raises(RequestError, match="is there already"):
        export(tmp_path / "cache", tmp_path / "there.gguf")
    assert (tmp_path / "there.gguf").read_text() == "mine"
    for out, to, match in (("there.gguf", "safetensors", "cannot be replaced"), ("hf", "gguf", "cannot be replaced"),
                           ("cache/tensor-cache.json", "gguf", "file of the cache itself"),
                           ("no/such.gguf", "gguf", "no such folder")):
        with pytest.raises(RequestError, match=match):
            export(tmp_path / "cache", tmp_path / out, to, force=True)
    assert (tmp_path / "there.gguf").read_text() == "mine"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="cannot be replaced"):
        export(tmp_path / "cache", tmp_path / "pipe", force=True)
    (tmp_path / "pipe").unlink()
    with pytest.raises(RequestError, match="unknown format"):
        export(tmp_path / "cache", tmp_path / "x", "onnx")
    with pytest.raises(RequestError, match="the same folder"):
        export(tmp_path / "cache", tmp_path / "cache", "safetensors", force=True)
    tiny_llama(tmp_path / "dynamic", rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    convert(tmp_path / "dynamic", tmp_path / "dynamic-cache", "q4f16_1")
    with pytest.raises(UnsupportedError, match="rope scaling"):
        export(tmp_path / "dynamic-cache", tmp_path / "x.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "dynamic", "dynamic-cache", "hf", "there.gguf"]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama(tmp_path / "hf", hidden_size=64, intermediate_size=96, head_dim=16, num_attention_heads=4,
               num_key_value_heads=2, vocab_size=32)
    convert(tmp_path / "hf", tmp_path / "cache", "q4f16_1")
    out = tmp_path / "m.gguf"
    assert main(["export", str(tmp_path / "cache"), "--to", "gguf", "-o", str(out), "--quiet"]) == 0
    assert capsys.readouterr().out == (
        f"{out}: 21 tensors, 38.1 kB\n"
        "  to Q4_0: codes kept: 16 tensors, 36.9 kB, no loss\n"
        "  to F32: kept: 5 tensors, 1.3 kB, no loss\n")
    assert main(["export", str(tmp_path / "cache"), "--to", "gguf", "-o", str(out), "--force", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "gguf" and document["routes"][0]["is_lossless"] is True
