"""Inverse frequencies of every rope scaling against those that Transformers computed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference_models import MODELS as ALL_MODELS

from kumquant.models import depends_on_length, family_of, inverse_frequencies

STORED = np.load(Path(__file__).parent / "reference" / "rope.npz")
MODELS = {name: config for name, config in ALL_MODELS.items() if f"{name}/factor" in STORED}
LENGTHS = sorted({int(key.split("/")[1]) for key in STORED if not key.endswith("factor")})


def rope_of(model: str):
    family = family_of(MODELS[model])
    return family.config(MODELS[model]).rope


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("length", LENGTHS)
def test_inverse_frequencies(model, length):
    frequencies, attention_factor = inverse_frequencies(rope_of(model), length)
    expected = STORED[f"{model}/{length}"]
    assert frequencies.dtype == np.float32 and frequencies.shape == expected.shape
    # torch's own float32 power may be off by one unit in the last place, ours is rounded correctly
    np.testing.assert_allclose(frequencies, expected, rtol=2.5e-7, atol=0)
    assert attention_factor == float(STORED[f"{model}/factor"])


@pytest.mark.parametrize("model", MODELS)
def test_what_depends_on_the_length_is_known(model):
    varies = any(not np.array_equal(STORED[f"{model}/{length}"],
                                    STORED[f"{model}/{LENGTHS[0]}"]) for length in LENGTHS)
    assert varies <= depends_on_length(rope_of(model))


def test_dynamic_scaling_starts_after_the_original_length():
    rope = rope_of("llama_dynamic")
    short, at_limit, beyond = (inverse_frequencies(rope, length)[0] for length in (1, 24, 25))
    assert np.array_equal(short, at_limit)
    assert (beyond[1:] < at_limit[1:]).all() and beyond[0] == at_limit[0] == 1
