"""Architectures whose GGUF files differ in more than names: gemma2 and gemma3, phi3, gpt2."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf_for_tests import FFN, HIDDEN, VOCAB, metadata_of, random_q4_0, random_values, write, write_floats

from kumquant import TensorCache, convert
from kumquant.checkpoint import open_checkpoint

HEAD_DIM = 16


def gemma_shapes(architecture: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(2):
        block = f"blk.{layer}."
        shapes |= {f"{block}{name}.weight": (HIDDEN,) for name in
                   ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm")}
        shapes |= {f"{block}attn_q.weight": (HIDDEN, HIDDEN), f"{block}attn_k.weight": (32, HIDDEN),
                   f"{block}attn_v.weight": (32, HIDDEN), f"{block}attn_output.weight": (HIDDEN, HIDDEN),
                   f"{block}ffn_gate.weight": (FFN, HIDDEN), f"{block}ffn_up.weight": (FFN, HIDDEN),
                   f"{block}ffn_down.weight": (HIDDEN, FFN)}
        if architecture == "gemma3":
            shapes |= {f"{block}attn_q_norm.weight": (HEAD_DIM,), f"{block}attn_k_norm.weight": (HEAD_DIM,)}
    return shapes


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
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,), "output.weight": (VOCAB, HIDDEN),
        "rope_factors_short.weight": (HEAD_DIM // 2,), "rope_factors_long.weight": (HEAD_DIM // 2,)}
    for layer in range(2):
        block = f"blk.{layer}."
        shapes |= {f"{block}attn_norm.weight": (HIDDEN,), f"{block}ffn_norm.weight": (HIDDEN,),
                   f"{block}attn_qkv.weight": (HIDDEN + 64, HIDDEN), f"{block}attn_output.weight": (HIDDEN, HIDDEN),
                   f"{block}ffn_up.weight": (2 * FFN, HIDDEN), f"{block}ffn_down.weight": (HIDDEN, FFN)}
    values = random_values(shapes)
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


def gpt2_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN), "position_embd.weight": (128, HIDDEN),
                                          "output_norm.weight": (HIDDEN,), "output_norm.bias": (HIDDEN,)}
    for layer in range(2):
        for name, rows, columns in (("attn_qkv", 3 * HIDDEN, HIDDEN), ("attn_output", HIDDEN, HIDDEN),
                                    ("ffn_up", FFN, HIDDEN), ("ffn_down", HIDDEN, FFN)):
            shapes |= {f"blk.{layer}.{name}.weight": (rows, columns), f"blk.{layer}.{name}.bias": (rows,)}
        shapes |= {f"blk.{layer}.{norm}.{kind}": (HIDDEN,) for norm in ("attn_norm", "ffn_norm")
                   for kind in ("weight", "bias")}
    return shapes


GPT2 = metadata_of("gpt2", attention__layer_norm_rms_epsilon=None, attention__layer_norm_epsilon=1e-5,
                   attention__head_count_kv=None, rope__freq_base=None, rope__dimension_count=None)


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
