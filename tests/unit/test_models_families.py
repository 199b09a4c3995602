"""What families ask of a conversion beyond stacking, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checkpoints_for_tests import random_tensors, write_checkpoint

from kumquant import LLM, SamplingParams, TensorCache
from kumquant.convert import convert, stream
from kumquant.errors import CheckpointError, UnsupportedError
from kumquant.models import FAMILIES, describe, family_of, load_model_config

CASES = Path(__file__).parents[2].parent / "shared" / "conformance" / "cases"
LLAMA_LIKE: dict[str, Any] = {
    "vocab_size": 61, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 61, "n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "gpt_neox": {**LLAMA_LIKE, "num_key_value_heads": 4, "layer_norm_eps": 1e-5, "rotary_pct": 0.34},
    "internlm2": {**LLAMA_LIKE, "bias": False},
    "mixtral": {**LLAMA_LIKE, "num_local_experts": 3, "num_experts_per_tok": 2},
    "gemma": {**LLAMA_LIKE, "head_dim": 6},
    "cohere": {**LLAMA_LIKE, "layer_norm_eps": 1e-5},
    "chatglm": {"num_layers": 2, "padded_vocab_size": 61, "hidden_size": 24, "ffn_hidden_size": 40, "kv_channels": 8,
                "num_attention_heads": 3, "seq_length": 64, "layernorm_epsilon": 1e-5, "add_qkv_bias": True},
}


def tensors_of(config: dict[str, Any], dtype: Any = np.float16, model_type: str | None = None) -> dict[str, np.ndarray]:
    family = family_of(config, model_type)
    shapes = {name: shape for tensor in family.plan(family.config(config))
              for name, shape in zip(tensor.sources, tensor.source_shapes, strict=True)}
    return random_tensors(dict(sorted(shapes.items())), dtype)


def checkpoint_of(folder: Path, model_type: str, dtype: Any = np.float16, **keys: Any) -> Path:
    config = {"model_type": model_type, **CONFIGS.get(model_type, LLAMA_LIKE), **keys}
    return write_checkpoint(folder, tensors_of(config, dtype), config)


def shards(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("params_*")))


@pytest.mark.parametrize("mode", ["q0f16", "q4f16_1", "q4f16_0"])
@pytest.mark.parametrize("model_type", ["gpt2", "gpt_neox", "internlm2", "mixtral", "gemma"])
def test_small_blocks_write_the_same_bytes(tmp_path, monkeypatch, model_type, mode):
    if (model_type, mode) == ("mixtral", "q4f16_0"):
        mode = "q4f16_2"  # experts have no place in the transposed layout
    source = checkpoint_of(tmp_path / "hf", model_type)
    convert(source, tmp_path / "whole", mode)
    monkeypatch.setattr(stream, "BLOCK_BYTES", 100)
    convert(source, tmp_path / "blocks", mode)
    assert shards(tmp_path / "whole") == shards(tmp_path / "blocks")


def test_transposed_sources_and_the_second_embedding_of_gpt2(tmp_path):
    source = checkpoint_of(tmp_path / "hf", "gpt2")
    convert(source, tmp_path / "out", "q0f16")
    weights = tensors_of({"model_type": "gpt2", **CONFIGS["gpt2"]})
    cache = TensorCache.open(tmp_path / "out")
    assert np.array_equal(cache["transformer.h.1.mlp.c_fc.weight"], weights["h.1.mlp.c_fc.weight"].T)
    assert np.array_equal(cache["lm_head.weight"], cache["transformer.wte.weight"])
    names = [record.name for record in cache.manifest.records()]
    assert names.index("lm_head.weight") + 1 == names.index("transformer.wte.weight")


def test_rows_of_gpt_neox_and_internlm2(tmp_path):
    convert(checkpoint_of(tmp_path / "neox", "gpt_neox"), tmp_path / "out", "q0f16")
    weights = tensors_of({"model_type": "gpt_neox", **CONFIGS["gpt_neox"]})
    name = "gpt_neox.layers.0.attention.query_key_value."
    for part in ("weight", "bias"):
        heads = weights[name + part].reshape(4, 3, 6, -1)  # (head, [q, k, v], head_dim, …)
        expected = heads.transpose(1, 0, 2, 3).reshape(weights[name + part].shape)
        assert np.array_equal(TensorCache.open(tmp_path / "out")[name + part], expected)
    convert(checkpoint_of(tmp_path / "lm2", "internlm2"), tmp_path / "out2", "q0f16")
    weights = tensors_of({"model_type": "internlm2", **CONFIGS["internlm2"]})
    name = "model.layers.1.attention.wqkv.weight"
    groups = weights[name].reshape(2, 4, 6, 24)  # (kv head, [q, q, k, v], head_dim, hidden)
    parts = groups[:, :2].reshape(24, 24), groups[:, 2].reshape(12, 24), groups[:, 3].reshape(12, 24)
    expected = np.concatenate(parts)
    assert np.array_equal(TensorCache.open(tmp_path / "out2")[name], expected)


def test_mlp_biases_of_gpt_neox_are_float32_in_every_mode(tmp_path):
    convert(checkpoint_of(tmp_path / "hf", "gpt_neox"), tmp_path / "out", "q4f16_1")
    cache = TensorCache.open(tmp_path / "out")
    dtypes = {name: cache.record(name).dtype for name in cache if name.endswith(".bias")}
    assert {name for name, dtype in dtypes.items() if dtype == "float32"} == {
        f"gpt_neox.layers.{layer}.mlp.{part}.bias" for layer in (0, 1) for part in ("dense_h_to_4h", "dense_4h_to_h")}
    convert(tmp_path / "hf", tmp_path / "plain", "q0f16")
    for mode in ("q4f16_1", "q0f16"):
        found = describe(TensorCache.open(tmp_path / {"q4f16_1": "out", "q0f16": "plain"}[mode]).manifest)
        assert (found.family, found.quantization) == ("gpt_neox", mode)
    assert cache.manifest.has_twin and (tmp_path / "out" / "tensor-cache-b16.json").is_file()


def test_norms_of_gemma_are_plus_one_in_the_checkpoints_dtype(tmp_path):
    source = checkpoint_of(tmp_path / "hf", "gemma", ml_dtypes.bfloat16)
    convert(source, tmp_path / "out", "q0f16")
    weight = tensors_of({"model_type": "gemma", **CONFIGS["gemma"]}, ml_dtypes.bfloat16)["model.norm.weight"]
    rounded = (weight.astype(np.float32) + 1).astype(ml_dtypes.bfloat16)
    stored = TensorCache.open(tmp_path / "out")["model.norm.weight"]
    assert np.array_equal(stored, rounded.astype(np.float16))
    assert not np.array_equal(stored, (weight.astype(np.float32) + 1).astype(np.float16))


def test_experts_are_stacked_on_a_new_axis(tmp_path):
    convert(checkpoint_of(tmp_path / "hf", "mixtral"), tmp_path / "out", "q0f16")
    weights = tensors_of({"model_type": "mixtral", **CONFIGS["mixtral"]})
    experts = [np.concatenate([weights[f"model.layers.0.block_sparse_moe.experts.{e}.{part}.weight"]
                               for part in ("w1", "w3")]) for e in range(3)]
    assert np.array_equal(TensorCache.open(tmp_path / "out")["model.layers.0.moe.e1_e3.weight"], np.stack(experts))


def test_experts_have_no_place_in_a_transposed_mode(tmp_path):
    with pytest.raises(UnsupportedError, match="experts"):
        convert(checkpoint_of(tmp_path / "hf", "mixtral"), tmp_path / "out", "q4f16_0")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not CASES.is_dir(), reason="skipped: no ../shared/conformance")
def test_gpt2_with_a_prefix_is_the_same_model(tmp_path):
    source = CASES / "gpt2_f32" / "hf"
    shutil.copytree(source, tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    path.chmod(0o644)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps({key if key.startswith("__") else f"transformer.{key}": value
                       for key, value in header.items()}).encode()
    path.unlink()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    convert(tmp_path / "hf", tmp_path / "out", "q4f16_1", compat=True)
    for name in ("params_shard_0.bin", "tensor-cache.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source.parent / "cache-q4f16_1" / name).read_bytes()


def test_a_spare_head_must_be_the_embedding(tmp_path):
    config = {"model_type": "llama", **LLAMA_LIKE, "tie_word_embeddings": True}
    tensors = tensors_of(config)
    copy = {"lm_head.weight": tensors["model.embed_tokens.weight"], **tensors}
    convert(write_checkpoint(tmp_path / "copy", copy, config), tmp_path / "out", "q0f16")
    assert "lm_head.weight" not in TensorCache.open(tmp_path / "out")
    other = {"lm_head.weight": tensors["model.embed_tokens.weight"] + np.float16(0.5), **tensors}
    source = write_checkpoint(tmp_path / "other", other, config)
    with pytest.raises(CheckpointError, match=r"(?s)lm_head\.weight is not the embedding.*--compat"):
        convert(source, tmp_path / "refused", "q0f16")
    convert(source, tmp_path / "dropped", "q0f16", compat=True)
    assert shards(tmp_path / "dropped") == shards(tmp_path / "out")


@pytest.mark.parametrize("model_type", ["gemma", "cohere"])
def test_a_family_without_a_head_refuses_one_that_is_trained(tmp_path, model_type):
    config = {"model_type": model_type, **CONFIGS[model_type]}
    tensors = tensors_of(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 2
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not the embedding"):
        convert(write_checkpoint(tmp_path / "hf", tensors, config), tmp_path / "out", "q0f16")


def test_a_head_of_its_own_that_the_format_would_lose(tmp_path):
    source = checkpoint_of(tmp_path / "hf", "starcoder2", norm_epsilon=1e-5, tie_word_embeddings=False)
    with pytest.raises(UnsupportedError, match="compat"):
        convert(source, tmp_path / "out", "q0f16", compat=True)
    convert(source, tmp_path / "out", "q0f16")
    cache = TensorCache.open(tmp_path / "out")
    assert not np.array_equal(cache["lm_head.weight"], cache["model.embed_tokens.weight"])


@pytest.mark.parametrize("model_type, name", [
    ("gemma", "model.layers.0.self_attn.q_norm.weight"), ("gpt2", "h.0.crossattention.c_attn.weight"),
    ("cohere", "model.layers.0.self_attn.q_norm.weight"), ("mixtral", "model.layers.0.mlp.gate_proj.weight"),
    ("gpt_neox", "gpt_neox.layers.0.attention.rope.weight"), ("internlm2", "v_head.weight"),
])
def test_a_tensor_without_a_place_is_refused_by_name(tmp_path, model_type, name):
    config = {"model_type": model_type, **CONFIGS[model_type]}
    source = write_checkpoint(tmp_path / "hf", tensors_of(config) | {name: np.zeros(3, np.float16)}, config)
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        convert(source, tmp_path / "out", "q0f16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("model_type, name", [
    ("gpt2", "h.0.attn.bias"), ("gpt2", "h.1.attn.masked_bias"),
    ("gpt_neox", "gpt_neox.layers.0.attention.masked_bias"),
    ("mixtral", "model.layers.0.self_attn.rotary_emb.inv_freq"),
])
def test_tables_that_can_be_computed_are_passed_over(tmp_path, model_type, name):
    config = {"model_type": model_type, **CONFIGS[model_type]}
    source = write_checkpoint(tmp_path / "hf", tensors_of(config) | {name: np.zeros(3, np.float16)}, config)
    convert(source, tmp_path / "out", "q0f16")
    assert TensorCache.open(tmp_path / "out").spec.model_type == model_type


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"activation_function": "quick_gelu"}, "unknown activation"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ("gpt_bigcode", {"n_embd": 24, "n_layer": 1, "n_head": 4, "n_positions": 9, "multi_query": False}, "multi_query"),
    ("qwen2_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [0],
                   "shared_expert_intermediate_size": 8}, "mlp_only_layers"),
    ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                   "decoder_sparse_step": 2}, "decoder_sparse_step"),
    ("phi", {"layer_norm_eps": 1e-5, "qk_layernorm": True}, "qk_layernorm"),
    ("phi", {"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.2}, "partial_rotary_factor"),
    ("stablelm", {"use_parallel_residual": True}, "use_parallel_residual"),
    ("cohere", {"use_qk_norm": True}, "use_qk_norm"),
    ("gemma2", {"head_dim": 6, "use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("gemma3_text", {"head_dim": 6, "layer_types": ["chunked_attention"] * 2}, "layer_types"),
    ("chatglm", {"num_layers": 1, "padded_vocab_size": 61, "ffn_hidden_size": 8, "kv_channels": 8, "seq_length": 9,
                 "rmsnorm": False}, "rmsnorm"),
    ("qwen", {"kv_channels": 6, "seq_length": 9, "rotary_pct": 0.5}, "rotary_pct"),
    ("orion", {"attention_bias": True}, "attention_bias"),
    ("smollm3", {"use_sliding_window": True}, "use_sliding_window"),
    ("minicpm", {"rope_scaling": {"rope_type": "xpos"}}, "unknown rope type"),
]


@pytest.mark.parametrize("model_type, keys, word", REFUSED, ids=[f"{name}-{word}" for name, _, word in REFUSED])
def test_a_feature_that_the_family_does_not_describe_is_refused(model_type, keys, word):
    with pytest.raises(UnsupportedError, match=word):
        FAMILIES[model_type].config({"model_type": model_type, **CONFIGS.get(model_type, LLAMA_LIKE), **keys})


@pytest.mark.parametrize("model_type, keys, word", [
    ("mixtral", {"num_experts_per_tok": 4}, "more experts than there are"),
    ("smollm3", {"no_rope_layers": [1]}, "no_rope_layers"), ("gpt2", {"n_head": None}, "num_attention_heads"),
    ("gemma3", {"text_config": 3}, "text_config"),
])
def test_contradictions_are_refused_by_name(model_type, keys, word):
    with pytest.raises(CheckpointError, match=word):
        FAMILIES[model_type].config({"model_type": model_type, **CONFIGS.get(model_type, LLAMA_LIKE), **keys})


@pytest.mark.parametrize("model_type, keys, word", [
    ("baichuan", {"num_key_value_heads": 4, "z_loss_weight": 0}, "normalized head"),
    ("internlm2", {"bias": True}, "order"),
])
def test_what_converts_and_does_not_run_says_so(tmp_path, model_type, keys, word):
    convert(checkpoint_of(tmp_path / "hf", model_type, **keys), tmp_path / "out", "q4f16_1")
    cache = TensorCache.open(tmp_path / "out")
    assert cache.verify().tensors and cache.dequantize(cache.plan[0].name).size
    with pytest.raises(UnsupportedError, match=word):
        cache.spec  # noqa: B018


def test_the_family_may_be_said(tmp_path):
    config = {"model_type": "qwen3", **LLAMA_LIKE, "head_dim": 8, "tie_word_embeddings": True}
    tensors = {name.removeprefix("model."): value for name, value in tensors_of(config).items()}
    source = write_checkpoint(tmp_path / "hf", tensors, config)
    with pytest.raises(CheckpointError, match="missing"):
        convert(source, tmp_path / "out", "q0f16")
    report = convert(source, tmp_path / "out", "q0f16", model_type="qwen3-embedding")
    assert report.model_type == "qwen3-embedding"
    cache = TensorCache.open(tmp_path / "out")
    assert cache.family.model_type == "qwen3-embedding" and "model.embed_tokens.weight" in cache
    chat = json.loads((tmp_path / "out" / "mlc-chat-config.json").read_text())
    assert chat["embedding_metadata"] == {"model_type": "decoder", "pooling_strategy": "last", "normalize": True}
    with pytest.raises(UnsupportedError, match="MLC-LLM has this model family"):
        convert(source, tmp_path / "other", "q0f16", model_type="rwkv6")


@pytest.mark.skipif(not CASES.is_dir(), reason="skipped: no ../shared/conformance")
@pytest.mark.parametrize("model_type", ["rwkv5", "deepseek_v3", "something"])
def test_a_cache_of_a_family_that_does_not_run_opens_and_decodes(tmp_path, model_type):
    folder = Path(shutil.copytree(CASES / "llama_f16_aligned" / "cache-q4f16_1", tmp_path / "cache"))
    known = TensorCache.open(folder, quantization="q4f16_1")
    expected = known.dequantize("model.norm"), known.dequantize("model.layers.0.mlp.down_proj")
    (folder / "mlc-chat-config.json").write_text(json.dumps(
        {"model_type": model_type, "quantization": "q4f16_1", "model_config": {}}))
    cache = TensorCache.open(folder)
    cache.verify()
    for name, values in zip(("model.norm", "model.layers.0.mlp.down_proj"), expected, strict=True):
        assert np.array_equal(cache.dequantize(name), values)
    with pytest.raises(UnsupportedError, match=rf"(?s){model_type}.*gemma2.*olmo2"):
        cache.spec  # noqa: B018


@pytest.mark.parametrize("model_type, keys, ours, mlcs", [
    ("gemma2", {"head_dim": 6, "sliding_window": 16}, (16, -1, -1), (16, -1, -1)),
    ("gemma3_text", {"head_dim": 6, "sliding_window": 16}, (64, -1, -1), (8192, 16, -1)),
    ("mixtral", {"sliding_window": 16}, (64, -1, -1), (64, -1, -1)),
    ("mistral", {"sliding_window": 16}, (-1, 16, 4), (-1, 16, 4)),
    ("ministral3", {"sliding_window": None}, (64, -1, 0), (64, -1, 0)),
])
def test_windows_in_mlcs_file(tmp_path, model_type, keys, ours, mlcs):
    source = checkpoint_of(tmp_path / "hf", model_type, **keys)
    for compat, expected in ((False, ours), (True, mlcs)):
        if compat and model_type == "mistral":
            continue  # needs a head
        convert(source, tmp_path / f"{compat}", "q0f16", compat=compat)
        chat = json.loads((tmp_path / f"{compat}" / "mlc-chat-config.json").read_text())
        sizes = tuple(chat[key] for key in ("context_window_size", "sliding_window_size", "attention_sink_size"))
        assert sizes == expected


def test_a_scale_that_mlcs_file_cannot_say_is_refused_without_config_json(tmp_path):
    convert(checkpoint_of(tmp_path / "hf", "cohere", logit_scale=0.8), tmp_path / "out", "q0f16")
    assert load_model_config(tmp_path / "out")[0].spec(TensorCache.open(tmp_path / "out").config).logit_scale == 0.8
    (tmp_path / "out" / "config.json").unlink()
    assert load_model_config(tmp_path / "out")[1].keys.number("logit_scale") == 0.8
    path = tmp_path / "out" / "mlc-chat-config.json"
    chat = json.loads(path.read_text())
    del chat["model_config"]["logit_scale"]  # as MLC writes it
    path.write_text(json.dumps(chat))
    with pytest.raises(UnsupportedError, match="logit_scale"):
        load_model_config(tmp_path / "out")


@pytest.mark.parametrize(("length", "is_told"), [(8192, True), (32768, False)])
def test_mlcs_file_of_a_long_chatglm_does_not_tell_its_rope(tmp_path, length, is_told):
    """The 32k models turn fifty times slower. Our own file says it."""
    source = checkpoint_of(tmp_path / "hf", "chatglm", seq_length=length, rope_ratio=50)
    convert(source, tmp_path / "out", "q0f16")
    (tmp_path / "out" / "config.json").unlink()
    assert load_model_config(tmp_path / "out")[1].rope.theta == 500000
    path = tmp_path / "out" / "mlc-chat-config.json"
    chat = json.loads(path.read_text())
    del chat["model_config"]["rope_ratio"]  # as MLC writes it
    path.write_text(json.dumps(chat))
    if is_told:
        assert load_model_config(tmp_path / "out")[1].rope.theta == 10000
    else:
        with pytest.raises(UnsupportedError, match="rope_ratio"):
            load_model_config(tmp_path / "out")


@pytest.mark.parametrize("mode", ["q0f32", "q4f16_0", "q3f16_1"])
def test_a_model_with_learned_positions_ends_where_its_table_ends(tmp_path, mode):
    convert(checkpoint_of(tmp_path / "hf", "gpt2"), tmp_path / "out", mode)
    prompt = list(range(1, 26))
    with LLM(tmp_path / "out", threads=1) as llm:
        result = llm.generate([prompt], SamplingParams(max_tokens=50, temperature=0, ignore_eos=True))[0]
        assert result.finish_reason == "length" and 0 < len(result.token_ids) <= 32 - len(prompt) + 1
        logits = llm.logits(prompt + list(result.token_ids)[:-1], activations="int8")
    assert result.token_ids == [int(row.argmax()) for row in logits[len(prompt) - 1 :]]
