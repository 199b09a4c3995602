"""Every family: its checkpoint converts, and the cache computes what the model's authors' code computes.

The reference is Transformers (stored logits, make_reference_logits.py writes them), or published_models.py for models
that Transformers never had: the same model with every weight replaced by what the cache decodes to.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from measure_int8 import loss
from published_models import FORWARDS
from reference_models import (
    MODELS,
    MODES,
    PUBLISHED,
    STORED_COLUMNS,
    checkpoint_tensors,
    models_of_families,
    token_ids,
    unfused,
    write_checkpoint,
)

from kumquant.convert import convert
from kumquant.errors import TensorCacheError, UnsupportedError
from kumquant.models import FAMILIES, TensorCache, depends_on_length, family_of
from kumquant.models.tables import families_page
from kumquant.runtime import Model, StepInput, pack
from kumquant.runtime.reference import forward

REFERENCE = Path(__file__).parent / "reference"
CHECKPOINTS = json.loads((REFERENCE / "checkpoints.json").read_text())
LOGITS = np.load(REFERENCE / "logits.npz")
CASES = Path(__file__).parents[2].parent / "shared" / "conformance" / "cases"
ALL_MODELS = MODELS | PUBLISHED
INT8 = json.loads((REFERENCE / "int8_kl.json").read_text())
TOLERANCE = 1e-5


def plan_of(model: str):
    family = family_of(ALL_MODELS[model])
    return family.plan(family.config(ALL_MODELS[model]), CHECKPOINTS.get(model))


@pytest.fixture(scope="module")
def cache_of(tmp_path_factory):
    """(model, mode) -> the cache of its random checkpoint, converted once."""
    made = {}

    def cache(model: str, mode: str) -> TensorCache:
        if (model, mode) not in made:
            folder = tmp_path_factory.mktemp(f"{model}-{mode}")
            source = write_checkpoint(folder / "hf", ALL_MODELS[model], checkpoint_tensors(model, plan_of(model)))
            convert(source, folder / "cache", mode)
            made[model, mode] = TensorCache.open(folder / "cache")
        return made[model, mode]
    return cache


def expected_logits(model: str, mode: str, cache: TensorCache) -> np.ndarray:
    if model in MODELS:
        return LOGITS[f"{model}/{mode}"]
    config_json, plan = PUBLISHED[model], plan_of(model)
    weights = unfused(plan, {tensor.name: cache.dequantize(tensor.name) for tensor in plan})
    return FORWARDS[config_json["model_type"]](config_json, weights, token_ids(model))[:, STORED_COLUMNS]


@pytest.mark.parametrize("model", ALL_MODELS)
def test_a_panels_file_gives_the_same_bits(model, cache_of):
    cache = cache_of(model, MODES[1])
    path = pack(cache.folder, threads=1).path
    try:
        packed, plain = Model(cache, threads=1), Model(cache, threads=1, panels=False)
        assert (packed.panels_path, plain.panels_path) == (path, None)
        assert packed.logits(token_ids(model)).tobytes() == plain.logits(token_ids(model)).tobytes()
    finally:
        path.unlink()  # the other tests are about the cache


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("model", ALL_MODELS)
def test_logits_at_every_position(model, mode, cache_of):
    cache = cache_of(model, mode)
    expected = expected_logits(model, mode, cache)
    scale = np.abs(expected).max()
    found = Model(cache, threads=1).logits(token_ids(model), activations="float32")[:, STORED_COLUMNS]
    assert np.abs(found - expected).max() <= TOLERANCE * scale
    weights = {tensor.name: cache.dequantize(tensor.name) for tensor in cache.plan}
    twin = forward(cache.spec, weights, token_ids(model))[:, STORED_COLUMNS]
    assert np.abs(twin - expected).max() <= TOLERANCE * scale


@pytest.mark.parametrize("model", [name for name in ALL_MODELS if not name.startswith("llama_")])
def test_the_transposed_and_the_three_bit_layout(model, cache_of):
    mode = "q3f16_1" if family_of(ALL_MODELS[model]).config(ALL_MODELS[model]).experts else "q4f16_0"
    cache, tokens = cache_of(model, mode), token_ids(model)
    weights = {tensor.name: cache.dequantize(tensor.name) for tensor in cache.plan}
    expected = forward(cache.spec, weights, tokens)
    found = Model(cache, threads=1).logits(tokens, activations="float32")
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.skipif(not CASES.is_dir(), reason="skipped: no ../shared/conformance")
@pytest.mark.parametrize("mode, tolerance", [("q0f32", 1e-5), ("q4f16_0", 5e-3), ("q4f16_1", 5e-3)])
def test_logits_of_the_reference_caches_of_gpt2(mode, tolerance, tmp_path):
    """Group modes differ by the rounding of products to float16 (docs/format.md, "Decoding")."""
    case = CASES / "gpt2_f32"
    folder = Path(shutil.copytree(case / f"cache-{mode}", tmp_path / "cache"))
    shutil.copy(case / "hf" / "config.json", folder)
    reference = np.load(case / "reference.npz")
    tokens = [int(token) for token in reference["input_ids"].ravel()]
    logits = Model(TensorCache.open(folder, mode), threads=1).logits(tokens, activations="float32")
    expected = reference[f"logits_{mode}"].reshape(logits.shape)
    assert np.abs(logits - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("model", ALL_MODELS)
def test_chunks_and_single_steps_compute_the_same_bits(model, cache_of):
    native, tokens = Model(cache_of(model, "q4f32_1"), threads=2), token_ids(model)
    if native.spec.rope is not None and depends_on_length(native.spec.rope):
        tokens = tokens[:20]  # below the length where the frequencies change
    for activations in ("float32", "int8"):
        whole = native.logits(tokens, activations=activations)
        for chunks in ((1,) * len(tokens), (7, 1, 12, len(tokens) - 20)):
            assert np.array_equal(in_chunks(native, tokens, chunks, activations), whole)


@pytest.mark.parametrize("model", ALL_MODELS)
def test_int8_activations_cost_what_the_table_says(model, cache_of):
    native, tokens = Model(cache_of(model, "q4f32_1"), threads=1), token_ids(model)
    found = loss(native.logits(tokens, activations="float32"), native.logits(tokens, activations="int8"))
    assert found == pytest.approx(INT8[model], rel=0.01)


def in_chunks(model: Model, tokens: list[int], chunks: tuple[int, ...], activations: str) -> np.ndarray:
    pool = model.new_pool(model.pages_for(len(tokens)), activations)
    sequence = model.new_sequence(pool, None, tokens)
    sequence.add_pages(pool.allocate(pool.num_pages))
    rows, begin = [], 0
    for count in filter(None, chunks):
        rows.append(model.step(pool, [StepInput(sequence, tokens[begin : begin + count], "logits")])[0].logits.copy())
        begin += count
    return np.concatenate(rows)


@pytest.mark.parametrize("model", ALL_MODELS)
def test_a_tensor_assembled_at_once_is_the_converted_one(model, cache_of):
    sources = checkpoint_tensors(model, plan_of(model))
    for tensor in plan_of(model):
        whole = tensor.assembled([sources[name] for name in tensor.sources])
        rounded = whole.astype(ml_dtypes.bfloat16).astype(np.float32)  # as a q0f32 cache stores it
        assert np.array_equal(rounded, cache_of(model, "q0f32").dequantize(tensor.name)), tensor.name


@pytest.mark.parametrize("model", MODELS)
def test_the_plan_takes_every_tensor_that_transformers_saves(model):
    family = family_of(MODELS[model])
    needed = {name: list(shape) for tensor in plan_of(model)
              for name, shape in zip(tensor.sources, tensor.source_shapes, strict=True)}
    saved = {name: shape for name, shape in CHECKPOINTS[model].items()
             if name in needed or not family.ignored(name)}
    assert needed == saved


@pytest.mark.parametrize("model", MODELS)
def test_both_spellings_of_a_config_mean_the_same(model):
    saved = json.loads((REFERENCE / "configs.json").read_text())[model]
    assert "rope_scaling" not in saved
    family = family_of(saved)
    assert family.spec(family.config(saved)) == family.spec(family.config(MODELS[model]))


# What mlc-chat-config.json has no words for; ``convert`` warns of each.
UNSAID = {"qwen2_window", "qwen2_layer_types", "mixtral", "phi3", "starcoder2", "llama_biases", *(
    name for name in MODELS if name.startswith("llama_") and "rope_scaling" in MODELS[name] and name != "llama_llama3")}


@pytest.mark.parametrize("model", ALL_MODELS)
def test_mlcs_file_describes_the_model(model, cache_of, tmp_path):
    cache = cache_of(model, "q0f32")
    folder = shutil.copytree(cache.folder, tmp_path / "cache")
    (folder / "config.json").unlink()
    if model == "llama_biases":
        with pytest.raises(TensorCacheError, match="bias"):
            TensorCache.open(folder).spec  # noqa: B018
        return
    spec = TensorCache.open(folder).spec
    assert (without_lengths(spec) == without_lengths(cache.spec)) == (model not in UNSAID)


def without_lengths(spec) -> dict:
    """Lengths are other ones in MLC's file where it has a window instead of a context."""
    value = spec.to_json()
    del value["context_length"]
    for rope in filter(None, (value["rope"], value["local_rope"])):
        del rope["max_position_embeddings"]
    return value


def test_every_family_has_a_reference():
    tested = {config["model_type"] for config in ALL_MODELS.values()}
    # Encoders have test_bert.py; qwen3-embedding is qwen3 under other checkpoint names.
    assert tested | {"bert", "bert-bge", "qwen3-embedding"} == set(FAMILIES)


def test_the_page_of_families_is_up_to_date():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")
    assert page == families_page(models_of_families(), INT8), "run scripts/write-family-tables"


def test_a_spec_is_plain_data():
    family = family_of(MODELS["llama_longrope"])
    spec = family.spec(family.config(MODELS["llama_longrope"]))
    assert json.loads(json.dumps(spec.to_json()))["rope"]["type"] == "longrope"


def test_biases_that_the_format_has_no_place_for():
    family = family_of(MODELS["llama_biases"])
    config = family.config(MODELS["llama_biases"])
    assert "model.layers.0.mlp.gate_up_proj.bias" in {tensor.name for tensor in family.plan(config)}
    with pytest.raises(UnsupportedError, match="attention_bias"):
        family.plan(config, compat=True)
    qwen3 = family_of(MODELS["qwen3_bias"])
    assert qwen3.plan(qwen3.config(MODELS["qwen3_bias"]), compat=True)
