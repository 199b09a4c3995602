"""LoRA adapters: merged in float32 while a checkpoint is read, or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from checkpoints_for_tests import TINY_LLAMA, llama_shapes, random_tensors, write_checkpoint, write_safetensors
from packed_for_tests import config_of, gptq, random_layer

from kumquant.checkpoint import open_checkpoint
from kumquant.convert import convert
from kumquant.errors import CheckpointError, Error, UnsupportedError
from kumquant.models import TensorCache

PREFIX = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.1.mlp.down_proj"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "bias": "none", "rank_pattern": {},
          "alpha_pattern": {}, "modules_to_save": None, "use_dora": False, "fan_in_fan_out": False,
          "init_lora_weights": True, "target_modules": ["q_proj", "down_proj"]}


def factors(module: str, shape: tuple[int, int], rank: int = 4, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {f"{PREFIX}{module}.lora_A.weight": rng.standard_normal((rank, shape[1]), np.float32),
            f"{PREFIX}{module}.lora_B.weight": rng.standard_normal((shape[0], rank), np.float32)}


def write_adapter(folder: Path, tensors: dict[str, np.ndarray], **changes: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


@pytest.fixture
def base(tmp_path):
    """The folder of a bfloat16 llama, and its tensors as float32."""
    tensors = random_tensors(llama_shapes(TINY_LLAMA), ml_dtypes.bfloat16)
    write_checkpoint(tmp_path / "base", tensors)
    return tmp_path / "base", {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def merged(weight: np.ndarray, tensors: dict[str, np.ndarray], module: str, scale: float) -> np.ndarray:
    a, b = (tensors[f"{PREFIX}{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
    return weight + scale * (b @ a)


def test_factors_are_added_in_float32(tmp_path, base):
    folder, weights = base
    tensors = factors(Q, (48, 48)) | factors(DOWN, (48, 80))
    checkpoint = open_checkpoint(folder, lora=[write_adapter(tmp_path / "lora", tensors)])
    for module in (Q, DOWN):
        name = f"{module}.weight"
        result = checkpoint.read(name)
        assert result.dtype == np.float32 and checkpoint.tensors[name].dtype == "float32"
        assert np.allclose(result, merged(weights[name], tensors, module, 2.0), rtol=1e-5, atol=1e-6)
        assert checkpoint.tensors[name].stored_as == "bfloat16 with LoRA of rank 4 added in float32"
    untouched = "model.layers.0.mlp.down_proj.weight"
    assert np.array_equal(checkpoint.read(untouched).astype(np.float32), weights[untouched])
    name = f"{DOWN}.weight"
    values = checkpoint.read_rows(name, 1, 77, 400)[:, 0]
    assert np.allclose(values, checkpoint.read(name).reshape(-1)[77:400], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({"use_rslora": True}, 8 / math.sqrt(4)),
        ({"alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"alpha_pattern": {"proj": 2}}, 2.0),  # no whole name
        ({"alpha_pattern": {r"layers\.0\.self_attn\..*": 6, "q_proj": 2}}, 1.5),  # the first that fits
        ({"r": 16, "rank_pattern": {"self_attn.q_proj": 4}}, 2.0),
    ],
)
def test_scales(tmp_path, base, changes, scale):
    folder, weights = base
    tensors = factors(Q, (48, 48))
    checkpoint = open_checkpoint(folder, lora=[write_adapter(tmp_path / "lora", tensors, **changes)])
    expected = merged(weights[f"{Q}.weight"], tensors, Q, scale)
    assert np.allclose(checkpoint.read(f"{Q}.weight"), expected, rtol=1e-5, atol=1e-6)


def test_embedding_and_head_and_whole_modules(tmp_path, base):
    folder, weights = base
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((4, 101), np.float32), rng.standard_normal((48, 4), np.float32)
    norm = np.full(48, 0.5, np.float16)
    embedding = "model.embed_tokens"
    tensors = {
        f"{PREFIX}{embedding}.lora_embedding_A": a, f"{PREFIX}{embedding}.lora_embedding_B": b,
        f"{PREFIX}{embedding}.base_layer.weight": weights[f"{embedding}.weight"].astype(ml_dtypes.bfloat16),
        f"{PREFIX}model.norm.weight": norm, **factors("lm_head", (101, 48)),
    }
    checkpoint = open_checkpoint(folder, lora=[write_adapter(tmp_path / "lora", tensors, modules_to_save=["norm"])])
    expected = weights[f"{embedding}.weight"] + 2 * (b @ a).T
    assert np.allclose(checkpoint.read(f"{embedding}.weight"), expected, rtol=1e-5, atol=1e-6)
    assert np.array_equal(checkpoint.read("model.norm.weight"), norm)
    assert checkpoint.tensors["model.norm.weight"].dtype == "float16"
    expected = merged(weights["lm_head.weight"], tensors, "lm_head", 2.0)
    assert np.allclose(checkpoint.read("lm_head.weight"), expected, rtol=1e-5, atol=1e-6)


def test_several_adapters_add_up_and_conversion_rounds_once(tmp_path, base):
    folder, weights = base
    first, second = factors(Q, (48, 48), seed=1), factors(Q, (48, 48), rank=2, seed=2)
    adapters = [write_adapter(tmp_path / "one", first), write_adapter(tmp_path / "two", second, r=2)]
    checkpoint = open_checkpoint(folder, lora=adapters)
    expected = merged(merged(weights[f"{Q}.weight"], first, Q, 2.0), second, Q, 4.0)
    result = checkpoint.read(f"{Q}.weight")
    assert np.allclose(result, expected, rtol=1e-5, atol=1e-5)
    convert(folder, tmp_path / "out", "q0f16", lora=adapters)
    stored = TensorCache.open(tmp_path / "out")["model.layers.0.self_attn.qkv_proj.weight"][:48]
    assert np.array_equal(stored, result.astype(np.float16))


def test_an_adapter_on_quantized_weights_takes_the_codes_only_where_it_changes_nothing(tmp_path):
    layer = random_layer(np.random.default_rng(0), 48, 64, 64)
    stored = gptq(layer, "model.a") | gptq(layer, "model.b")
    write_checkpoint(tmp_path / "base", stored, {"quantization_config": config_of("gptq", 64)})
    tensors = factors("model.a", (48, 64))
    checkpoint = open_checkpoint(tmp_path / "base", lora=[write_adapter(tmp_path / "lora", tensors)])
    assert np.allclose(checkpoint.read("model.a.weight"), merged(layer.values, tensors, "model.a", 2.0), rtol=1e-5,
                       atol=1e-6)
    assert np.array_equal(checkpoint.read("model.b.weight"), layer.values)
    assert checkpoint.tensors["model.a.weight"].stored_as == \
        "4-bit GPTQ, group 64, symmetric with LoRA of rank 4 added in float32"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"peft_type": "IA3"}, "peft_type"), ({"use_dora": True}, "use_dora"), ({"bias": "lora_only"}, "bias"),
        ({"lora_bias": True}, "lora_bias"), ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    ],
)
def test_other_kinds_are_refused_by_key(tmp_path, base, changes, key):
    adapter = write_adapter(tmp_path / "lora", factors(Q, (48, 48)), **changes)
    with pytest.raises(UnsupportedError, match=rf"adapter_config\.json: {key}: .*\n.*merge_and_unload"):
        open_checkpoint(base[0], lora=[adapter])


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        (factors("model.layers.7.mlp.up_proj", (80, 48)), {}, "which the model does not have"),
        (factors(Q, (64, 48)), {}, r"another shape than the model's; found \[64, 48\]; expected \[48, 48\]"),
        (factors(Q, (48, 48), rank=3), {}, "do not have the rank that adapter_config.json says"),
        (factors(Q, (48, 48)), {"r": 0}, "r: not a positive number"),
        (factors(Q, (48, 48)), {"alpha_pattern": {"(": 3}}, "not a pattern"),
        (factors(Q, (48, 48)), {"alpha_pattern": {"(.+)+!": 3}}, "may take forever"),
        (factors(Q, (48, 48)), {"rank_pattern": {".*.*.*.*.*!": 3}}, "may take forever"),
        ({f"{PREFIX}{Q}.lora_A.weight": np.zeros((4, 48), np.float32)}, {}, "is incomplete"),
        ({f"{PREFIX}{Q}.lora_magnitude_vector": np.zeros(48, np.float32)}, {}, "cannot be merged"),
        ({}, {}, "the adapter is empty"),
        ({f"{PREFIX}lm_head.weight": np.zeros((103, 48), np.float32)}, {}, "longer vocabulary"),
    ],
)
def test_adapters_of_another_model_and_damaged_ones_are_refused(tmp_path, base, tensors, changes, message):
    adapter = write_adapter(tmp_path / "lora", tensors, **changes)
    with pytest.raises((CheckpointError, UnsupportedError), match=message):
        open_checkpoint(base[0], lora=[adapter])
    with pytest.raises(Error):
        convert(base[0], tmp_path / "out", "q0f16", lora=adapter)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_said", [True, False])  # some families tie without a word in config.json
def test_half_of_a_tied_embedding_is_refused(tmp_path, is_said):
    config = {**TINY_LLAMA, "tie_word_embeddings": True}
    tensors = random_tensors(llama_shapes(config))
    if not is_said:
        del config["tie_word_embeddings"]
    write_checkpoint(tmp_path / "base", tensors, config)
    adapter = write_adapter(tmp_path / "lora", {
        f"{PREFIX}model.embed_tokens.lora_embedding_A": np.zeros((4, 101), np.float32),
        f"{PREFIX}model.embed_tokens.lora_embedding_B": np.zeros((48, 4), np.float32)})
    with pytest.raises(UnsupportedError, match="one weight in this model"):
        open_checkpoint(tmp_path / "base", lora=[adapter])


def test_folders_without_the_files(tmp_path, base):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json"):
        open_checkpoint(base[0], lora=[tmp_path / "empty"])
    (tmp_path / "empty" / "adapter_config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        open_checkpoint(base[0], lora=[tmp_path / "empty"])
