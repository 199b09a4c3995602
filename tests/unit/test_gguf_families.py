"""Architectures whose GGUF files differ in more than names: gemma2 and gemma3, phi3, gpt2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_architectures_for_tests import GPT2, HEAD_DIM, gemma_shapes, gpt2_shapes, phi3_shapes
from gguf_for_tests import (
    FFN,
    HIDDEN,
    LLAMA,
    llama_shapes,
    metadata_of,
    random_q4_0,
    random_values,
    write,
    write_floats,
)

from kumquant import LLM, TensorCache, convert
from kumquant.checkpoint import open_checkpoint
from kumquant.errors import CheckpointError, UnsupportedError


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_gemma_norms_are_stored_with_one_added_in_both_formats(tmp_path: Path, architecture: str) -> None:
    values = random_values(gemma_shapes(architecture))
    metadata = metadata_of(architecture, attention__key_length=HEAD_DIM, attention__value_length=HEAD_DIM,
                           attention__sliding_window=32)
    source = write_floats(tmp_path / "tiny.gguf", metadata, values)
    convert(source, tmp_path / "out", "q0f16")
    cache = TensorCache.open(tmp_path / "out")
    prefix = "language_model." if architecture == "gemma3" else ""
    np.testing.assert_array_equal(cache[f"{prefix}model.layers.1.input_layernorm.weight"],
                                  values["blk.1.attn_norm.weight"])
    np.testing.assert_array_equal(cache[f"{prefix}model.layers.0.post_feedforward_layernorm.weight"],
                                  values["blk.0.post_ffw_norm.weight"])
    spec = cache.spec
    assert spec.activation == "gelu_tanh" and spec.attention_scale == HEAD_DIM**-0.5
    assert spec.attention_cap == (50.0 if architecture == "gemma2" else 0.0)
    assert 32 in spec.sliding_window


def test_phi3_is_fused_already_and_brings_two_sets_of_divisors(tmp_path: Path) -> None:
    values = random_values(phi3_shapes())
    metadata = metadata_of("phi3", rope__scaling__original_context_length=64, rope__scaling__attn_factor=1.25)
    source = write_floats(tmp_path / "tiny.gguf", metadata, values)
    scaling = open_checkpoint(source).config["rope_scaling"]
    assert (scaling["rope_type"], scaling["attention_factor"]) == ("longrope", 1.25)
    assert scaling["original_max_position_embeddings"] == 64
    np.testing.assert_allclose(scaling["short_factor"], values["rope_factors_short.weight"].astype(np.float32))
    np.testing.assert_allclose(scaling["long_factor"], values["rope_factors_long.weight"].astype(np.float32))
    convert(source, tmp_path / "out", "q0f16")
    cache = TensorCache.open(tmp_path / "out")
    np.testing.assert_array_equal(cache["transformer.h.1.mlp.gate_up_proj.weight"], values["blk.1.ffn_up.weight"])


def test_gpt2_matrices_are_as_the_cache_wants_them(tmp_path: Path) -> None:
    values = random_values(gpt2_shapes())
    convert(write_floats(tmp_path / "tiny.gguf", GPT2, values), tmp_path / "out", "q0f16")
    cache = TensorCache.open(tmp_path / "out")
    np.testing.assert_array_equal(cache["transformer.h.1.attn.c_attn.weight"], values["blk.1.attn_qkv.weight"])
    np.testing.assert_array_equal(cache["transformer.h.0.mlp.c_proj.bias"], values["blk.0.ffn_down.bias"])
    assert open_checkpoint(tmp_path / "tiny.gguf").tensors["h.0.mlp.c_fc.weight"].shape == (HIDDEN, FFN)


def test_gpt2_keeps_the_codes_of_its_transposed_matrices(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = random_values(gpt2_shapes())
    tensors = {name: ("F32", array.shape, array.astype(np.float32)) if array.ndim == 1
               else ("Q4_0", array.shape, random_q4_0(array.shape, rng)) for name, array in values.items()}
    tensors["position_embd.weight"] = ("F32", (128, HIDDEN), values["position_embd.weight"].astype(np.float32))
    report = convert(write(tmp_path / "tiny.gguf", GPT2, tensors), tmp_path / "out", "q4f16_1")
    routes = {use.route: use.tensors for use in report.routes}
    assert routes["Q4_0: codes kept"] == 8 + 2  # the embedding is the head too
    groups = tensors["blk.1.ffn_down.weight"][2].reshape(-1, 18)
    codes = np.concatenate([groups[:, 2:] & 15, groups[:, 2:] >> 4], axis=1).astype(np.float32) - 8
    expected = (groups[:, :2].copy().view(np.float16).astype(np.float32) * codes).reshape(HIDDEN, FFN)
    found = TensorCache.open(tmp_path / "out").dequantize("transformer.h.1.mlp.c_proj.weight")
    np.testing.assert_array_equal(found, expected)


def config_of(tmp_path: Path, metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    return open_checkpoint(write_floats(tmp_path / "some.gguf", metadata, random_values(shapes))).config


def test_which_layers_have_a_window_is_read_not_believed(tmp_path: Path) -> None:
    """A period, a list, or none at all: then the family's own, as llama.cpp has it."""
    def kinds(architecture: str, **keys: Any) -> str:
        metadata = metadata_of(architecture, attention__key_length=HEAD_DIM, attention__value_length=HEAD_DIM, **keys)
        return "".join(kind[0] for kind in config_of(tmp_path, metadata, gemma_shapes(architecture))["layer_types"])

    assert kinds("gemma2") == "sf"
    assert kinds("gemma3", attention__sliding_window=32) == "ss"
    assert kinds("gemma3", attention__sliding_window=32, attention__sliding_window_pattern=1) == "ff"
    assert kinds("gemma3", attention__sliding_window=32, attention__sliding_window_pattern=[False, True]) == "fs"
    assert kinds("gemma3") == kinds("gemma3", attention__sliding_window=0) == "ff"
    metadata = metadata_of("gemma3", attention__key_length=HEAD_DIM, attention__value_length=HEAD_DIM)
    convert(write_floats(tmp_path / "g.gguf", metadata, random_values(gemma_shapes("gemma3"))), tmp_path / "g", "q0f16")
    assert LLM(tmp_path / "g").logits([1, 2, 3]).shape == (3, 48)  # a second rope that no layer has is none
    with pytest.raises(CheckpointError, match="sliding_window_pattern"):
        kinds("gemma3", attention__sliding_window=32, attention__sliding_window_pattern=[True])


@pytest.mark.parametrize(("keys", "expected"), [
    ({"rope.scaling.factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 2.0}, None),
    ({"rope.scaling.factor": 0.0}, None),
])
def test_linear_scaling_needs_no_type(tmp_path: Path, keys: dict[str, Any], expected: dict[str, Any] | None) -> None:
    metadata = LLAMA | {f"llama.{key}": value for key, value in keys.items()}
    assert config_of(tmp_path, metadata, llama_shapes())["rope_scaling"] == expected


def test_factors_on_cosines_and_divisors_are_carried_along(tmp_path: Path) -> None:
    scaled = LLAMA | {"llama.rope.scaling.attn_factor": 1.5, "llama.rope.scaling.factor": 2.0}
    scaling = config_of(tmp_path, scaled, llama_shapes())["rope_scaling"]
    assert (scaling["rope_type"], scaling["attention_factor"]) == ("longrope", 1.5)
    assert scaling["short_factor"] == scaling["long_factor"] == [2.0] * (HEAD_DIM // 2)
    yarn = LLAMA | {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
                    "llama.rope.scaling.attn_factor": 1.5}
    scaling = config_of(tmp_path, yarn, llama_shapes())["rope_scaling"]
    assert scaling["attention_factor"] == pytest.approx(1.5 * (0.1 * np.log(4.0) + 1.0))
    with pytest.raises(UnsupportedError, match="mixture of YaRN"):
        config_of(tmp_path, yarn | {"llama.rope.scaling.yarn_ext_factor": 0.5}, llama_shapes())
