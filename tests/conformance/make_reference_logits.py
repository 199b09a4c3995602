"""Writes reference/: what Transformers computes for the models of reference_models.py.

    PYTHONPATH=src python tests/conformance/make_reference_logits.py            write the files
    PYTHONPATH=src python tests/conformance/make_reference_logits.py --check    compare with the stored files instead

Needs torch and transformers (2.13.0 and 5.23.0 made the stored files). float32, eager attention, CPU. Each model is
written as a checkpoint, converted, and given to Transformers with every weight replaced by what the cache decodes to.

logits.npz: "<model>/<mode>" -> float32 logits at every position, the vocabulary's STORED_COLUMNS.
checkpoints.json: model -> name -> shape, as Transformers saves a model of that config.
rope.npz: "<model>/<length>" -> float32 inverse frequencies at that sequence length; "<model>/factor" -> the
attention factor. configs.json: each model's config as Transformers writes it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reference_models import (
    MODELS,
    MODES,
    STORED_COLUMNS,
    checkpoint_tensors,
    token_ids,
    unfused,
    write_checkpoint,
)
from safetensors import safe_open

from kumquant.convert import convert
from kumquant.models import TensorCache, family_of

FOLDER = Path(__file__).parent / "reference"
LENGTHS = (1, 24, 25, 40, 100)
ROPE_MODELS = ("llama", "mistral", "qwen2", "qwen3", "phi3_longrope")
LOADING = {"dtype": torch.float32, "attn_implementation": "eager"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the stored files")
    parser.add_argument("models", nargs="*", help="only these; the files are not written")
    arguments = parser.parse_args()
    logits: dict[str, np.ndarray] = {}
    rope: dict[str, np.ndarray] = {}
    configs: dict[str, Any] = {}
    checkpoints: dict[str, Any] = {}
    for name in arguments.models or MODELS:
        config = transformers.AutoConfig.for_model(**json.loads(json.dumps(MODELS[name])))
        configs[name] = json.loads(config.to_json_string())
        with tempfile.TemporaryDirectory() as folder:
            checkpoints[name] = saved_shapes(config, Path(folder) / "saved")
            logits |= {f"{name}/{mode}": values for mode, values in logits_of(name, checkpoints[name], Path(folder))}
        if name.split("_")[0] in ROPE_MODELS or name in ROPE_MODELS:
            rope |= rope_of(name, config)
        print(name, flush=True)
    if arguments.check or arguments.models:
        compare(logits, rope)
        return
    FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(FOLDER / "logits.npz", **logits)
    np.savez_compressed(FOLDER / "rope.npz", **rope)
    (FOLDER / "configs.json").write_text(json.dumps(configs, indent=1, sort_keys=True) + "\n")
    (FOLDER / "checkpoints.json").write_text(json.dumps(checkpoints, sort_keys=True) + "\n")


def saved_shapes(config: Any, folder: Path) -> dict[str, list[int]]:
    """Names and shapes of the checkpoint that Transformers writes for a config."""
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "np") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no mapping)


def logits_of(name: str, names: Collection[str], folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """names: what Transformers calls the model's tensors."""
    config_json = MODELS[name]
    family = family_of(config_json)
    plan = family.plan(family.config(config_json), names)
    source = write_checkpoint(folder / "source", config_json, checkpoint_tensors(name, plan))
    for mode in MODES:
        convert(source, folder / mode, mode)
        cache = TensorCache.open(folder / mode)
        weights = unfused(plan, {tensor.name: cache.dequantize(tensor.name) for tensor in plan})
        decoded = write_checkpoint(folder / f"{mode}-decoded", config_json, weights)
        model, loaded = transformers.AutoModelForCausalLM.from_pretrained(decoded, output_loading_info=True, **LOADING)
        missing = [key for key in loaded["missing_keys"] if "vision" not in key and "projector" not in key]
        if missing or loaded["unexpected_keys"] or loaded["mismatched_keys"]:
            raise SystemExit(f"{name}: missing {missing}, unexpected {loaded['unexpected_keys']}")
        with torch.inference_mode():
            values = model.eval()(torch.tensor([token_ids(name)])).logits[0].numpy()
        yield mode, values[:, STORED_COLUMNS].copy()


def rope_of(name: str, config: Any) -> dict[str, np.ndarray]:
    kind = type(transformers.AutoModelForCausalLM.from_config(config).model.rotary_emb)
    found = {}
    for length in LENGTHS:
        fresh = kind(config)
        fresh(torch.zeros(1), torch.arange(length)[None])
        found[f"{name}/{length}"] = fresh.inv_freq.float().numpy().copy()
    found[f"{name}/factor"] = np.float64(fresh.attention_scaling)
    return found


def compare(logits: dict[str, np.ndarray], rope: dict[str, np.ndarray]) -> None:
    """Exit with an error unless what was computed now is what is stored, to float32 rounding."""
    for file_name, computed in (("logits.npz", logits), ("rope.npz", rope)):
        stored = np.load(FOLDER / file_name)
        if not set(computed) <= set(stored):
            raise SystemExit(f"{file_name}: not stored: {sorted(set(computed) - set(stored))}")
        worst = max((np.abs(stored[key] - computed[key]).max() / np.abs(stored[key]).max() for key in computed),
                    default=0.0)
        print(f"{file_name}: {len(computed)} arrays, largest relative difference {worst:.1e}")
        if worst > 1e-5:
            raise SystemExit(f"{file_name} is not what Transformers computes now")


if __name__ == "__main__":
    main()
