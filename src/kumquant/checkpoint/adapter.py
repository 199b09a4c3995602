"""LoRA adapters in PEFT's format: what they change in which weight.

A folder holds adapter_config.json and adapter_model.safetensors (or .bin). For a linear layer the weight becomes
W + scale * B @ A, with A (r, in), B (out, r) and scale = lora_alpha / r, or lora_alpha / sqrt(r) for rank-stabilized
adapters; rank_pattern and alpha_pattern give layers their own r and alpha. Embeddings have A (r, tokens) and
B (hidden, r). Other tensors of the file (modules_to_save) replace the model's.
Source: PEFT, peft/tuners/lora/layer.py and peft/utils/save_and_load.py.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, UnsupportedError
from ..json_files import read_json_object
from .checkpoint import CheckpointFile
from .tensors import MappedCheckpoint, open_file

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAMES = ("adapter_model.safetensors", "adapter_model.bin")

# Keys that change what an adapter means, with the values under which it is a plain one.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",), "bias": (None, "none"), "use_dora": (None, False), "lora_bias": (None, False),
    "use_qalora": (None, False), "target_parameters": (None, []), "trainable_token_indices": (None,),
    "layer_replication": (None,), "alora_invocation_tokens": (None,), "use_bdlora": (None,), "arrow_config": (None,),
    "kasa_config": (None,), "monteclora_config": (None,), "velora_config": (None,),
    # Other ways to start change the base's weights, which the adapter's file does not say.
    "init_lora_weights": (None, True, False, "gaussian", "eva", "orthogonal"),
}
_KINDS = {"lora_A": "A", "lora_B": "B", "lora_embedding_A": "embedding A", "lora_embedding_B": "embedding B"}
# Patterns are an adapter's own; those below match a name of any length in a blink.
_LONGEST_PATTERN, _MOST_REPEATS = 400, 3
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_FACTOR = re.compile(r"(?P<module>.+)\.(?P<kind>lora_(?:embedding_)?[AB])(?:\.default)?(?:\.weight)?")


@dataclass(frozen=True)
class Delta:
    """What is added to a weight: scale * left @ right. left (rows, r), right (r, width), float32."""

    scale: float
    left: np.ndarray
    right: np.ndarray

    @property
    def rank(self) -> int:
        return self.left.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    def rows(self, begin: int, end: int) -> np.ndarray:
        """Rows [begin, end) of it, float32."""
        product: np.ndarray = self.left[begin:end] @ self.right
        product *= np.float32(self.scale)
        return product


@dataclass(frozen=True)
class Adapter:
    """An open adapter. deltas, replacements: by the name of the weight, as the adapter knows it.

    file: its weights, named by their absolute path, with the config in its hash.
    """

    folder: Path
    file: CheckpointFile
    deltas: Mapping[str, Delta]
    replacements: Mapping[str, np.ndarray]


def open_adapter(folder: str | Path) -> Adapter:
    """Open a PEFT folder. Its matrices are small and read at once, as float32.

    Raises CheckpointError (missing, damaged, contradictory), UnsupportedError for another kind of adapter.
    """
    folder = Path(folder)
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(f"no {CONFIG_NAME}", where=folder,
                              expected="the folder of a LoRA adapter, as PEFT saves it")
    config = read_json_object(path, CheckpointError)
    _check_kind(config, path)
    name = next((name for name in WEIGHTS_NAMES if (folder / name).is_file()), None)
    if name is None:
        raise CheckpointError(f"no {WEIGHTS_NAMES[0]}", where=folder, hint="Download the adapter completely.")
    weights = folder / name
    stored = open_file(folder, name, config)
    factors, replacements = _sorted_out(stored)
    deltas = {module: _delta(module, parts, config, weights) for module, parts in factors.items()}
    if not deltas and not replacements:
        raise CheckpointError("the adapter is empty", where=weights)
    identity = hashlib.sha256(json.dumps([stored.files[0].header_sha256, config]).encode()).hexdigest()
    file = replace(stored.files[0], name=str(weights.resolve()), header_sha256=identity)
    return Adapter(folder, file, {f"{module}.weight": delta for module, delta in deltas.items()}, replacements)


def _check_kind(config: Mapping[str, Any], path: Path) -> None:
    for key, plain in _PLAIN.items():
        if config.get(key) not in plain:
            raise UnsupportedError("an adapter of this kind cannot be merged", where=f"{path}: {key}",
                                   found=repr(config.get(key))[:80],
                                   expected=" or ".join("no such key" if v is None else repr(v) for v in plain),
                                   hint="Merge it with PEFT (merge_and_unload) and convert the merged model.")


def _sorted_out(stored: MappedCheckpoint) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """The factors by module, and the tensors that replace others by their name."""
    factors: dict[str, dict[str, np.ndarray]] = {}
    replacements: dict[str, np.ndarray] = {}
    for name in stored.tensors:
        values = stored.read(name)
        plain_name = name.removeprefix("base_model.model.")
        match = _FACTOR.fullmatch(plain_name)
        if match:
            factors.setdefault(match["module"], {})[_KINDS[match["kind"]]] = values.astype(np.float32)
        elif "lora_" in plain_name:
            raise UnsupportedError("the adapter has a tensor of a kind that cannot be merged",
                                   where=stored.folder / stored.files[0].name, found=name,
                                   expected=", ".join(_KINDS))
        else:
            plain_name = re.sub(r"\.(?:base_layer|modules_to_save(?:\.default)?)\.", ".", plain_name)
            replacements[plain_name] = values
    return factors, replacements


def _delta(module: str, parts: Mapping[str, np.ndarray], config: Mapping[str, Any], weights: Path) -> Delta:
    if parts.keys() not in ({"A", "B"}, {"embedding A", "embedding B"}):
        raise CheckpointError(f"the adapter's layer {module} is incomplete", where=weights,
                              found=", ".join(parts), expected="A and B", hint="Download the adapter again.")
    is_embedding = "embedding A" in parts
    a, b = (parts["embedding A"], parts["embedding B"]) if is_embedding else (parts["A"], parts["B"])
    rank = _of_module(config, "r", "rank_pattern", module)
    alpha = _of_module(config, "lora_alpha", "alpha_pattern", module)
    if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
        raise CheckpointError(f"the matrices of {module} do not have the rank that {CONFIG_NAME} says", where=weights,
                              found=f"A {list(a.shape)}, B {list(b.shape)}", expected=f"rank {rank:g}",
                              hint="Do the two files of the adapter belong together?")
    scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    is_transposed = is_embedding or bool(config.get("fan_in_fan_out"))
    left, right = (a.T, b.T) if is_transposed else (b, a)
    return Delta(scale, np.ascontiguousarray(left), np.ascontiguousarray(right))


def _of_module(config: Mapping[str, Any], key: str, pattern_key: str, module: str) -> float:
    """The rank or alpha of a module: of the first pattern that its name ends with, else the adapter's."""
    value = config.get(key)
    where = key
    patterns = config.get(pattern_key) or {}
    if not isinstance(patterns, dict):
        raise CheckpointError("not an object", where=f"{CONFIG_NAME}: {pattern_key}", found=repr(patterns)[:80])
    for pattern, own in patterns.items():
        if len(pattern) > _LONGEST_PATTERN or _REPEATED_GROUP.search(pattern) or (
                sum(map(pattern.count, "*+{")) > _MOST_REPEATS):
            raise UnsupportedError("a pattern that may take forever to match", where=f"{CONFIG_NAME}: {pattern_key}",
                                   found=repr(pattern)[:80], hint="Write the modules' names out.")
        try:
            is_match = re.fullmatch(rf"(.*\.)?({pattern})", module) is not None
        except re.error as error:
            raise CheckpointError(f"not a pattern ({error})", where=f"{CONFIG_NAME}: {pattern_key}",
                                  found=pattern) from error
        if is_match:
            value, where = own, f"{pattern_key}, {pattern}"
            break
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise CheckpointError("not a positive number", where=f"{CONFIG_NAME}: {where}", found=repr(value)[:80])
    return value
