"""Checkpoints that others quantized: without loss into the 4-bit modes, or dequantized, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints_for_tests import TINY_LLAMA, llama_shapes, random_tensors, write_checkpoint
from packed_for_tests import awq, compressed_tensors, config_of, gptq, mlx, pack_words, random_layer

from kumquant.checkpoint import open_checkpoint
from kumquant.convert import convert
from kumquant.errors import CheckpointError, UnsupportedError
from kumquant.models import TensorCache
from kumquant.schemes import SCHEMES

CONFIG = {**TINY_LLAMA, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4,
          "num_key_value_heads": 2}
WRITERS = {
    "gptq": gptq, "auto-round": gptq, "awq": awq, "compressed-tensors": compressed_tensors,
    "gptq_v2": lambda layer, stem: gptq(layer, stem, zero_offset=0),
}


def packed_llama(folder: Path, method: str, group: int = 64, *, symmetric: bool = True, dtype=np.float16,
                 num_files: int = 1) -> dict[str, np.ndarray]:
    """A llama whose linear layers are packed. Returns what every tensor says, as float32."""
    rng = np.random.default_rng(3)
    stored, values = {}, {}
    for name, tensor in random_tensors(llama_shapes(CONFIG)).items():
        if not name.endswith("_proj.weight"):
            stored[name], values[name] = tensor, tensor.astype(np.float32)
            continue
        layer = random_layer(rng, *tensor.shape, group, symmetric=symmetric, dtype=dtype)
        stem = name.removesuffix(".weight")
        stored |= compressed_tensors(layer, stem, symmetric) if method == "compressed-tensors" else \
            WRITERS[method](layer, stem)
        values[name] = layer.values
    config = {**CONFIG, "quantization_config": config_of(method, group, symmetric=symmetric)}
    write_checkpoint(folder, stored, config, num_files)
    return values


@pytest.mark.parametrize("method", WRITERS)
@pytest.mark.parametrize("group", [32, 64])
def test_a_packed_checkpoint_reads_as_what_it_says(tmp_path, method, group):
    values = packed_llama(tmp_path, method, group, symmetric=method not in ("awq", "gptq_v2"))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == values.keys()
    for name, expected in values.items():
        assert np.array_equal(checkpoint.read(name).astype(np.float32), expected), name
        assert checkpoint.tensors[name].shape == expected.shape
    name = "model.layers.0.mlp.down_proj.weight"
    assert np.array_equal(checkpoint.read_rows(name, 1, 100, 700)[:, 0], values[name].reshape(-1)[100:700])
    assert np.array_equal(checkpoint.read_rows(name, 128, 5, 21), values[name][5:21])


@pytest.mark.parametrize("method", ["gptq", "auto-round", "compressed-tensors", "gptq_v2"])
@pytest.mark.parametrize("group", [32, 64])
def test_symmetric_layers_go_into_q4f16_1_without_any_loss(tmp_path, method, group):
    values = packed_llama(tmp_path / "in", method, group, num_files=2)
    report = convert(tmp_path / "in", tmp_path / "out", "q4f16_1")
    cache = TensorCache.open(tmp_path / "out")
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        fused = [values[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"]
        assert np.array_equal(cache.dequantize(f"{prefix}self_attn.qkv_proj"), np.concatenate(fused))
        fused = [values[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up")]
        assert np.array_equal(cache.dequantize(f"{prefix}mlp.gate_up_proj"), np.concatenate(fused))
        assert np.array_equal(cache.dequantize(f"{prefix}mlp.down_proj"), values[f"{prefix}mlp.down_proj.weight"])
    kept = [use for use in report.routes if "codes kept" in use.route]
    assert [(use.tensors, use.is_lossless) for use in kept] == [(14, True)]
    assert f"group {group}, symmetric" in kept[0].route
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "quantization_config" not in config and config["hidden_size"] == 64
    assert cache.verify().tensors == cache.manifest.num_records and cache.config.hidden_size == 64


def test_all_sixteen_codes_with_both_signs_zero_and_denormal_scales(tmp_path):
    packed_llama(tmp_path, "gptq", 32)
    checkpoint = open_checkpoint(tmp_path)
    name = "model.layers.1.mlp.down_proj.weight"
    codes, scales = checkpoint.read_codes(name, SCHEMES["q4f16_1"], 0, 64)
    slots = (codes[:, :, None] >> (np.arange(8, dtype=np.uint32) * 4)) & 15
    assert set(slots.reshape(-1)) == set(range(16))
    assert scales.dtype == np.float16 and (scales > 0).any() and (scales < 0).any() and (scales == 0).any()
    assert (np.abs(scales[scales != 0]) < np.float16(6e-5)).any()
    values = (slots.reshape(64, 4, 32).astype(np.float32) - 7) * scales.astype(np.float32)[:, :, None]
    assert np.array_equal(values.reshape(64, 128), checkpoint.read(name))


def test_one_group_per_row_and_a_row_that_does_not_fill_its_last_word(tmp_path):
    rng = np.random.default_rng(0)
    layer = random_layer(rng, 8, 77, 77)
    stem = "layer"
    write_checkpoint(tmp_path, compressed_tensors(layer, stem),
                     {"quantization_config": _with_strategy("channel", None)})
    checkpoint = open_checkpoint(tmp_path)
    assert np.array_equal(checkpoint.read("layer.weight"), layer.values)
    codes, scales = checkpoint.read_codes("layer.weight", SCHEMES["q4f16_1"], 2, 5)
    assert codes.shape == (3, 12) and scales.shape == (3, 3)
    assert (codes[:, 9] >> np.uint32(20) == 0).all() and (codes[:, 10:] == 0).all()
    assert checkpoint.tensors["layer.weight"].stored_as == "4-bit compressed-tensors, one group per row, symmetric"


def _with_strategy(strategy, group_size):
    config = config_of("compressed-tensors", 32)
    config["config_groups"]["group_0"]["weights"] |= {"strategy": strategy, "group_size": group_size}
    return config


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors", "awq"])
def test_asymmetric_layers_are_dequantized_and_the_loss_is_stated(tmp_path, method):
    values = packed_llama(tmp_path / "in", method, symmetric=False)
    report = convert(tmp_path / "in", tmp_path / "out", "q4f16_1")
    lossy = [use for use in report.routes if "dequantized" in use.route]
    assert [(use.tensors, use.is_lossless) for use in lossy] == [(14, False)]
    assert "asymmetric: round-to-nearest to 4 bits" in lossy[0].route
    name = "model.layers.0.mlp.down_proj.weight"
    error = np.abs(TensorCache.open(tmp_path / "out").dequantize(name) - values[name])
    assert 0 < error.max() < np.abs(values[name]).max() / 7


def test_plain_modes_take_the_dequantized_values(tmp_path):
    values = packed_llama(tmp_path / "in", "gptq")
    convert(tmp_path / "in", tmp_path / "out", "q0f16")
    name = "model.layers.0.mlp.down_proj.weight"
    with np.errstate(under="ignore"):
        assert np.array_equal(TensorCache.open(tmp_path / "out")[name], values[name].astype(np.float16))


def test_scales_that_the_mode_rounds_are_stated_and_the_codes_kept(tmp_path):
    values = packed_llama(tmp_path / "in", "gptq")
    report = convert(tmp_path / "in", tmp_path / "out", "q4bf16_1")
    kept = [use for use in report.routes if "codes kept" in use.route]
    assert [use.is_lossless for use in kept] == [False] and "scales from float16 to bfloat16" in kept[0].route
    name = "model.layers.0.mlp.down_proj.weight"
    error = np.abs(TensorCache.open(tmp_path / "out").dequantize(name) - values[name])
    assert (error <= np.abs(values[name]) * 2**-8).all()


def test_bfloat16_scales(tmp_path):
    values = packed_llama(tmp_path / "in", "compressed-tensors", dtype=ml_dtypes.bfloat16)
    report = convert(tmp_path / "in", tmp_path / "out", "q4bf16_1")
    name = "model.layers.0.mlp.down_proj.weight"
    assert np.array_equal(TensorCache.open(tmp_path / "out").dequantize(name), values[name])
    assert [use.is_lossless for use in report.routes if "codes kept" in use.route] == [True]


def test_compat_requantizes_as_mlc_would(tmp_path):
    packed_llama(tmp_path / "in", "gptq")
    report = convert(tmp_path / "in", tmp_path / "out", "q4f16_1", compat=True)
    assert not any("codes kept" in use.route for use in report.routes)


def test_desc_act_is_refused_with_the_reason_unless_the_order_is_plain(tmp_path):
    layer = random_layer(np.random.default_rng(0), 8, 64, 32)
    config = {"quantization_config": {**config_of("gptq", 32), "desc_act": True}}
    write_checkpoint(tmp_path / "plain", gptq(layer, "layer"), config)
    assert np.array_equal(open_checkpoint(tmp_path / "plain").read("layer.weight"), layer.values)
    write_checkpoint(tmp_path / "shuffled", gptq(layer, "layer", order=np.arange(64) % 2), config)
    with pytest.raises(UnsupportedError, match=r"layer\.g_idx.*\n.*desc_act=False") as caught:
        open_checkpoint(tmp_path / "shuffled")
    assert "order of activations" in caught.value.what


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method: weights quantized like this cannot be taken in"),
        ({"bits": 3}, "bits: weights quantized like this"),
        ({"checkpoint_format": "marlin"}, "found 'marlin'"),
        ({"group_size": 0}, "impossible group size"),
        ({"group_size": 32}, r"layer\.scales does not fit its packed layer; found float16 \[1, 8\]"),
        ({"bits": 8}, r"layer\.g_idx does not fit its packed layer.*each of 32 inputs"),
    ],
)
def test_configs_that_cannot_be_followed_are_refused(tmp_path, change, message):
    layer = random_layer(np.random.default_rng(0), 8, 64, 64)
    config = {"quantization_config": {**config_of("gptq", 64), **change}}
    write_checkpoint(tmp_path, gptq(layer, "layer"), config)
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        ("gptq", {"layer.scales": None}, r"the packed layer layer is incomplete; expected layer\.scales"),
        ("gptq", {"layer.scales": np.zeros((2, 8), np.int32)}, "expected float16, bfloat16 or float32"),
        ("gptq", {"layer.qweight": np.zeros((8, 8), np.float16)}, "expected a matrix of int32"),
        ("gptq", {"layer.qzeros": np.zeros((2, 7), np.int32)}, r"layer\.qzeros does not fit"),
        ("gptq", {"layer.qweight": np.zeros((0, 8), np.int32)}, "at least one input"),
        ("awq", {"layer.qzeros": None}, "incomplete"),
        ("compressed-tensors", {"layer.weight_shape": np.array([8, 50], np.int64)}, "does not fit|contradicts"),
        ("compressed-tensors", {"layer.weight_shape": np.array([8, -64], np.int64)}, "contradicts"),
        ("compressed-tensors", {"layer.weight": np.zeros((8, 64), np.float16)}, "twice, packed and plain"),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path, method, change, message):
    layer = random_layer(np.random.default_rng(0), 8, 64, 32)
    tensors = {**WRITERS[method](layer, "layer"), **change}
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    write_checkpoint(tmp_path, tensors, {"quantization_config": config_of(method, 32)})
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path)


def test_headers_alone_tell_what_will_come(tmp_path):
    """As for a model on the hub: the file has its header and its length, and no data."""
    layer = random_layer(np.random.default_rng(0), 8, 64, 32)
    write_checkpoint(tmp_path, gptq(layer, "layer"), {"quantization_config": config_of("gptq", 32)})
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes(data[:header] + bytes(len(data) - header))
    info = open_checkpoint(tmp_path, headers_only=True).tensors["layer.weight"]
    assert info.stored_as == "4-bit GPTQ, group 32, symmetric" and info.shape == (8, 64)


@pytest.mark.parametrize("symmetric", [True, False])
def test_mlx(tmp_path, symmetric):
    """Its config names no method, its codes are called ….weight, its embedding is packed too."""
    rng = np.random.default_rng(5)
    layers = {stem: random_layer(rng, 16, 128, 64, symmetric=symmetric) for stem in ("model.embed_tokens", "model.a")}
    stored = {name: tensor for stem, layer in layers.items() for name, tensor in mlx(layer, stem).items()}
    config = {"quantization": {"group_size": 64, "bits": 4, "model.b": False}}
    write_checkpoint(tmp_path, stored | {"model.b.weight": np.ones((3, 4), np.float16)}, config)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.tensors.keys() == {"model.embed_tokens.weight", "model.a.weight", "model.b.weight"}
    assert "quantization" not in checkpoint.config
    for stem in layers:
        scales, biases = stored[f"{stem}.scales"].astype(np.float32), stored[f"{stem}.biases"].astype(np.float32)
        group = np.arange(128) // 64
        expected = layers[stem].codes.astype(np.float32) * scales[:, group] + biases[:, group]
        assert np.array_equal(checkpoint.read(f"{stem}.weight"), expected)
    info = checkpoint.tensors["model.a.weight"]
    assert info.shape == (16, 128)
    assert info.stored_as == f"4-bit MLX, group 64, {'symmetric' if symmetric else 'asymmetric'}"
    assert checkpoint.has_codes(info.name, SCHEMES["q4f16_1"]) == symmetric


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({"layer.biases": None}, {}, r"incomplete; expected layer\.biases"),
        ({"layer.biases": np.zeros((8, 3), np.float16)}, {}, r"layer\.biases does not fit"),
        ({}, {"mode": "mxfp4"}, "found 'mxfp4'"), ({}, {"bits": 6}, "expected 2, 4, 8"),
    ],
)
def test_mlx_that_cannot_be_followed(tmp_path, change, config, message):
    layer = random_layer(np.random.default_rng(0), 8, 64, 32)
    tensors = {name: tensor for name, tensor in {**mlx(layer, "layer"), **change}.items() if tensor is not None}
    write_checkpoint(tmp_path, tensors, {"quantization": {"group_size": 32, "bits": 4, **config}})
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        open_checkpoint(tmp_path)


def test_the_generator_packs_as_documented():
    assert pack_words(np.arange(8, dtype=np.uint8)[None]).view(np.uint32)[0, 0] == 0x76543210
