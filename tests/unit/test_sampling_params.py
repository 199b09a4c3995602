"""SamplingParams: defaults, and one clear refusal for each bad value."""

import math

import numpy as np
import pytest

from kumquant.engine import SamplingParams
from kumquant.errors import RequestError


def test_defaults_sample_from_the_models_own_distribution():
    config = SamplingParams().sampler_config()
    assert SamplingParams().max_tokens == 256
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (1.0, 0, 1.0, 0.0)
    assert (config.repetition_penalty, config.presence_penalty, config.frequency_penalty) == (1.0, 0.0, 0.0)
    assert (dict(config.logit_bias), config.logprobs) == ({}, -1)


BAD = [
    ("max_tokens", 0, "at least 1"), ("max_tokens", 2.5, "an integer"), ("max_tokens", True, "an integer"),
    ("temperature", -0.1, "at least 0"), ("temperature", math.nan, "a finite number"),
    ("repetition_penalty", 10**400, "a finite number"),
    ("temperature", "hot", "a finite number"), ("top_k", -2, "at least -1"),
    ("top_p", 0.0, "above 0, at most 1"), ("top_p", 1.1, "above 0, at most 1"),
    ("min_p", -0.5, "at least 0, at most 1"), ("min_p", 2, "at least 0, at most 1"),
    ("repetition_penalty", 0, "above 0"), ("presence_penalty", 2.5, "at least -2, at most 2"),
    ("frequency_penalty", -2.5, "at least -2, at most 2"),
    ("logit_bias", [1], "a mapping from token id to number"),
    ("logit_bias", {-1: 0.0}, "at least 0"), ("logit_bias", {1: math.inf}, "a finite number"),
    ("seed", 1.5, "an integer"), ("stop", "", "a string that is not empty"),
    ("stop", ["a", 3], "a string that is not empty"), ("stop", 7, "a string that is not empty"),
    ("stop_token_ids", 5, "a list of token ids"),
    ("stop_token_ids", [-1], "at least 0"), ("ignore_eos", 1, "True or False"), ("logprobs", 21, "0 to 20"),
    ("logprobs", -1, "0 to 20"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD, ids=[f"{row[0]}={row[1]!r:.20}" for row in BAD])
def test_a_bad_value_is_refused_by_name(name, value, expected):
    with pytest.raises(RequestError) as refusal:
        SamplingParams(**{name: value})
    assert str(refusal.value).startswith(name) and expected in str(refusal.value)
    assert refusal.value.exit_code == 2


def test_message_is_whole():
    with pytest.raises(RequestError) as refusal:
        SamplingParams(top_p=1.5)
    assert str(refusal.value) == "top_p: value out of range; found 1.5; expected above 0, at most 1"


def test_both_ways_to_turn_top_k_off_are_one():
    assert [SamplingParams(top_k=off).sampler_config().top_k for off in (-1, 0)] == [0, 0]


def test_any_top_k_fits_the_native_sampler():
    assert SamplingParams(top_k=10**20).sampler_config().top_k == 2**31 - 1


def test_stop_is_one_string_or_many():
    assert SamplingParams(stop="ab").stop_strings == ("ab",)
    assert SamplingParams(stop=["a", "b"]).stop_strings == ("a", "b")


def test_numpy_scalars_are_numbers():
    params = SamplingParams(temperature=np.float32(0.5), stop_token_ids=np.array([4, 5]))
    assert params.sampler_config().temperature == 0.5
    assert params.stop_token_ids == (4, 5)


def test_seed_is_kept_and_missing_seeds_differ():
    assert SamplingParams(seed=7).sampler_config().seed == 7
    assert SamplingParams(seed=-1).sampler_config().seed == 2**64 - 1
    assert SamplingParams().sampler_config().seed != SamplingParams().sampler_config().seed
