"""Every family in the modes that its own tests leave out: converted, opened from MLC's file alone, and run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from reference_models import MODELS, PUBLISHED, checkpoint_tensors, token_ids, write_checkpoint

from kumquant.convert import convert
from kumquant.errors import UnsupportedError
from kumquant.models import TensorCache, describe, family_of
from kumquant.runtime import Model
from kumquant.runtime.reference import forward

CHECKPOINTS = json.loads((Path(__file__).parent / "reference" / "checkpoints.json").read_text())
ALL_MODELS = MODELS | PUBLISHED
ONE_OF_EACH = {str(config["model_type"]): name for name, config in reversed(ALL_MODELS.items())}
MODES = ("q3f16_1", "q4f16_2", "q8f32_1")
TRANSPOSED = ("q3f16_0", "q4bf16_0")


@pytest.mark.parametrize("family", ONE_OF_EACH)
def test_every_mode_runs(family: str, tmp_path: Path) -> None:
    model = ONE_OF_EACH[family]
    config_json = ALL_MODELS[model]
    plan = family_of(config_json).plan(family_of(config_json).config(config_json), CHECKPOINTS.get(model))
    source = write_checkpoint(tmp_path / "hf", config_json, checkpoint_tensors(model, plan))
    has_experts = any(tensor.kind == "experts" for tensor in plan)
    if has_experts:
        with pytest.raises(UnsupportedError, match="no place for stacked experts"):
            convert(source, tmp_path / "out", TRANSPOSED)
    tokens = token_ids(model)
    modes = MODES if has_experts else MODES + TRANSPOSED
    for report in convert(source, tmp_path / "out", modes):
        cache = TensorCache.open(report.out)
        cache.verify()
        assert describe(cache.manifest).quantization == report.quantization
        logits = Model(cache, threads=1).logits(tokens, activations="float32")
        weights = {tensor.name: cache.dequantize(tensor.name) for tensor in cache.plan}
        exact = forward(cache.spec, weights, tokens)
        assert np.abs(logits - exact).max() <= 1e-5 * np.abs(exact).max(), report.quantization
