"""What a cache folder says about its model: config.json, or MLC's mlc-chat-config.json where that is
missing."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, TensorCacheError, UnsupportedError
from ..json_files import read_json_object, read_optional_json_object
from ..schemes import Scheme, scheme_named
from ..tensor_cache import DEFAULT_BLOCK
from .config import ModelConfig
from .family import Family
from .registry import FAMILIES, family_of

CONFIG_NAME = "config.json"
CHAT_CONFIG_NAME = "mlc-chat-config.json"

# With a sliding window MLC's file gives no length at all. Mistral 7B, the model this layout comes from, has
# 32768.
_LENGTH_WITH_WINDOW = 32768
_MODE_IN_NAME = re.compile(r"(?<![A-Za-z0-9])q\d+b?f\d\d(?:_(?:\d|ft|autoawq))?(?![A-Za-z0-9_])")
_HINT = f"Copy the original model's {CONFIG_NAME} into the folder."


def load_model_config(folder: Path, names: Collection[str] | None = None) -> tuple[Family, ModelConfig]:
    """The family and hyper-parameters of a cache folder.

    config.json is read if it is there; mlc-chat-config.json (of any year) otherwise. names: the records of
    the cache; they tell whether an older mlc-chat-config.json, without tie_word_embeddings, means a tied
    head. Raises CheckpointError or UnsupportedError naming the file and the key if neither file says all the
    model needs.
    """
    path = folder / CONFIG_NAME
    if path.is_file():
        config_json = read_json_object(path, CheckpointError)
        family = family_of(config_json, _converted_as(folder), where=str(path))
        return family, family.config(config_json, where=str(path))
    path = folder / CHAT_CONFIG_NAME
    if not path.is_file():
        raise CheckpointError(
            f"neither {CONFIG_NAME} nor {CHAT_CONFIG_NAME} is there", where=folder,
            hint=f"The model's dimensions are in one of them. {_HINT}",
        )
    return _from_chat_config(read_json_object(path, CheckpointError), str(path), names)


def _converted_as(folder: Path) -> str | None:
    """The family that the cache was made as, if it is one: config.json is the source's and may say another."""
    path = folder / CHAT_CONFIG_NAME
    said = read_json_object(path, CheckpointError).get("model_type") if path.is_file() else None
    return said if said in FAMILIES else None


def has_model_config(folder: Path) -> bool:
    """Whether the folder has a file that could describe its model."""
    return (folder / CONFIG_NAME).is_file() or (folder / CHAT_CONFIG_NAME).is_file()


def load_scheme(folder: Path, quantization: str | None = None) -> Scheme | None:
    """The mode of a cache folder: ``quantization``, else what mlc-chat-config.json says, else None.

    Files of 2023 give it as the end of a name: "local_id" or "model_lib" =
    "RedPajama-INCITE-Chat-3B-v1-q4f16_1". Raises UnsupportedError for a mode that Kumquant does not have.
    """
    if quantization is not None:
        return scheme_named(quantization)
    path = folder / CHAT_CONFIG_NAME
    if not path.is_file():
        return None
    chat_config = read_json_object(path, TensorCacheError)
    mode = chat_config.get("quantization")
    if isinstance(mode, str):
        return scheme_named(mode)
    for key in ("local_id", "model_lib"):
        found = _MODE_IN_NAME.search(str(chat_config.get(key, "")))
        if found:
            return scheme_named(found[0])
    return None


def load_block_size(folder: Path) -> tuple[int, int]:
    """Rows and columns that share a scale in block-scaled float8 weights, as the folder's configs say."""
    for name, keys in ((CONFIG_NAME, ("quantization_config",)), (CHAT_CONFIG_NAME, ("model_config",)),
                       (CHAT_CONFIG_NAME, ("model_config", "quantization_config"))):
        holder: Any = read_optional_json_object(folder / name, CheckpointError)
        for key in keys:
            holder = holder.get(key) if isinstance(holder, dict) else None
        size = holder.get("weight_block_size") if isinstance(holder, dict) else None
        if isinstance(size, list) and len(size) == 2 and all(type(extent) is int and extent > 0 for extent in size):
            return size[0], size[1]
    return DEFAULT_BLOCK


def _from_chat_config(chat_config: dict[str, Any], where: str,
                      names: Collection[str] | None) -> tuple[Family, ModelConfig]:
    model_config = chat_config.get("model_config")
    if not isinstance(model_config, dict):
        raise UnsupportedError(
            'no "model_config": head counts, rope base and norm epsilon are nowhere in the folder',
            where=where,
            hint=f"Files of early 2023 are like this. {_HINT}",
        )
    family = family_of({"model_type": chat_config.get("model_type", model_config.get("model_type"))},
                       where=where)
    where = f"{where} (model_config)"
    config_json = _as_config_json(model_config, chat_config, family)
    needed = {"max_position_embeddings": 'a "context_window_size"'}
    if not (family.learned_positions or "rope_theta" in family.defaults or "rope_theta" in family.aliases):
        needed["rope_theta"] = '"position_embedding_base" or "rope_theta"'
    if family.window == "all layers":
        needed["sliding_window"] = '"sliding_window_size"'
    needed |= {key: f'"{key}"' for key in family.not_in_chat_config}
    for key, spelling in needed.items():
        if key not in config_json:
            raise UnsupportedError(f"{spelling} is needed, and the file does not have it", where=where,
                                   hint=_HINT)
    num_devices = config_json.get("tensor_parallel_shards", 1)
    if num_devices != 1:
        raise UnsupportedError("the cache is split for several devices",
                               where=f"{where}: tensor_parallel_shards",
                               found=num_devices, expected=1)
    config = family.config(config_json, where=where)
    if "tie_word_embeddings" not in config_json and names is not None and not family.names_hold_head(names):
        config = replace(config, tie_word_embeddings=True)
    return family, config


def _as_config_json(model_config: Mapping[str, Any], chat_config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """MLC's spelling of the hyper-parameters in that of config.json.

    The keys of the whole file win over those in "model_config", as they do when MLC compiles a model; but not for a
    window that some layers have beside the context.
    """
    text = model_config.get("text_config")
    result = {**model_config, **(text if isinstance(text, dict) else {})}
    result.pop("text_config", None)
    for key in ("vocab_size", "context_window_size", "sliding_window_size"):
        is_own = key == "sliding_window_size" and family.chat_window in ("beside", "context")
        if chat_config.get(key) is not None and not is_own:
            result[key] = chat_config[key]
    if "position_embedding_base" in result:
        result["rope_theta"] = result.pop("position_embedding_base")
    window = result.pop("sliding_window_size", None)
    if window is not None:
        result["sliding_window"] = None if window == -1 else window
    length = result.pop("context_window_size", result.get("max_window_size"))
    if length == -1:
        length = max(_LENGTH_WITH_WINDOW, 8 * window) if isinstance(window, int) and window > 0 else None
    if length is not None:
        result["max_position_embeddings"] = length
    return result
