from __future__ import annotations

import numpy as np
import pytest

from kumquant.errors import Error
from kumquant.models import FAMILIES, RopeSpec, depends_on_length, inverse_frequencies

LENGTH = 64


def rope(kind: str = "default", dim: int = 8, theta: float = 10000.0, **parameters) -> RopeSpec:
    return RopeSpec(kind, theta, dim, LENGTH, parameters)


def frequencies(spec: RopeSpec, length: int = 1) -> np.ndarray:
    return inverse_frequencies(spec, length)[0]


def test_default_is_theta_to_the_power():
    expected = np.array([1, 10, 100, 1000], np.float32)
    assert np.array_equal(frequencies(rope()), np.float32(1) / expected)
    assert frequencies(rope()).dtype == np.float32


def test_linear_divides_all():
    assert np.array_equal(frequencies(rope("linear", factor=4.0)), frequencies(rope()) / np.float32(4))


def test_dynamic_grows_with_the_sequence():
    spec = rope("dynamic", factor=2.0)
    assert np.array_equal(frequencies(spec, LENGTH), frequencies(rope()))
    assert (np.diff([frequencies(spec, length)[-1] for length in (64, 65, 100, 128)]) < 0).all()


def test_yarn_keeps_the_fast_and_divides_the_slow():
    spec = rope("yarn", 64, factor=4.0, original_max_position_embeddings=16)
    ratio = frequencies(rope(dim=64)) / frequencies(spec)
    assert ratio[0] == 1 and abs(ratio[-1] - 4) < 1e-6 and (np.diff(ratio) >= -1e-6).all()
    assert inverse_frequencies(spec, 1)[1] == pytest.approx(0.1 * np.log(4) + 1)
    given = rope("yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=0.5)
    assert inverse_frequencies(given, 1)[1] == 0.5


def test_longrope_switches_after_the_original_length():
    spec = rope("longrope", 4, short_factor=[1.0, 2.0], long_factor=[3.0, 4.0],
                original_max_position_embeddings=16)
    assert np.array_equal(frequencies(spec, 16), frequencies(rope(dim=4)) / np.float32([1, 2]))
    assert np.array_equal(frequencies(spec, 17), frequencies(rope(dim=4)) / np.float32([3, 4]))


def test_llama3_has_three_bands():
    spec = rope("llama3", 64, 500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=8192)
    ratio = frequencies(rope(dim=64, theta=500000.0)) / frequencies(spec)
    assert ratio[0] == 1 and ratio[-1] == 8 and ((ratio > 1.01) & (ratio < 7.99)).any()


def test_proportional_leaves_the_rest_still():
    found = frequencies(rope("proportional", 8, partial_rotary_factor=0.5))
    assert np.array_equal(found[:2], frequencies(rope())[:2]) and not found[2:].any()


def test_what_depends_on_the_length():
    assert [depends_on_length(rope(kind)) for kind in ("default", "linear", "dynamic", "yarn",
                                                       "longrope")] == [
        False, False, True, False, True]


@pytest.mark.parametrize("parameters", [
    {"rope_type": "dynamic", "factor": 2.0, "head_dim": 2},
    {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0},
    {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0] * 8,
     "original_max_position_embeddings": 1},
    {"rope_type": "proportional", "partial_rotary_factor": 1.5},
])
def test_parameters_that_would_divide_by_zero(parameters):
    head_dim = parameters.pop("head_dim", 16)
    with pytest.raises(Error, match="out of range"):
        FAMILIES["llama"].config({
            "vocab_size": 8, "hidden_size": 32, "intermediate_size": 8, "num_hidden_layers": 1,
            "head_dim": head_dim,
            "num_attention_heads": 2, "rms_norm_eps": 1e-5, "max_position_embeddings": 64,
            "rope_parameters": parameters})
