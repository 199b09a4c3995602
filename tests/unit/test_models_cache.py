"""TensorCache on the reference caches, with the configs that MLC (of any year) would leave beside them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from kumquant import TensorCache
from kumquant.dtypes import DTYPES
from kumquant.errors import CheckpointError, Error, RequestError, TensorCacheError, UnsupportedError
from kumquant.models import load_model_config

CASES = Path(__file__).parents[2].parent / "shared" / "conformance" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="skipped: ../shared/conformance is not there")

LLAMA, QWEN2 = "llama_bf16_padded_sharded", "qwen2_bf16"


def folder_of(tmp_path: Path, case: str = LLAMA, mode: str = "q4f16_1") -> Path:
    return Path(shutil.copytree(CASES / case / f"cache-{mode}", tmp_path / case))


def config_json(case: str = LLAMA) -> dict:
    return json.loads((CASES / case / "hf" / "config.json").read_text())


def chat_config(case: str = LLAMA, mode: str = "q4f16_1", **changes) -> dict:
    """A mlc-chat-config.json as MLC writes it; None removes a key of model_config."""
    source = config_json(case)
    base = "rope_theta" if source["model_type"].startswith("qwen") else "position_embedding_base"
    model_config = {key: source[key] for key in (
        "hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
        "rms_norm_eps", "vocab_size", "tie_word_embeddings")}
    model_config |= {base: 10000, "context_window_size": 256, "tensor_parallel_shards": 1, **changes}
    model_config = {key: value for key, value in model_config.items() if value is not None}
    return {"model_type": source["model_type"], "quantization": mode, "model_config": model_config,
            "vocab_size": source["vocab_size"], "context_window_size": 256, "sliding_window_size": -1}


def write(folder: Path, value: dict, name: str = "mlc-chat-config.json") -> Path:
    (folder / name).write_text(json.dumps(value))
    return folder


def decoded(cache: TensorCache, name: str, group: int = 32) -> np.ndarray:
    """The exact product, one code after another."""
    codes, scales = cache[f"{name}.q_weight"], cache[f"{name}.q_scale"].astype(np.float32)
    rows, num_words = codes.shape
    slots = [(codes >> np.uint32(4 * slot)) & np.uint32(15) for slot in range(8)]
    values = np.stack(slots, axis=-1).reshape(rows, num_words * 8).astype(np.float32) - 7
    return values * np.repeat(scales, group, axis=1)


def test_dequantize_gives_the_exact_product_in_the_logical_shape(tmp_path):
    cache = TensorCache.open(write(folder_of(tmp_path), chat_config()))
    name = "model.layers.0.mlp.down_proj"
    weight = cache.dequantize(f"{name}.weight")
    assert weight.dtype == np.float32 and weight.shape == (72, 116)
    assert np.array_equal(weight, decoded(cache, name)[:, :116])
    assert np.array_equal(cache.dequantize(name), weight)
    norm = cache.dequantize("model.norm.weight")
    assert norm.dtype == np.float32 and np.array_equal(norm, cache["model.norm.weight"].astype(np.float32))


@pytest.mark.parametrize("mode", ["q4f16_1", "q4f32_1", "q4bf16_1"])
def test_the_mode_may_be_given_and_without_a_config_the_width_is_padded(tmp_path, mode):
    cache = TensorCache.open(folder_of(tmp_path, mode=mode), quantization=mode)
    assert cache.scheme.name == mode
    assert cache.dequantize("model.embed_tokens.weight").shape == (211, 96)
    assert np.array_equal(cache.dequantize("model.embed_tokens.weight"), decoded(cache, "model.embed_tokens"))


def test_config_json_alone_gives_the_width(tmp_path):
    cache = TensorCache.open(write(folder_of(tmp_path), config_json(), "config.json"), quantization="q4f16_1")
    assert cache.dequantize("model.embed_tokens.weight").shape == (211, 72)
    assert cache.spec.hidden_size == 72


def test_without_a_mode_dequantize_refuses_and_says_so(tmp_path):
    cache = TensorCache.open(folder_of(tmp_path))
    with pytest.raises(RequestError, match=r'(?s)mode is not known.*quantization="q4f16_1"'):
        cache.dequantize("model.embed_tokens.weight")
    assert cache.dequantize("model.norm.weight").shape == (72,)
    with pytest.raises(CheckpointError, match=r"neither config\.json nor mlc-chat-config\.json"):
        cache.spec  # noqa: B018


def test_plain_modes(tmp_path):
    cache = TensorCache.open(write(folder_of(tmp_path, mode="q0bf16"), chat_config(mode="q0bf16")))
    assert cache["model.embed_tokens.weight"].dtype == DTYPES["bfloat16"]
    weight = cache.dequantize("model.embed_tokens.weight")
    assert weight.dtype == np.float32 and weight.shape == (211, 72) and cache.spec.num_layers == 2


@pytest.mark.parametrize("name", ["model.embed_tokens.q_weight", "model.embed_tokens.q_scale"])
def test_half_a_parameter_is_not_one(tmp_path, name):
    cache = TensorCache.open(write(folder_of(tmp_path), chat_config()))
    with pytest.raises(Error, match="embed_tokens"):
        cache.dequantize(name)


def test_an_unknown_name(tmp_path):
    cache = TensorCache.open(write(folder_of(tmp_path), chat_config()))
    with pytest.raises(TensorCacheError, match="no such parameter"):
        cache.dequantize("model.layers.9.mlp.down_proj.weight")
    with pytest.raises(KeyError):
        cache["nothing"]


def test_an_unknown_mode():
    with pytest.raises(UnsupportedError, match="q9f16_1"):
        TensorCache.open(CASES / LLAMA / "cache-q4f16_1", quantization="q9f16_1")


def test_a_mode_that_the_scales_contradict(tmp_path):
    cache = TensorCache.open(folder_of(tmp_path), quantization="q4f32_1")
    with pytest.raises(TensorCacheError,
                       match=r"contradict the mode q4f32_1.*float16.*expected scales in float32"):
        cache.dequantize("lm_head.weight")


def test_the_twin_of_a_float32_mode(tmp_path):
    folder = folder_of(tmp_path, mode="q4f32_1")
    cache, twin = (TensorCache.open(folder / name, quantization="q4f32_1")
                   for name in ("tensor-cache.json", "tensor-cache-b16.json"))
    assert np.array_equal(cache.dequantize("lm_head.weight"), twin.dequantize("lm_head.weight"))


@pytest.mark.parametrize("key, value, mode", [
    ("local_id", "RedPajama-INCITE-Chat-3B-v1-q4f16_1", "q4f16_1"), ("model_lib", "x-q0f32-cuda", "q0f32"),
    ("model_lib", "x-q4f32_1", "q4f32_1"), ("local_id", "no-mode-here", None),
])
def test_files_of_2023_have_the_mode_in_a_name(tmp_path, key, value, mode):
    folder = write(folder_of(tmp_path), {key: value})
    cache = TensorCache.open(folder)
    if mode == "q4f16_1" or mode is None:
        assert (cache.scheme and cache.scheme.name) == mode
    else:  # the cache is a q4f16_1 one
        with pytest.raises(TensorCacheError, match=mode):
            cache.scheme  # noqa: B018


def test_a_mode_that_is_not_supported_still_opens(tmp_path):
    cache = TensorCache.open(write(folder_of(tmp_path, mode="q3f16_1"), chat_config(mode="q2f16_1")))
    assert cache["model.norm.weight"].shape == (72,)
    with pytest.raises(UnsupportedError, match="q2f16_1"):
        cache.dequantize("lm_head.weight")


@pytest.mark.parametrize("case", [LLAMA, QWEN2, "llama_f32_tied_shuffled_index", "qwen2_f16_untied_sharded"])
def test_a_folder_of_mlcs_describes_its_model_as_config_json_does(tmp_path, case):
    cache = TensorCache.open(write(folder_of(tmp_path, case), chat_config(case)))
    from_chat_config = cache.spec
    write(cache.folder, config_json(case), "config.json")
    assert TensorCache.open(cache.folder).spec == from_chat_config


def test_older_files_leave_out_that_the_head_is_tied(tmp_path):
    case = "llama_f32_tied_shuffled_index"
    cache = TensorCache.open(write(folder_of(tmp_path, case), chat_config(case, tie_word_embeddings=None)))
    assert "head" not in cache.spec.tensors


def test_the_table_of_embeddings_may_be_longer_than_mlcs_file_says(tmp_path):
    value = chat_config(vocab_size=200)
    cache = TensorCache.open(write(folder_of(tmp_path), {**value, "vocab_size": 200}))
    assert cache.spec.vocab_size == 211


@pytest.mark.parametrize("changes, word", [
    ({"position_embedding_base": None}, "position_embedding_base"), ({"hidden_size": None}, "hidden_size"),
    ({"rms_norm_eps": None}, "rms_norm_eps"), ({"tensor_parallel_shards": 2}, "tensor_parallel_shards"),
    ({"rope_scaling": {"rope_type": "magic"}}, "magic"),
    ({"num_attention_heads": None}, "num_attention_heads"),
])
def test_what_mlcs_file_cannot_say_is_refused_by_name(tmp_path, changes, word):
    folder = write(folder_of(tmp_path), chat_config(**changes))
    with pytest.raises(Error, match=rf"mlc-chat-config\.json.*{word}"):
        load_model_config(folder)


def test_a_file_without_model_config_is_refused(tmp_path):
    folder = write(folder_of(tmp_path), {"local_id": "x-q4f16_1", "conv_template": "vicuna_v1.1"})
    with pytest.raises(UnsupportedError, match=r'(?s)no "model_config".*Copy the original'):
        TensorCache.open(folder).config  # noqa: B018


def test_an_unknown_family_in_mlcs_file(tmp_path):
    value = chat_config()
    with pytest.raises(UnsupportedError, match=r"mlc-chat-config\.json: model_type.*'rwkv5'"):
        load_model_config(write(folder_of(tmp_path), {**value, "model_type": "rwkv5"}))


def test_mistral_with_a_window_has_no_length_in_mlcs_file(tmp_path):
    value = chat_config(sliding_window_size=64, context_window_size=-1)
    value |= {"model_type": "mistral", "context_window_size": -1, "sliding_window_size": 64}
    _, config = load_model_config(write(tmp_path, value))
    assert config.sliding_window == (64, 64) and config.context_length == 32768
    value = chat_config()
    value["model_type"] = "mistral"
    del value["sliding_window_size"]
    with pytest.raises(UnsupportedError, match="sliding_window_size"):
        load_model_config(write(tmp_path, value))


@pytest.mark.parametrize("changes, word", [
    ({"num_hidden_layers": 3}, "6 tensors of the model are missing; expected model.layers.2"),
    ({"num_hidden_layers": 1}, "has no use for"), ({"intermediate_size": 100}, "shape contradicts"),
    ({"num_key_value_heads": 6}, "shape contradicts"),
])
def test_records_that_are_not_the_models(tmp_path, changes, word):
    cache = TensorCache.open(write(folder_of(tmp_path), chat_config(**changes)))
    with pytest.raises(TensorCacheError, match=word):
        cache.spec  # noqa: B018


def test_a_config_that_is_not_json(tmp_path):
    folder = folder_of(tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: not JSON"):
        TensorCache.open(folder, quantization="q4f16_1").dequantize("lm_head.weight")
