"""GGUF files as checkpoints: names, row order, config, routes into a cache, split files, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints_for_tests import write_checkpoint
from gguf_for_tests import (
    HEADS,
    HIDDEN,
    KV_HEADS,
    LLAMA,
    VOCAB,
    bpe_metadata,
    llama_shapes,
    metadata_of,
    random_values,
    write,
    write_floats,
    write_q4_0,
)

from kumquant import TensorCache, convert
from kumquant.checkpoint import llama3_divisors, open_checkpoint
from kumquant.errors import CheckpointError, Error, UnsupportedError
from kumquant.schemes import scheme_named


def rotated_back(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """llama.cpp's row order to Transformers', as make_smollm2.py does it."""
    return rows.reshape(num_heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def hugging_face(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The checkpoint that a llama GGUF file was made from."""
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
             "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    result = {}
    for name, array in values.items():
        words = name.split(".")
        if words[0] != "blk":
            result[f"{names[words[0]]}.weight"] = array
            continue
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(words[2])
        result[f"model.layers.{words[1]}.{parts[words[2]]}.weight"] = rotated_back(array, heads) if heads else array
    return dict(sorted(result.items()))


def same_bytes(left: Path, right: Path) -> None:
    names = sorted(path.name for path in left.glob("params_shard_*.bin"))
    assert names == sorted(path.name for path in right.glob("params_shard_*.bin"))
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes()


@pytest.mark.parametrize("mode", ["q0f16", "q4f16_1", "q4f32_1"])
def test_a_float16_file_gives_the_bytes_of_its_original(tmp_path: Path, mode: str) -> None:
    values = random_values(llama_shapes())
    source = write_floats(tmp_path / "tiny.gguf", LLAMA, values)
    report = convert(source, tmp_path / "from-gguf", mode)
    checkpoint = open_checkpoint(source)
    write_checkpoint(tmp_path / "hf", hugging_face(values), checkpoint.config)
    convert(tmp_path / "hf", tmp_path / "from-hf", mode)
    same_bytes(tmp_path / "from-gguf", tmp_path / "from-hf")
    assert report.model_type == "llama"
    if mode == "q0f16":
        assert all(use.is_lossless for use in report.routes if use.route.startswith("float16"))


def test_q4_0_goes_over_without_loss(tmp_path: Path) -> None:
    shapes = llama_shapes()
    stored = write_q4_0(tmp_path / "tiny.gguf", LLAMA, shapes)
    report = convert(tmp_path / "tiny.gguf", tmp_path / "out", "q4f16_1")
    cache = TensorCache.open(tmp_path / "out")

    def numbers(name: str) -> np.ndarray:
        groups = stored[name].reshape(-1, 18)
        codes = np.concatenate([groups[:, 2:] & 15, groups[:, 2:] >> 4], axis=1).astype(np.float32)
        return (groups[:, :2].copy().view(np.float16).astype(np.float32) * (codes - 8)).reshape(shapes[name])

    qkv = np.concatenate([rotated_back(numbers("blk.1.attn_q.weight"), HEADS),
                          rotated_back(numbers("blk.1.attn_k.weight"), KV_HEADS), numbers("blk.1.attn_v.weight")])
    np.testing.assert_array_equal(cache.dequantize("model.layers.1.self_attn.qkv_proj.weight"), qkv)
    gate_up = np.concatenate([numbers("blk.0.ffn_gate.weight"), numbers("blk.0.ffn_up.weight")])
    np.testing.assert_array_equal(cache.dequantize("model.layers.0.mlp.gate_up_proj.weight"), gate_up)
    np.testing.assert_array_equal(cache.dequantize("lm_head.weight"), numbers("output.weight"))
    kept = next(use for use in report.routes if use.route == "Q4_0: codes kept")
    assert [loss.rms_relative_error for loss in report.losses] == [0, 0, 0]
    assert kept.is_lossless and kept.tensors == sum(len(shape) == 2 for shape in shapes.values())


def test_mixed_files_take_the_best_route_for_each_tensor(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="skipped: the gguf package is not installed")
    write_q4_0(tmp_path / "tiny.gguf", LLAMA, llama_shapes(), plain=["token_embd.weight", "blk.0.attn_q.weight"])
    report = convert(tmp_path / "tiny.gguf", tmp_path / "out", "q4f16_1")
    routes = {use.route: (use.is_lossless, use.tensors) for use in report.routes}
    assert routes["float16: round-to-nearest to 4 bits"] == (False, 2)
    assert routes["Q4_0: codes kept"][0]
    losses = {loss.tensors: loss.rms_relative_error for loss in report.losses}
    assert 0.02 < losses["embedding"] < 0.2 and 0 < losses["linear"] < losses["embedding"] and losses["head"] == 0
    plain = convert(tmp_path / "tiny.gguf", tmp_path / "plain", "q0f16")
    assert plain.routes[0].route.startswith("dequantized from Q4_0")


def test_codes_of_a_file_are_offered_to_group_32_only(tmp_path: Path) -> None:
    write_q4_0(tmp_path / "tiny.gguf", LLAMA, llama_shapes())
    checkpoint = open_checkpoint(tmp_path / "tiny.gguf")
    has = {mode: checkpoint.has_codes("lm_head.weight", scheme_named(mode))
           for mode in ("q4f16_1", "q4f32_1", "q4f16_0", "q3f16_1", "q0f16")}
    assert has == {"q4f16_1": True, "q4f32_1": True, "q4f16_0": True, "q3f16_1": False, "q0f16": False}


def test_config_comes_from_the_metadata(tmp_path: Path) -> None:
    metadata = {**LLAMA, "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
                "tokenizer.ggml.eot_token_id": 3}
    checkpoint = open_checkpoint(write_floats(tmp_path / "tiny.gguf", metadata, random_values(llama_shapes(tied=True))))
    expected = {"model_type": "llama", "hidden_size": HIDDEN, "num_key_value_heads": KV_HEADS, "rms_norm_eps": 1e-5,
                "rope_theta": 10000, "rope_scaling": None, "tie_word_embeddings": True, "vocab_size": VOCAB,
                "attention_bias": False, "bos_token_id": 1}
    assert {key: checkpoint.config[key] for key in expected} == expected
    assert json.loads(checkpoint.small_files["generation_config.json"])["eos_token_id"] == [2, 3]


@pytest.mark.parametrize(("factor", "original"), [(8.0, 8192), (32.0, 8192)])
def test_llama3_scaling_is_read_back_from_its_divisors(tmp_path: Path, factor: float, original: int) -> None:
    metadata = {**LLAMA, "llama.rope.freq_base": 500000.0, "llama.rope.dimension_count": 16}
    values = random_values(llama_shapes())
    divisors = llama3_divisors(500000.0, 16, factor, 1.0, 4.0, original)
    scaling = open_checkpoint(_with_divisors(tmp_path / "a.gguf", metadata, values, divisors)).config["rope_scaling"]
    assert scaling == {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                       "original_max_position_embeddings": original}
    other = np.linspace(1, 3, 8).astype(np.float32)
    carried = open_checkpoint(_with_divisors(tmp_path / "b.gguf", metadata, values, other)).config["rope_scaling"]
    assert carried["rope_type"] == "longrope" and np.allclose(carried["long_factor"], other)


def _with_divisors(path: Path, metadata: dict[str, Any], values: dict[str, np.ndarray], divisors: np.ndarray) -> Path:
    return write_floats(path, metadata, {**values, "rope_freqs.weight": divisors})


@pytest.mark.parametrize(("changes", "expected"), [
    ({"rope__scaling__type": "linear", "rope__scaling__factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0, "rope__scaling__original_context_length": 32},
     {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}),
])
def test_other_rope_scalings(tmp_path: Path, changes: dict[str, Any], expected: dict[str, Any]) -> None:
    source = write_floats(tmp_path / "tiny.gguf", metadata_of("llama", **changes), random_values(llama_shapes()))
    assert open_checkpoint(source).config["rope_scaling"] == expected


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen(tmp_path: Path, architecture: str) -> None:
    shapes = llama_shapes()
    for layer in range(2):
        if architecture == "qwen2":
            shapes |= {f"blk.{layer}.attn_{part}.bias": (rows,) for part, rows in (("q", 64), ("k", 32), ("v", 32))}
        else:
            shapes |= {f"blk.{layer}.attn_q_norm.weight": (16,), f"blk.{layer}.attn_k_norm.weight": (16,)}
    values = random_values(shapes)
    source = write_floats(tmp_path / "tiny.gguf", metadata_of(architecture), values)
    convert(source, tmp_path / "out", "q0f16")
    cache = TensorCache.open(tmp_path / "out")
    fused = cache["model.layers.0.self_attn.c_attn.weight"]
    np.testing.assert_array_equal(fused[:64], values["blk.0.attn_q.weight"])
    assert cache.config.model_type == architecture


def split(tmp_path: Path, total: int | None = None) -> Path:
    values = random_values(llama_shapes())
    names = list(values)
    half = len(names) // 2
    first = {**LLAMA, "split.no": 0, "split.count": 2, "split.tensors.count": len(names) if total is None else total}
    for number, metadata, part in ((1, first, names[:half]), (2, {"split.no": 1, "split.count": 2}, names[half:])):
        write_floats(tmp_path / f"m-{number:05}-of-00002.gguf", metadata, {name: values[name] for name in part})
    write_floats(tmp_path / "whole.gguf", LLAMA, values)
    return tmp_path / "m-00001-of-00002.gguf"


def test_split_files(tmp_path: Path) -> None:
    first = split(tmp_path)
    for part in (first, tmp_path / "m-00002-of-00002.gguf"):
        convert(part, tmp_path / f"out-{part.stem}", "q4f16_1")
        convert(tmp_path / "whole.gguf", tmp_path / "out-whole", "q4f16_1", force=True)
        same_bytes(tmp_path / f"out-{part.stem}", tmp_path / "out-whole")


def test_split_files_that_do_not_belong_together(tmp_path: Path) -> None:
    first = split(tmp_path, total=99)
    with pytest.raises(CheckpointError, match="another number of tensors"):
        open_checkpoint(first)
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match="part of the split file is missing"):
        open_checkpoint(first)
    (tmp_path / "whole.gguf").rename(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(CheckpointError, match="not the part its name says"):
        open_checkpoint(first)


@pytest.mark.parametrize(("metadata", "error", "message"), [
    ({**LLAMA, "general.architecture": "mamba"}, UnsupportedError, "architecture that is not known"),
    ({**LLAMA, "general.architecture": 7}, CheckpointError, "general.architecture"),
    (metadata_of("llama", expert_count=8), UnsupportedError, "expert_count"),
    (metadata_of("llama", rope__scaling__type="magic"), UnsupportedError, "rope scaling"),
    (metadata_of("llama", block_count=None), CheckpointError, "block_count"),
    (metadata_of("llama", block_count="two"), CheckpointError, "makes no sense"),
    (metadata_of("llama", block_count=3), CheckpointError, "missing"),
    (metadata_of("llama", feed_forward_length=128), CheckpointError, "another shape"),
])
def test_metadata_that_lie(tmp_path: Path, metadata: dict[str, Any], error: type[Error], message: str) -> None:
    source = write_floats(tmp_path / "tiny.gguf", metadata, random_values(llama_shapes()))
    with pytest.raises(error, match=message):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_nobody_knows(tmp_path: Path) -> None:
    values = {**random_values(llama_shapes()), "blk.0.attn_magic.weight": np.zeros((4, 4), np.float16)}
    with pytest.raises(UnsupportedError, match="no place for a tensor"):
        convert(write_floats(tmp_path / "tiny.gguf", LLAMA, values), tmp_path / "out")


def test_integers_are_no_weights(tmp_path: Path) -> None:
    values = random_values(llama_shapes())
    tensors = {name: ("F16", array.shape, array) for name, array in values.items()}
    tensors["blk.0.attn_norm.weight"] = ("I16", (HIDDEN,), np.zeros(HIDDEN, np.int16))
    with pytest.raises(UnsupportedError, match="dtype that weights cannot have"):
        convert(write(tmp_path / "tiny.gguf", LLAMA, tensors), tmp_path / "out")


def test_files_beside_the_gguf_file_are_not_its_own(tmp_path: Path) -> None:
    source = write_floats(tmp_path / "tiny.gguf", LLAMA, random_values(llama_shapes()))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "special_tokens_map.json").write_text("{}")
    report = convert(source, tmp_path / "out", "q0f16")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
    assert not (tmp_path / "out" / "special_tokens_map.json").exists()
    assert any("no tokenizer.json" in warning for warning in report.warnings)


def test_the_tokenizer_and_its_template_come_along(tmp_path: Path) -> None:
    metadata = {**LLAMA, **bpe_metadata("qwen2")}
    size = len(metadata["tokenizer.ggml.tokens"])
    shapes = {name: (size, shape[1]) if shape[0] == VOCAB else shape for name, shape in llama_shapes().items()}
    report = convert(write_floats(tmp_path / "tiny.gguf", metadata, random_values(shapes)), tmp_path / "out", "q0f16")
    assert not [warning for warning in report.warnings if "tokenizer" in warning]
    chat = json.loads((tmp_path / "out" / "mlc-chat-config.json").read_text())
    assert chat["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert chat["tokenizer_info"]["token_postproc_method"] == "byte_level"
