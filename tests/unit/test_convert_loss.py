"""The measured loss compares rows with what they became, however a family or a mode keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints_for_tests import TINY_LLAMA, random_tensors, write_checkpoint

from kumquant import convert
from kumquant.models import family_of

_COMMON = {"vocab_size": 72, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2,
           "intermediate_size": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": TINY_LLAMA,
    "transposed": {"model_type": "gpt2", "vocab_size": 72, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "rows of each head": {"model_type": "gpt_neox", **_COMMON, "layer_norm_eps": 1e-5, "max_position_embeddings": 64,
                          "rotary_pct": 0.25, "use_parallel_residual": True},
    "rows of each kv head": {"model_type": "internlm2", **_COMMON, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
                             "max_position_embeddings": 64, "bias": False, "tie_word_embeddings": False},
    "experts": {"model_type": "mixtral", **_COMMON, "num_key_value_heads": 2, "rms_norm_eps": 1e-5,
                "max_position_embeddings": 64, "num_local_experts": 3, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("mode", ["q4f16_1", "q4f16_0", "q3f16_1"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_class_of_weights_loses_what_rounding_costs(tmp_path: Path, name: str, mode: str) -> None:
    """Rows that were compared with others would be off by more than they are themselves."""
    if name == "experts" and mode == "q4f16_0":
        pytest.skip("experts have no place in this mode")
    family = family_of(FAMILIES[name])
    shapes = {source: shape for tensor in family.plan(family.config(FAMILIES[name]))
              for source, shape in zip(tensor.sources, tensor.source_shapes, strict=True)}
    write_checkpoint(tmp_path / "hf", random_tensors(shapes, np.float16), FAMILIES[name])
    losses = {loss.tensors: loss.rms_relative_error for loss in convert(tmp_path / "hf", tmp_path / "out", mode).losses}
    assert losses.keys() == {"embedding", "head", "linear"} | ({"experts"} if name == "experts" else set())
    low, high = (0.05, 0.15) if mode.startswith("q4") else (0.1, 0.35)
    assert all(low < loss < high for loss in losses.values()), losses
