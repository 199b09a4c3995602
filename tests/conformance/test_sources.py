"""Checkpoints that others wrote: PEFT, compressed-tensors and AutoRound (make_sources.py), GPTQModel
(make_gptqmodel_sources.py)."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from kumquant.checkpoint import open_checkpoint
from kumquant.convert import convert
from kumquant.errors import UnsupportedError
from kumquant.models import TensorCache

SOURCES = Path(__file__).parent / "sources"
LINEARS = 7


def test_peft():
    """As PEFT's merge_and_unload in float32: rank-stabilized, with patterns, an embedding and a whole module."""
    checkpoint = open_checkpoint(SOURCES / "base", lora=[SOURCES / "peft"])
    merged = np.load(SOURCES / "peft" / "merged.npz")
    base = open_checkpoint(SOURCES / "base")
    for name, info in checkpoint.tensors.items():
        if name in merged.files:
            assert np.allclose(checkpoint.read(name).astype(np.float32), merged[name], rtol=1e-6, atol=1e-7), name
            assert info.stored_as or name == "lm_head.weight"
        else:
            assert np.array_equal(checkpoint.read(name), base.read(name)), name


@pytest.mark.parametrize("folder", ["compressed-tensors", "compressed-tensors-asymmetric"])
def test_compressed_tensors_says_what_its_own_tool_says(folder):
    """The tool rounds its products to bfloat16; ours are exact until then."""
    checkpoint = open_checkpoint(SOURCES / folder)
    for name, expected in json.loads((SOURCES / folder / "hashes.json").read_text()).items():
        values = checkpoint.read(name).astype(ml_dtypes.bfloat16)
        assert hashlib.sha256(values.tobytes()).hexdigest() == expected, name


@pytest.mark.parametrize("folder", ["auto-round", "auto-round-gptq", "auto-round-awq"])
def test_auto_round(folder):
    """Its three packings hold the same numbers, each within a step of the weight it was made from."""
    checkpoint, base = open_checkpoint(SOURCES / folder), open_checkpoint(SOURCES / "base")
    reference = open_checkpoint(SOURCES / "auto-round")
    packed = [name for name, info in checkpoint.tensors.items() if info.stored_as]
    assert len(packed) == LINEARS
    for name in packed:
        values, original = checkpoint.read(name), base.read(name).astype(np.float32)
        groups = np.abs(original.reshape(len(original), -1, 32)).max(axis=2)
        assert (np.abs(values - original).reshape(*groups.shape, 32) <= groups[:, :, None] / 7.5).all(), name
        assert np.array_equal(values, reference.read(name)), name
        assert checkpoint.tensors[name].stored_as.endswith("group 32, symmetric")


@pytest.mark.parametrize("folder", ["gptqmodel", "gptqmodel-v2", "gptqmodel-asymmetric"])
def test_gptqmodel_says_what_its_own_layers_say(folder):
    """They round their products to float16; ours are exact until then."""
    checkpoint = open_checkpoint(SOURCES / folder)
    hashes = json.loads((SOURCES / folder / "hashes.json").read_text())
    assert len(hashes) == LINEARS
    for name, expected in hashes.items():
        values = np.ascontiguousarray(checkpoint.read(name).astype(np.float16))
        assert hashlib.sha256(values.tobytes()).hexdigest() == expected, name


def test_the_order_of_activations_is_refused(tmp_path):
    with pytest.raises(UnsupportedError, match="desc_act"):
        convert(SOURCES / "gptqmodel-desc-act", tmp_path / "out", "q4f16_1")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("folder", ["compressed-tensors", "auto-round", "auto-round-gptq", "auto-round-awq",
                                    "gptqmodel", "gptqmodel-v2"])
def test_they_go_into_q4f16_1_without_loss(tmp_path, folder):
    report = convert(SOURCES / folder, tmp_path / "out", "q4f16_1")
    kept = [use for use in report.routes if "codes kept" in use.route]
    assert [(use.tensors, use.is_lossless) for use in kept] == [(LINEARS, True)]
    checkpoint, cache = open_checkpoint(SOURCES / folder), TensorCache.open(tmp_path / "out")
    layer = "model.layers.0"
    parts = [checkpoint.read(f"{layer}.self_attn.{part}_proj.weight") for part in "qkv"]
    assert np.array_equal(cache.dequantize(f"{layer}.self_attn.qkv_proj"), np.concatenate(parts))
    assert np.array_equal(cache.dequantize(f"{layer}.mlp.down_proj"), checkpoint.read(f"{layer}.mlp.down_proj.weight"))
