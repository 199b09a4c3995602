"""Every family and rope scaling against stored logits of Transformers (make_reference_logits.py writes them)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reference_models import MODELS, STORED_ROWS, token_ids, weight

from kumquant.errors import UnsupportedError
from kumquant.models import FAMILIES, family_of
from kumquant.runtime.reference import forward

REFERENCE = Path(__file__).parent / "reference"


@pytest.fixture(scope="module")
def stored_logits():
    return np.load(REFERENCE / "logits.npz")


def cache_weights(model: str) -> dict[str, np.ndarray]:
    """The model's weights under their cache names, fused as the family plans it."""
    family = family_of(MODELS[model])
    weights = {}
    for tensor in family.plan(family.config(MODELS[model])):
        parts = [weight(model, name, shape) for name, shape in zip(tensor.sources, tensor.source_shapes)]
        weights[tensor.name] = np.concatenate(parts)
        assert weights[tensor.name].shape == tensor.shape
    return weights


@pytest.mark.parametrize("model", MODELS)
def test_logits_are_those_of_transformers(model, stored_logits):
    family = family_of(MODELS[model])
    spec = family.spec(family.config(MODELS[model]))
    logits = forward(spec, cache_weights(model), token_ids(model))[STORED_ROWS]
    expected = stored_logits[model]
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("model", MODELS)
def test_both_spellings_of_a_config_mean_the_same(model):
    saved = json.loads((REFERENCE / "configs.json").read_text())[model]
    assert "rope_parameters" in saved and "rope_scaling" not in saved
    family = family_of(saved)
    assert family.spec(family.config(saved)) == family.spec(family.config(MODELS[model]))


def test_every_family_has_a_reference():
    decoders = {name for name, family in FAMILIES.items() if family.traits.get("causal", True)}
    assert {config["model_type"] for config in MODELS.values()} == decoders  # encoders: test_bert.py


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
