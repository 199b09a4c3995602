"""Writes reference/int8_kl.json: what int8 activations cost each family's tiny random model.

    python tests/conformance/measure_int8.py

q4f32_1; for each model the mean and the largest Kullback-Leibler divergence, in nats, of the next-token distribution
with int8 activations from the one with float32 activations, over the positions of its prompt; and how often the
likeliest token is the same. Results are the same bits on every machine.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
from reference_models import MODELS, PUBLISHED, checkpoint_tensors, token_ids, write_checkpoint

from kumquant.convert import convert
from kumquant.models import TensorCache, family_of
from kumquant.runtime import Model

REFERENCE = Path(__file__).parent / "reference"


def main() -> None:
    checkpoints = json.loads((REFERENCE / "checkpoints.json").read_text())
    found = {}
    for name, config_json in (MODELS | PUBLISHED).items():
        family = family_of(config_json)
        plan = family.plan(family.config(config_json), checkpoints.get(name))
        with tempfile.TemporaryDirectory() as folder:
            source = write_checkpoint(Path(folder) / "hf", config_json, checkpoint_tensors(name, plan))
            convert(source, Path(folder) / "cache", "q4f32_1")
            model = Model(TensorCache.open(Path(folder) / "cache"), threads=1)
            exact, rounded = (model.logits(token_ids(name), activations=kind) for kind in ("float32", "int8"))
        found[name] = loss(exact, rounded)
    (REFERENCE / "int8_kl.json").write_text(json.dumps(found, indent=1) + "\n")


def loss(exact: np.ndarray, rounded: np.ndarray) -> dict[str, float]:
    """Mean and largest divergence in nats, and the share of positions with the same likeliest token."""
    p, q = log_softmax(exact), log_softmax(rounded)
    divergence = (np.exp(p) * (p - q)).sum(-1)
    return {"mean_kl": float(f"{divergence.mean():.3g}"), "max_kl": float(f"{divergence.max():.3g}"),
            "top1": round(float((exact.argmax(-1) == rounded.argmax(-1)).mean()), 3)}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


if __name__ == "__main__":
    main()
