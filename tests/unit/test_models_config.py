from __future__ import annotations

import pytest

from kumquant.errors import CheckpointError, Error, UnsupportedError
from kumquant.models import FAMILIES, family_of

LLAMA = {
    "model_type": "llama", "vocab_size": 100, "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
}


def config_of(**keys):
    source = {**LLAMA, **keys}
    return family_of(source).config(source)


def without(key: str) -> dict:
    return {name: value for name, value in LLAMA.items() if name != key}


def test_defaults():
    config = FAMILIES["llama"].config(without("num_key_value_heads"))
    assert config.num_key_value_heads == 4 and config.head_dim == 16
    assert not config.tie_word_embeddings and config.sliding_window == (0, 0, 0)
    assert config.rope.theta == 10000.0 and config.rope.type == "default" and config.hidden_act == "silu"
    assert config_of(head_dim=None, num_key_value_heads=None).head_dim == 16
    assert config_of(head_dim=24).size("q") == 96 and config_of(head_dim=24).size("kv") == 48


@pytest.mark.parametrize("keys, theta, kind", [
    ({"rope_theta": 5e5}, 5e5, "default"),
    ({"rope_theta": 5e5, "rope_scaling": None}, 5e5, "default"),
    ({"rope_parameters": {"rope_theta": 7e5, "rope_type": "default"}}, 7e5, "default"),
    ({"rope_parameters": {"rope_theta": 7e5, "rope_type": "default"}, "rope_theta": 5e5}, 7e5, "default"),
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}, 5e5, "linear"),
    # a rope_scaling replaces rope_parameters altogether, as in Transformers
    ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 7e5}}, 1e4,
     "linear"),
    ({"rope_scaling": {"type": "dynamic", "rope_type": "linear", "factor": 2.0}}, 1e4, "linear"),
    ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 7e5}}, 7e5, "default"),
])
def test_spellings_of_rope_by_transformers_precedence(keys, theta, kind):
    rope = config_of(**keys).rope
    assert (rope.theta, rope.type) == (theta, kind)


def test_original_length_beside_the_object_wins():
    yarn = {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 100}
    assert config_of(rope_scaling=yarn).rope.parameters["original_max_position_embeddings"] == 100
    config = config_of(rope_scaling=yarn, original_max_position_embeddings=200)
    assert config.rope.parameters["original_max_position_embeddings"] == 200
    del yarn["original_max_position_embeddings"]
    assert config_of(rope_scaling=yarn).rope.parameters["original_max_position_embeddings"] == 512


@pytest.mark.parametrize("keys, length", [
    ({}, 512), ({"context_window_size": 300}, 300),
    ({"max_position_embeddings": None, "max_sequence_length": 700}, 700),
    ({"max_position_embeddings": None, "context_window_size": 300}, 300),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 1024),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 256}}, 512),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, 2048),
])
def test_context_length(keys, length):
    assert config_of(**keys).context_length == length


@pytest.mark.parametrize("key", [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "rms_norm_eps",
    "max_position_embeddings",
])
def test_a_missing_key_is_named(key):
    with pytest.raises(CheckpointError, match=rf'here\.json: the key "{key}" is missing'):
        FAMILIES["llama"].config(without(key), "here.json")


@pytest.mark.parametrize("keys, word", [
    ({"hidden_size": 0}, "hidden_size"), ({"hidden_size": -4}, "hidden_size"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": "64"}, "hidden_size"), ({"vocab_size": True}, "vocab_size"),
    ({"vocab_size": 2**40}, "vocab_size"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"), ({"rms_norm_eps": "tiny"}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"), ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    ({"attention_bias": 1}, "attention_bias"), ({"num_key_value_heads": 3}, "divide evenly"),
    ({"num_attention_heads": 6, "num_key_value_heads": 6}, "not a multiple"),
    ({"head_dim": 15}, "head_dim must be even"),
    ({"rope_theta": 0}, "rope_theta"), ({"rope_scaling": "linear"}, "rope_scaling"),
    ({"rope_scaling": {"type": "linear"}}, "factor"),
    ({"rope_scaling": {"type": "yarn", "factor": "2"}}, "factor"),
    ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "low_freq_factor"),
    ({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "short_factor"),
    ({"hidden_act": 3}, "hidden_act"),
])
def test_a_contradiction_is_named(keys, word):
    with pytest.raises(CheckpointError, match=word):
        config_of(**keys)


@pytest.mark.parametrize("keys, word", [
    ({"rope_scaling": {"type": "xpos", "factor": 2.0}}, "unknown rope type"),
    ({"rope_scaling": {"type": "llama3", "factor": 2.0, "low_freq_factor": 4.0, "high_freq_factor": 1.0}},
     "high_freq"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"), ({"hidden_act": "mish"}, "unknown activation"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ({"num_experts": 8}, "num_experts"),
    ({"num_local_experts": 8}, "num_local_experts"), ({"attn_logit_softcapping": 50.0}, "softcapping"),
    ({"embedding_multiplier": 12.0}, "embedding_multiplier"),
    ({"no_rope_layers": [1, 0, 1]}, "no_rope_layers"),
    ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"layer_types": ["linear_attention"] * 3}, "layer_types"), ({"use_qk_norm": True}, "use_qk_norm"),
])
def test_a_computation_that_no_family_has_is_refused_by_name(keys, word):
    with pytest.raises(UnsupportedError, match=word):
        config_of(**keys)


def test_harmless_keys_pass():
    assert config_of(attention_dropout=0.1, pretraining_tp=2, use_cache=False, torch_dtype="bfloat16",
                     dtype="float16",
                     num_experts=0, embedding_multiplier=1.0, layer_types=["full_attention"] * 3,
                     rope_interleaved=False) == config_of(
        attention_dropout=0.1, pretraining_tp=2, use_cache=False, torch_dtype="bfloat16", dtype="float16",
        num_experts=0, embedding_multiplier=1.0, layer_types=["full_attention"] * 3, rope_interleaved=False)


@pytest.mark.parametrize("config, error", [
    ({"model_type": "rwkv5"}, UnsupportedError), ({"model_type": "t5"}, UnsupportedError),
    ({}, CheckpointError), ({"model_type": 3}, CheckpointError),
])
def test_an_unknown_family_lists_the_known_ones(config, error):
    with pytest.raises(error, match="llama, mistral, mixtral"):
        family_of(config)


def test_the_family_may_be_said():
    assert family_of({"model_type": "gpt2"}, "qwen3") is FAMILIES["qwen3"]


@pytest.mark.parametrize("keys, windows", [
    ({"model_type": "mistral"}, (4096,) * 3), ({"model_type": "mistral", "sliding_window": None}, (0,) * 3),
    ({"model_type": "mistral", "sliding_window": 7}, (7,) * 3),
    ({"model_type": "qwen2", "sliding_window": 7}, (0,) * 3),
    ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True}, (0,) * 3),
    ({"model_type": "qwen2", "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
     (0, 7, 7)),
    ({"model_type": "qwen3", "sliding_window": None, "use_sliding_window": True, "max_window_layers": 0},
     (0,) * 3),
    ({"model_type": "qwen3", "sliding_window": 7, "use_sliding_window": True,
      "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}, (7, 0, 7)),
])
def test_sliding_windows(keys, windows):
    assert config_of(**keys).sliding_window == windows


@pytest.mark.parametrize("keys", [
    {"model_type": "qwen2", "layer_types": ["sliding_attention"] * 3},
    {"model_type": "mistral", "sliding_window": 7, "layer_types": ["full_attention"] * 3},
    {"model_type": "qwen2", "max_window_layers": "many"},
])
def test_windows_that_contradict_themselves(keys):
    with pytest.raises(Error, match=r"layer_types|max_window_layers"):
        config_of(**keys)


def test_biases():
    assert (config_of().qkv_bias, config_of().o_bias, config_of().mlp_bias) == (False, False, False)
    config = config_of(attention_bias=True)
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, False)
    qwen2 = config_of(model_type="qwen2", attention_bias=False)
    assert (qwen2.qkv_bias, qwen2.o_bias, qwen2.mlp_bias) == (True, False, False)
    assert not config_of(model_type="mistral", attention_bias=True).qkv_bias


def test_heads():
    llama, mistral = FAMILIES["llama"], FAMILIES["mistral"]
    tied = config_of(tie_word_embeddings=True)
    assert "head" in llama.spec(config_of()).tensors and "head" not in llama.spec(tied).tensors
    tied = config_of(model_type="mistral", tie_word_embeddings=True)
    assert mistral.has_head(tied) and mistral.has_head(tied, {"lm_head.weight"})
    assert mistral.has_head(tied, {"lm_head.q_weight"}) and not mistral.has_head(tied, {"model.norm.weight"})
    assert mistral.has_head(tied, {"model.norm.weight"}, compat=True)


def test_names_that_may_stay_unused_and_those_that_do_not_count():
    name = "model.layers.3.self_attn.rotary_emb.inv_freq"
    for family in (FAMILIES[model_type] for model_type in ("llama", "mistral", "qwen2", "qwen3")):
        assert family.ignored(name) and family.ignored("lm_head.weight")
        assert not family.ignored("model.layers.0.self_attn.q_proj.bias")
        assert family.uncounted(name) == (family.model_type != "qwen3")
        assert not family.uncounted("model.rotary_emb.inv_freq")


def test_a_plan_names_every_tensor_once():
    for model_type, num_per_layer in (("llama", 6), ("mistral", 6), ("qwen2", 7), ("qwen3", 8)):
        plan = FAMILIES[model_type].plan(config_of(model_type=model_type))
        assert len({tensor.name for tensor in plan}) == len(plan) == 3 * num_per_layer + 3
        assert [tensor.name for tensor in plan if tensor.is_head] == ["lm_head.weight"]


@pytest.mark.parametrize(("keys", "word"), [
    ({"num_hidden_layers": 2**31 - 1}, "num_hidden_layers"), ({"num_hidden_layers": 10**30}, "num_hidden_layers"),
    ({"vocab_size": 2**31}, "vocab_size"), ({"hidden_size": 2**31}, "hidden_size"),
    ({"intermediate_size": 2**31}, "intermediate_size"), ({"hidden_size": 2**30, "num_attention_heads": 2}, "head_dim"),
    ({"model_type": "mixtral", "num_local_experts": 2**30, "num_experts_per_tok": 2}, "num_local_experts"),
    ({"rope_theta": 1e308}, "rope_theta"), ({"rope_theta": 1e-300}, "rope_theta"),
    ({"rms_norm_eps": 1e39}, "rms_norm_eps"),
    ({"rope_theta": 10**400}, "rope_theta"), ({"rope_scaling": {"type": "linear", "factor": 1e308}}, "factor"),
    ({"rope_scaling": {"type": "linear", "factor": 1e30}}, "factor"),
    ({"rope_scaling": {"type": "linear", "factor": 1e6}, "max_position_embeddings": 2**30}, "context length"),
])
def test_counts_and_numbers_beyond_any_model_are_refused_at_once(keys, word):
    with pytest.raises(Error, match=word):
        config_of(**keys)
