"""The models that kumquant bench --compare writes for other runtimes: the cache's own numbers in their formats."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from checkpoints_for_tests import TINY_LLAMA, tiny_llama

import kumquant
from kumquant.bench.peers.llama_weights import LlamaWeights
from kumquant.bench.peers.onnx_file import FLOAT, INT64, OnnxWriter
from kumquant.bench.peers.onnx_model import write_onnx_folder
from kumquant.bench.peers.openvino_arrays import write_arrays
from kumquant.errors import TensorCacheError, UnsupportedError
from kumquant.models import TensorCache
from kumquant.runtime import Model

# Widths are whole groups of 32, as the other runtimes want them.
SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return tiny_llama(tmp_path_factory.mktemp("peer-models") / "source", **SIZES)


@pytest.fixture(scope="module")
def folder(source):
    return kumquant.convert(source, source.parent / "cache", "q4f16_1").out


@pytest.fixture
def cache(folder):
    return TensorCache.open(folder)


def unpacked(codes):
    return np.stack([codes & 15, codes >> 4], axis=-1).reshape(len(codes), -1).astype(np.int32)


@pytest.mark.parametrize(("role", "name"), [
    ("embed", "model.embed_tokens"), ("head", "lm_head"), ("qkv", "model.layers.0.self_attn.qkv_proj")])
def test_codes_around_eight_are_the_same_weights(cache, role, name):
    matrix = LlamaWeights(cache).matrix(role)
    values = (unpacked(matrix.codes) - 8) * np.repeat(matrix.scales, 32, axis=1)
    assert np.array_equal(values, cache.dequantize(name))


def test_a_code_that_cannot_move_up_is_refused(cache):
    class Full(dict):
        spec, scheme, folder = cache.spec, cache.scheme, cache.folder

    full = Full({"lm_head.q_weight": np.full((101, 8), 0xF0, np.uint32), "lm_head.q_scale": np.ones((101, 2))})
    with pytest.raises(TensorCacheError, match="a code of 15"):
        LlamaWeights(full).matrix("head")


@pytest.mark.parametrize(("config", "mode", "message"), [
    ({**SIZES, "hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}, "q4f16_1", "widths"),
    (SIZES, "q0f16", "mode: .*; found q0f16"), (SIZES, "q3f16_1", "mode: .*; found q3f16_1"),
    ({**SIZES, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 16}, "q4f16_1",
     "sliding_window"),
])
def test_what_is_no_plain_llama_in_four_bits_is_refused(tmp_path, config, mode, message):
    out = kumquant.convert(tiny_llama(tmp_path / "source", **config), tmp_path / "out", mode).out
    with pytest.raises(UnsupportedError, match=message) as caught:
        LlamaWeights(TensorCache.open(out))
    assert "--compare PEER=FOLDER" in str(caught.value)


def test_openvino_gets_the_parts_of_fused_matrices(cache, tmp_path):
    write_arrays(LlamaWeights(cache), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 2, 16)
    fused = cache.dequantize("model.layers.1.self_attn.qkv_proj")
    parts = []
    for name in ("q.1", "k.1", "v.1"):
        codes = unpacked(np.load(tmp_path / f"{name}.codes.npy"))
        signed = np.where(codes > 7, codes - 16, codes)  # two's complement
        parts.append(signed * np.repeat(np.load(tmp_path / f"{name}.scales.npy").astype(np.float32), 32, axis=1))
    assert [len(part) for part in parts] == [64, 32, 32]
    assert np.array_equal(np.concatenate(parts), fused)
    assert np.load(tmp_path / "frequencies.npy")[0] == 1.0


def test_an_onnx_file_byte_for_byte(tmp_path):
    """What the onnx package (1.23) writes for the same graph, its own producer name aside."""
    with OnnxWriter(tmp_path / "m.onnx") as onnx:
        x = onnx.input("x", FLOAT, ("n", 2))
        weight = onnx.constant("w", np.array([[1.0, 2.0]], np.float32))
        onnx.node("Foo", (x, "", weight), ("y",), "com.microsoft", axis=-1, pads=[1, 2], scale=0.5)
        onnx.output("y", INT64, (1,))
    assert (tmp_path / "m.onnx.data").read_bytes() == np.array([1, 2], np.float32).tobytes()
    assert (tmp_path / "m.onnx").read_bytes().hex() == (
        "080a12086b756d7175616e743acb010a590a01780a000a01771201791a022f792203466f6f2a140a046178697318ffffffffffff"
        "ffffff01a001022a0d0a047061647340014002a001072a0f0a057363616c65150000003fa001013a0d636f6d2e6d6963726f736f"
        "667412076465636f6465722a3e0801080210014201776a170a086c6f636174696f6e120b6d2e6f6e6e782e646174616a0b0a066f"
        "66667365741201306a0b0a066c656e67746812013870015a140a0178120f0a0d080112090a0312016e0a020802620f0a0179120a"
        "0a08080712040a02080142040a00101542110a0d636f6d2e6d6963726f736f66741001"
    )


def test_an_onnx_folder_is_whole(cache, tmp_path):
    write_onnx_folder(cache, tmp_path)
    config = json.loads((tmp_path / "genai_config.json").read_text())
    assert config["model"]["decoder"]["num_key_value_heads"] == 2 and config["model"]["vocab_size"] == 101
    graph = (tmp_path / "model.onnx").read_bytes()
    per_layer = {b"GroupQueryAttention": 1, b"MatMulNBits": 5, b"SkipSimplifiedLayerNormalization": 2}
    layers = TINY_LLAMA["num_hidden_layers"]
    for operation, count in per_layer.items():
        head = 1 if operation == b"MatMulNBits" else 0
        assert graph.count(b"\x22" + bytes([len(operation)]) + operation) == count * layers + head
    data = (tmp_path / "model.onnx.data").read_bytes()
    assert LlamaWeights(cache).matrix("embed").codes.tobytes() in data


ORT_LOGITS = """
import sys, numpy as np, onnxruntime_genai as genai
parameters = genai.GeneratorParams(model := genai.Model(sys.argv[1]))
parameters.set_search_options(max_length=32)
generator = genai.Generator(model, parameters)
generator.append_tokens(np.array([[5, 17, 99, 3, 42]], np.int32))
np.save(sys.argv[2], np.array(generator.get_logits()).reshape(-1))
"""


@pytest.mark.skipif(importlib.util.find_spec("onnxruntime_genai") is None, reason="needs onnxruntime-genai")
def test_onnxruntime_finds_the_same_logits(cache, tmp_path):
    write_onnx_folder(cache, tmp_path)
    subprocess.run([sys.executable, "-c", ORT_LOGITS, str(tmp_path), str(tmp_path / "logits.npy")], check=True)
    ours = Model(cache, threads=1).logits([5, 17, 99, 3, 42], activations="float32")[-1]
    assert np.linalg.norm(np.load(tmp_path / "logits.npy") - ours) < 0.05 * np.linalg.norm(ours)
