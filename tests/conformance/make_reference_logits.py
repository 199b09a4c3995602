"""Writes reference/: what Transformers computes for the models of reference_models.py.

    python tests/conformance/make_reference_logits.py            write the files
    python tests/conformance/make_reference_logits.py --check    compare with the stored files instead

Needs torch and transformers (2.13.0 and 5.23.0 made the stored files). float32, eager attention, CPU.

logits.npz: model name -> float32 logits at positions STORED_ROWS.
rope.npz: "<model>/<length>" -> float32 inverse frequencies at that sequence length; "<model>/factor" -> the
attention factor. configs.json: each model's config as Transformers writes it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from reference_models import MODELS, STORED_ROWS, token_ids, weight
from transformers import AutoConfig, AutoModelForCausalLM

FOLDER = Path(__file__).parent / "reference"
LENGTHS = (1, 24, 25, 40, 100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored files")
    check = parser.parse_args().check
    logits: dict[str, np.ndarray] = {}
    rope: dict[str, np.ndarray] = {}
    configs: dict[str, dict] = {}
    for name, config_json in MODELS.items():
        config = AutoConfig.for_model(**json.loads(json.dumps(config_json)))
        configs[name] = json.loads(config.to_json_string())
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager",
                                                 dtype=torch.float32).eval()
        with torch.inference_mode():
            for parameter_name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(weight(name, parameter_name, tuple(parameter.shape))))
            logits[name] = model(torch.tensor([token_ids(name)])).logits[0].numpy()[STORED_ROWS]
            for length in LENGTHS:
                fresh = type(model.model.rotary_emb)(config)
                fresh(torch.zeros(1), torch.arange(length)[None])
                rope[f"{name}/{length}"] = fresh.inv_freq.float().numpy().copy()
            rope[f"{name}/factor"] = np.float64(fresh.attention_scaling)
    if check:
        compare(logits, rope)
        return
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "logits.npz", **logits)
    np.savez_compressed(FOLDER / "rope.npz", **rope)
    (FOLDER / "configs.json").write_text(json.dumps(configs, indent=1, sort_keys=True) + "\n")


def compare(logits: dict[str, np.ndarray], rope: dict[str, np.ndarray]) -> None:
    """Exit with an error unless what was computed now is what is stored, to float32 rounding."""
    for file_name, computed in (("logits.npz", logits), ("rope.npz", rope)):
        stored = np.load(FOLDER / file_name)
        if set(stored) != set(computed):
            raise SystemExit(f"{file_name}: names differ: {sorted(set(stored) ^ set(computed))}")
        worst = max(np.abs(stored[key] - computed[key]).max() / np.abs(stored[key]).max() for key in computed)
        print(f"{file_name}: {len(computed)} arrays, largest relative difference {worst:.1e}")
        if worst > 1e-5:
            raise SystemExit(f"{file_name} is not what Transformers computes now")


if __name__ == "__main__":
    main()
