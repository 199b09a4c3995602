"""Writes reference/hidden_states.npz: what Transformers computes for the models of reference_encoders.py.

    python tests/conformance/make_reference_hidden_states.py            write the files
    python tests/conformance/make_reference_hidden_states.py --check    compare with the stored files instead

Needs torch and transformers (2.13.0 and 5.23.0 made the stored files). float32, eager attention, CPU.

hidden_states.npz: "<model>/<length>" -> last hidden states, float32 (length, hidden). encoder_names.json: the names and
shapes of the tensors of a checkpoint, with the pooler and, as "<model>/pretraining", as part of the training model.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from reference_encoders import ENCODERS, LENGTHS, token_ids, weight
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

FOLDER = Path(__file__).parent / "reference"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored files")
    check = parser.parse_args().check
    states: dict[str, np.ndarray] = {}
    names: dict[str, dict[str, list[int]]] = {}
    for name, config_json in ENCODERS.items():
        config = AutoConfig.for_model(**config_json)
        model = AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
        training = AutoModelForPreTraining.from_config(config)
        for label, module in ((name, model), (f"{name}/pretraining", training)):
            names[label] = {key: list(tensor.shape) for key, tensor in module.state_dict().items()}
        with torch.inference_mode():
            for parameter_name, parameter in model.named_parameters():
                parameter.copy_(torch.from_numpy(weight(name, parameter_name, tuple(parameter.shape))))
            for length in LENGTHS:
                result = model(torch.tensor([token_ids(name, length)]))
                states[f"{name}/{length}"] = result.last_hidden_state[0].numpy()
    if check:
        compare(states)
        return
    np.savez_compressed(FOLDER / "hidden_states.npz", **states)
    (FOLDER / "encoder_names.json").write_text(json.dumps(names) + "\n")


def compare(states: dict[str, np.ndarray]) -> None:
    """Exit with an error unless what was computed now is what is stored, to float32 rounding."""
    stored = np.load(FOLDER / "hidden_states.npz")
    if set(stored) != set(states):
        raise SystemExit(f"names differ: {sorted(set(stored) ^ set(states))}")
    worst = max(np.abs(stored[key] - states[key]).max() / np.abs(stored[key]).max() for key in states)
    print(f"hidden_states.npz: {len(states)} arrays, largest relative difference {worst:.1e}")
    if worst > 1e-5:
        raise SystemExit("hidden_states.npz is not what Transformers computes now")


if __name__ == "__main__":
    main()
