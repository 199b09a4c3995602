"""q4f16_autoawq: an AWQ checkpoint's own bytes under the cache's names; decoded and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from checkpoints_for_tests import TINY_LLAMA, llama_shapes, random_tensors, tiny_llama, write_checkpoint
from packed_for_tests import Quantized, awq, config_of, gptq, random_layer
from test_native_runtime import run_in_chunks

from kumquant import LLM, TensorCache
from kumquant.convert import convert
from kumquant.convert import stream as stream_module
from kumquant.errors import RequestError, TensorCacheError, UnsupportedError
from kumquant.models import describe
from kumquant.runtime.reference import forward
from kumquant.tensor_cache import decode_awq, verify

MODE = "q4f16_autoawq"
CONFIG = {**TINY_LLAMA, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
          "num_key_value_heads": 2, "head_dim": 32}


def checkpoint(folder: Path, pack=awq, group: int = 128, method: str = "awq",
               num_files: int = 1) -> dict[str, Quantized]:
    """A llama whose linears are packed; returns them by name."""
    rng = np.random.default_rng(5)
    layers, tensors = {}, {}
    for name, array in random_tensors(llama_shapes(CONFIG)).items():
        if "_proj" in name:
            layers[name] = random_layer(rng, *array.shape, group, symmetric=False)
            tensors |= pack(layers[name], name.removesuffix(".weight"))
        else:
            tensors[name] = array if array.ndim == 2 else np.ones_like(array)
    write_checkpoint(folder, dict(sorted(tensors.items())),
                     {**CONFIG, "quantization_config": config_of(method, group)}, num_files)
    return layers


def fused(layers: dict[str, Quantized], layer: int, *names: str) -> np.ndarray:
    return np.concatenate([layers[f"model.layers.{layer}.{name}_proj.weight"].values for name in names])


@pytest.mark.parametrize("num_files", [1, 3])
def test_the_checkpoints_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_files: int) -> None:
    monkeypatch.setattr(stream_module, "BLOCK_BYTES", 5000)
    layers = checkpoint(tmp_path / "source", num_files=num_files)
    report = convert(tmp_path / "source", tmp_path / "out", MODE)
    cache = TensorCache.open(tmp_path / "out")
    verify(tmp_path / "out")
    assert len(cache) == 2 * (4 * 3 + 2) + 3 == report.records
    assert cache.scheme is not None and cache.scheme.name == MODE
    stem = "model.layers.1.self_attn"
    packed = [awq(layers[f"{stem}.{name}_proj.weight"], "x") for name in "qkv"]
    for part, dtype in (("qweight", np.uint32), ("qzeros", np.uint32), ("scales", np.float16)):
        record = cache[f"{stem}.qkv_proj.{part}"]
        expected = np.concatenate([one[f"x.{part}"] for one in packed], axis=1)
        assert record.dtype == dtype and record.shape == expected.shape and record.tobytes() == expected.tobytes()
    assert cache["lm_head.weight"].dtype == cache["model.embed_tokens.weight"].dtype == np.float16
    assert all(use.is_lossless for use in report.routes)
    found = describe(cache.manifest)
    assert (found.quantization, found.family, found.hidden_size, found.intermediate_size) == (MODE, "llama", 128, 256)
    chat_config = json.loads((tmp_path / "out" / "mlc-chat-config.json").read_text())
    assert chat_config["quantization"] == MODE
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())


def test_bits_per_parameter_count_words(tmp_path: Path) -> None:
    """The reference counts what it loads: elements of the packed arrays."""
    checkpoint(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", MODE)
    cache = TensorCache.open(tmp_path / "out")
    metadata = cache.manifest.metadata
    num_values = sum(array.size for array in cache.values())
    assert metadata["BitsPerParam"] == metadata["ParamBytes"] * 8.0 / num_values


def test_it_decodes_and_runs(tmp_path: Path) -> None:
    layers = checkpoint(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", MODE)
    cache = TensorCache.open(tmp_path / "out")
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        for name, parts in (("self_attn.qkv_proj", ("self_attn.q", "self_attn.k", "self_attn.v")),
                            ("mlp.gate_up_proj", ("mlp.gate", "mlp.up")), ("mlp.down_proj", ("mlp.down",))):
            assert np.array_equal(cache.dequantize(f"{prefix}{name}.weight"), fused(layers, layer, *parts))
    tokens = np.random.default_rng(0).integers(0, CONFIG["vocab_size"], 20).tolist()
    expected = forward(cache.spec, {tensor.name: cache.dequantize(tensor.name) for tensor in cache.plan}, tokens)
    scale = np.abs(expected).max()
    with LLM(tmp_path / "out", threads=2) as llm:
        assert np.abs(llm.logits(tokens, activations="float32") - expected).max() <= 1e-5 * scale
        assert np.abs(llm.logits(tokens) - expected).max() <= 0.1 * scale
        assert run_in_chunks(llm.model, tokens, [12] + [1] * 8, "int8").tobytes() == llm.logits(tokens).tobytes()


def test_other_modes_come_from_the_same_checkpoint(tmp_path: Path) -> None:
    layers = checkpoint(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", "q0f32")
    stored = TensorCache.open(tmp_path / "out").dequantize("model.layers.0.self_attn.qkv_proj.weight")
    expected = fused(layers, 0, "self_attn.q", "self_attn.k", "self_attn.v")
    assert np.abs(stored - expected).max() <= np.abs(expected).max() / 256


def test_what_is_no_awq_checkpoint_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "gptq", pack=gptq, method="gptq")
    checkpoint(tmp_path / "group 64", group=64)
    tiny_llama(tmp_path / "plain")
    for source, found in (("gptq", "4-bit GPTQ"), ("group 64", "group 64"), ("plain", "float16")):
        with pytest.raises(UnsupportedError, match=r"made from checkpoints that AWQ quantized") as caught:
            convert(tmp_path / source, tmp_path / "out", MODE)
        assert found in str(caught.value) and not (tmp_path / "out").exists()
    checkpoint(tmp_path / "awq")
    with pytest.raises(RequestError, match="goes with no other mode"):
        convert(tmp_path / "awq", tmp_path / "out", [MODE, "q4f16_1"])
    assert not (tmp_path / "out").exists()


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    words, zeros, scales = np.zeros((256, 2), np.uint32), np.zeros((2, 2), np.uint32), np.ones((2, 16), np.float16)
    assert decode_awq(words, zeros, scales).shape == (16, 256)
    for bad in ((words[:255], zeros, scales), (words, zeros[:1], scales), (words[:, :1], zeros, scales),
                (words, zeros, np.ones((2, 17), np.float16)), (words, zeros[:0], scales[:0])):
        with pytest.raises(TensorCacheError, match="do not"):
            decode_awq(*bad)
    checkpoint(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out", MODE)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "intermediate_size": 384}))
    with pytest.raises(TensorCacheError, match="contradicts the model's config"):
        TensorCache.open(tmp_path / "out").spec  # noqa: B018
