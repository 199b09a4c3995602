"""Pooling: how the hidden states of a text become its one vector, as a model folder says it.

Sources: the modules of a sentence-transformers folder (modules.json, 1_Pooling/config.json,
sentence_bert_config.json, config_sentence_transformers.json), and "embedding_metadata" of mlc-chat-config.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import TensorCacheError, UnsupportedError
from ..json_files import read_json_object, read_optional_json_object

MODULES_NAME = "modules.json"
PROMPTS_NAME = "config_sentence_transformers.json"
LENGTH_NAME = "sentence_bert_config.json"
CHAT_CONFIG_NAME = "mlc-chat-config.json"

# The flags of 1_Pooling/config.json in the order in which sentence-transformers puts the results side by side.
_FLAGS = {
    "pooling_mode_cls_token": "cls", "pooling_mode_max_tokens": "max", "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len", "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
_OTHER_NAMES = {"lasttoken": "last", "mean_sqrt_len_tokens": "mean_sqrt_len"}
MODES = tuple(_FLAGS.values())


@dataclass(frozen=True)
class Pooling:
    """From hidden states to a vector.

    modes: of ``MODES``; the results of several are put side by side. normalize: to unit length afterwards.
    max_length: a text's tokens at most, special ones included (longer texts are cut); None for the model's own limit.
    lowercase: texts are put in lower case first. prompts: name -> what is put before a text. default_prompt: the name
    of the prompt that every text gets unless another is asked for.
    """

    modes: tuple[str, ...]
    normalize: bool
    max_length: int | None = None
    lowercase: bool = False
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


def load_pooling(folder: Path) -> Pooling | None:
    """What the folder says: modules.json first, then mlc-chat-config.json; None if neither says anything.

    Raises TensorCacheError for damaged files, UnsupportedError for modules that Kumquant does not have.
    """
    if (folder / MODULES_NAME).is_file():
        return _from_modules(folder)
    metadata = read_optional_json_object(folder / CHAT_CONFIG_NAME, TensorCacheError).get("embedding_metadata")
    if not isinstance(metadata, dict):
        return None
    where = f"{folder / CHAT_CONFIG_NAME}: embedding_metadata"
    return Pooling((_known(metadata.get("pooling_strategy", "cls"), where),),
                   _flag(metadata, "normalize", True, where))


def pooling_files(folder: Path) -> tuple[str, ...]:
    """Names of the files in ``folder`` that ``load_pooling`` reads, mlc-chat-config.json aside; "/" between folders."""
    if not (folder / MODULES_NAME).is_file():
        return ()
    modules = [path for kind, path in _modules(folder) if kind == "Pooling"]
    names = (MODULES_NAME, LENGTH_NAME, PROMPTS_NAME, *(f"{path}/config.json" for path in modules))
    return tuple(name for name in names if (folder / name).is_file())


def _from_modules(folder: Path) -> Pooling:
    modules = _modules(folder)
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedError(
            "a sentence encoder of other modules", where=folder / MODULES_NAME, found=", ".join(kinds),
            expected="Transformer, Pooling and perhaps Normalize",
            hint="Kumquant would leave a module out and compute other vectors; it refuses instead.",
        )
    sizes = read_optional_json_object(folder / LENGTH_NAME, TensorCacheError)
    prompts, default_prompt = _prompts(folder / PROMPTS_NAME)
    path = folder / modules[1][1] / "config.json"
    pooling = read_json_object(path, TensorCacheError)
    if prompts and not _flag(pooling, "include_prompt", True, path):
        raise UnsupportedError("leaves prompts out of the pooling", where=f"{path}: include_prompt", found="false")
    return Pooling(
        modes=_modes(pooling, path), normalize="Normalize" in kinds, max_length=_length(sizes, folder / LENGTH_NAME),
        lowercase=_flag(sizes, "do_lower_case", False, folder / LENGTH_NAME),
        prompts=prompts, default_prompt=default_prompt,
    )


def _modules(folder: Path) -> list[tuple[str, str]]:
    """(kind, folder) of each module, in order; a kind is the last part of its class's name."""
    path = folder / MODULES_NAME
    try:
        modules = json.loads(path.read_bytes().decode("utf-8-sig"))
        found = [(str(module["type"]).rpartition(".")[2], str(module["path"])) for module in modules]
    except OSError as reason:
        raise TensorCacheError(f"cannot read the file ({reason.strerror})", where=path) from reason
    except (ValueError, TypeError, KeyError, RecursionError) as reason:
        raise TensorCacheError("not a list of modules with a type and a path", where=path,
                               hint="Fetch the file again.") from reason
    for _, place in found:
        if PurePosixPath(place).is_absolute() or ".." in PurePosixPath(place).parts:
            raise TensorCacheError("a module lies outside the folder", where=path, found=repr(place))
    return found


def _prompts(path: Path) -> tuple[dict[str, str], str | None]:
    """The prompts that are not empty, and the name of the one for every text."""
    values = read_optional_json_object(path, TensorCacheError)
    named = values.get("prompts") or {}
    if not isinstance(named, dict) or not all(isinstance(text, str) for text in named.values()):
        raise TensorCacheError('the key "prompts" is not an object of texts', where=path)
    default = values.get("default_prompt_name")
    if default is not None and default not in named:
        raise TensorCacheError("no such prompt", where=f"{path}: default_prompt_name", found=repr(default),
                               expected=", ".join(named) or None)
    prompts = {name: text for name, text in named.items() if text}
    return prompts, default if default in prompts else None


def _modes(pooling: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    named = pooling.get("pooling_mode")  # what newer files have instead of the flags
    if isinstance(named, (str, list)):
        names = [named] if isinstance(named, str) else named
        return tuple(_known(name, path) for name in names)
    modes = tuple(mode for flag, mode in _FLAGS.items() if _flag(pooling, flag, False, path))
    if not modes:
        raise UnsupportedError("no pooling mode that Kumquant has", where=path, expected=", ".join(_FLAGS))
    return modes


def _known(name: Any, where: object) -> str:
    mode = _OTHER_NAMES.get(str(name), str(name))
    if mode not in MODES:
        raise UnsupportedError("unknown pooling mode", where=where, found=repr(name), expected=", ".join(MODES))
    return mode


def _flag(values: Mapping[str, Any], key: str, default: bool, where: object) -> bool:
    value = values.get(key, default)
    if not isinstance(value, bool):
        raise TensorCacheError(f'the key "{key}" is not true or false', where=where, found=repr(value)[:80])
    return value


def _length(sizes: Mapping[str, Any], where: object) -> int | None:
    value = sizes.get("max_seq_length")
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise TensorCacheError('the key "max_seq_length" makes no sense', where=where, found=repr(value)[:80],
                               expected="a positive integer")
    return value
