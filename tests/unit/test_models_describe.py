from __future__ import annotations

import json
from pathlib import Path

import pytest

from kumquant.models import FAMILIES, describe
from kumquant.schemes import SCHEMES
from kumquant.tensor_cache import Manifest, Record, Shard, read_manifest

SHARED = Path(__file__).parents[2].parent / "shared"
SEED = SHARED / "seed" / "ndarray-cache-b16.json"
CASES = SHARED / "conformance" / "cases"


def manifest_of(family: str, quantization: str = "q4f16_1", **keys) -> Manifest:
    config_json = {
        "model_type": family, "vocab_size": 320, "hidden_size": 256, "intermediate_size": 640,
        "num_hidden_layers": 12,
        "num_attention_heads": 16, "num_key_value_heads": 8, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, **keys,
    }
    scheme = SCHEMES[quantization]
    records = []
    for tensor in FAMILIES[family].plan(FAMILIES[family].config(config_json)):
        if tensor.kind == "plain" or not scheme.is_quantized:
            records.append(Record(tensor.name, tensor.shape, scheme.model_dtype, "raw", 1, 0))
            continue
        rows, width = tensor.shape
        records += [Record(f"{tensor.stem}.q_weight", (rows, scheme.num_words(width)), "uint32", "raw", 1, 0),
                    Record(f"{tensor.stem}.q_scale", (rows, scheme.num_groups(width)), scheme.model_dtype,
                           "raw", 1, 0)]
    return Manifest((Shard("params_shard_0.bin", 1, None, tuple(records)),))


@pytest.mark.skipif(not SEED.is_file(), reason="skipped: ../shared/seed is not there")
def test_the_seed_manifest_without_its_shards():
    found = describe(read_manifest(SEED, allow_missing_shards=True))
    assert found.families == ("llama", "mistral", "ministral3", "granite", "smollm3")
    assert found.family == "llama" and found.quantization == "q4f32_1"
    assert (found.hidden_size, found.num_hidden_layers, found.intermediate_size, found.vocab_size) == (
        768, 6, 3072, 32128)
    assert (found.num_attention_heads, found.num_key_value_heads, found.head_dim) == (24, 8, 32)
    assert found.inferred == ("head_dim", "num_attention_heads", "num_key_value_heads")
    assert found.tie_word_embeddings is False and found.num_values == 101263104
    assert round(found.bits_per_param, 4) == 5.0027 and round(found.stored_bits_per_param, 4) == 4.5011


@pytest.mark.parametrize("family, first", [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")])
@pytest.mark.parametrize("quantization", ["q4f16_1", "q0f16", "q4bf16_1"])
def test_family_and_sizes(family, first, quantization):
    if quantization == "q4bf16_1":  # written raw, bfloat16 scales are those of a twin
        quantization = "q4f32_1"
    found = describe(manifest_of(family, quantization, tie_word_embeddings=True))
    assert found.family == first and found.quantization == quantization and found.tie_word_embeddings
    assert (found.vocab_size, found.hidden_size, found.intermediate_size, found.num_hidden_layers) == (320,
                                                                                                       256,
                                                                                                       640,
                                                                                                       12)
    assert found.num_values is None and found.bits_per_param is None


def test_a_head_norm_tells_the_heads_width():
    found = describe(manifest_of("qwen3", head_dim=24))
    assert (found.head_dim, found.num_attention_heads, found.num_key_value_heads) == (24, 16, 8)
    assert found.inferred == ()


def test_biases_are_part_of_the_family():
    assert describe(manifest_of("llama", attention_bias=True)).families == ("llama", "granite", "smollm3")


def test_what_is_not_a_known_model_stays_unknown():
    record = Record("embeddings.word_embeddings.weight", (10, 4), "float16", "raw", 80, 0)
    found = describe(Manifest((Shard("params_shard_0.bin", 80, None, (record,)),)))
    assert found.family is None and found.hidden_size is None and found.quantization == "q0f16"
    assert describe(Manifest(())).quantization is None


@pytest.mark.skipif(not CASES.is_dir(), reason="skipped: ../shared/conformance is not there")
def test_modes_of_the_reference_caches():
    for path in CASES.glob("*/cache-*/tensor-cache*.json"):
        mode = path.parent.name.removeprefix("cache-")
        found = describe(read_manifest(path, allow_missing_shards=True))
        if json.loads((path.parents[1] / "meta.json").read_text())["mlc_model_type"] in FAMILIES:
            assert found.quantization == mode, path
