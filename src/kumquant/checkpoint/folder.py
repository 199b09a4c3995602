"""A checkpoint's folder: which files hold the weights, in what order, and its config.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..json_files import read_json_object

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
# (index, single file), the first that is there counts. MLC's converter prefers the torch files.
WEIGHT_NAMES = ((INDEX_NAME, SINGLE_NAME), ("pytorch_model.bin.index.json", "pytorch_model.bin"))
CONFIG_NAME = "config.json"


def require_folder(source: str | Path) -> Path:
    """``source`` as a folder. Raises CheckpointError if it is none."""
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise CheckpointError("is a file", where=source, expected="a folder with config.json and the weights",
                              hint="Pass the checkpoint's folder.")
    raise CheckpointError("no such folder", where=source,
                          hint="Pass a folder that holds config.json and the weights, a GGUF file, or a name on the "
                               "hub (org/model).")


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of the folder, as it stands there."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise CheckpointError("no config.json", where=folder,
                              hint="A checkpoint folder holds config.json beside its safetensors files.")
    return read_json_object(path, CheckpointError)


@dataclass(frozen=True)
class WeightFiles:
    """Which files hold the weights: one, or those in the map.

    weight_map: tensor name -> file name in the order of the index's text; None for one file without an index.
    """

    index_name: str
    single_name: str
    weight_map: dict[str, str] | None


def find_weights(folder: Path) -> WeightFiles:
    """The files with the weights, safetensors before torch's. Raises CheckpointError when there are none."""
    for index_name, single_name in WEIGHT_NAMES:
        if (folder / index_name).is_file():
            return WeightFiles(index_name, single_name, _read_weight_map(folder, index_name))
        if (folder / single_name).is_file():
            return WeightFiles(index_name, single_name, None)
    raise _no_weights(folder)


def _read_weight_map(folder: Path, index_name: str) -> dict[str, str]:
    """The index. Names of files are plain names inside the folder."""
    path = folder / index_name
    weight_map = read_json_object(path, CheckpointError).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("no weight_map", where=path, expected="an object: tensor name -> file name")
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str) or not _is_plain_name(file_name):
            raise CheckpointError(f"tensor {name} is said to be in a file outside the folder", where=path,
                                  found=repr(file_name), expected="a file name without folders")
        if not (folder / file_name).is_file():
            raise CheckpointError("the index names this file, but it is missing", where=folder / file_name,
                                  hint="Download the checkpoint completely.")
    return weight_map


def _is_plain_name(name: str) -> bool:
    return name not in ("", ".", "..") and not any(char in name for char in "/\\\0")


def _no_weights(folder: Path) -> CheckpointError:
    others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pth"))
    return CheckpointError("no weights", where=folder, found=", ".join(others[:3]) or "no safetensors or torch file",
                           expected=f"{SINGLE_NAME} or {INDEX_NAME}",
                           hint=f"Add the index, or rename a single file to {SINGLE_NAME}." if others
                           else "Download the checkpoint completely.")
