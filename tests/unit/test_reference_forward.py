"""The NumPy twin against logits that Transformers computed (reference.npz of the conformance cases)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kumquant.dtypes import DTYPES
from kumquant.models import TensorCache, family_of
from kumquant.runtime.reference import forward
from kumquant.schemes import SCHEMES

CASES = Path(__file__).parents[2].parent / "shared" / "conformance" / "cases"
CACHES = sorted(
    f"{path.parent.name}/{path.name}" for path in CASES.glob("*/cache-*")
    if path.parent.name.startswith(("llama", "qwen2")) and path.name.removeprefix("cache-") in SCHEMES
)


@pytest.mark.skipif(not CASES.is_dir(), reason="skipped: ../shared/conformance is not there")
def test_the_cases_are_there():
    assert len(CACHES) > 20


@pytest.mark.parametrize("cache", CACHES)
def test_logits_of_a_reference_cache(cache):
    case, name = cache.split("/")
    mode = name.removeprefix("cache-")
    config_json = json.loads((CASES / case / "hf" / "config.json").read_text())
    reference = np.load(CASES / case / "reference.npz")
    stored = TensorCache.open(CASES / cache, quantization=mode)
    family = family_of(config_json)
    config = family.config(config_json)
    weights = {}
    for tensor in family.plan(config):
        values = stored.dequantize(tensor.name)[..., :tensor.shape[-1]]
        # The reference rounds each product to the mode's dtype (docs/format.md, "Decoding").
        weights[tensor.name] = values.astype(DTYPES[SCHEMES[mode].model_dtype]).astype(np.float32)
    logits = forward(family.spec(config), weights, reference["input_ids"].ravel())
    expected = reference[f"logits_{mode}"].reshape(logits.shape)
    assert np.abs(logits - expected).max() <= 1e-5 * np.abs(expected).max()
