"""Which files of a repository are needed: weights of one kind, the configs, the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import CheckpointError

# What is asked for: a tensor cache, a checkpoint to convert, or whichever there is.
Wanted = Literal["cache", "checkpoint", "any"]

MANIFESTS = ("tensor-cache.json", "ndarray-cache.json")
TWINS = ("tensor-cache-b16.json", "ndarray-cache-b16.json")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SINGLES = ("model.safetensors", "pytorch_model.bin")
CONFIGS = ("config.json", "mlc-chat-config.json", "adapter_config.json")
_SMALL = ("generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json",
          "merges.txt", "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
          "vocab.txt", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
_ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")
_SPLIT_GGUF = re.compile(r"(?P<stem>.+)-\d{5}-of-\d{5}\.gguf")
_SHOWN = 5


@dataclass(frozen=True)
class Choice:
    """Names of files. last: what makes a folder look complete, so it comes when everything else is there."""

    weights: tuple[str, ...]
    small: tuple[str, ...]
    last: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.small, *self.weights, *self.last)


def choose(names: Collection[str], read_json: Callable[[str], dict[str, Any]], wanted: Wanted, where: str) -> Choice:
    """The files to fetch out of ``names``. read_json: fetches and parses one of them.

    A cache is preferred to a checkpoint; safetensors to torch files, those to a single GGUF file. Raises
    CheckpointError if what is wanted is not there.
    """
    last = [name for name in CONFIGS if name in names]
    small = [name for name in _SMALL if name in names]
    manifest = next((name for name in MANIFESTS if name in names), None)
    if manifest is not None and wanted != "checkpoint":
        shards = [record.get("dataPath") for record in _list(read_json(manifest), "records", where, manifest)]
        twins = [name for name in TWINS if name in names]
        return Choice(_plain(shards, names, where, manifest), (*small, *twins), (*last, manifest))
    if wanted == "cache":
        raise CheckpointError("no tensor cache on the hub under this name", where=where,
                              found=_shown(names), expected=f"a repository with {MANIFESTS[0]}",
                              hint=f"If it is a checkpoint, convert it first: kumquant convert {where} -o FOLDER")
    weights, index = _weights(names, read_json, where)
    return Choice(weights, tuple(small), (*last, *index))


def _weights(names: Collection[str], read_json: Callable[[str], dict[str, Any]],
             where: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The weights of a checkpoint, and its index if it has one."""
    for index, single in zip(_INDEXES, _SINGLES):
        if index in names:
            weight_map = read_json(index).get("weight_map")
            files = list(weight_map.values()) if isinstance(weight_map, dict) else []
            return _plain(files, names, where, index), (index,)
        if single in names:
            return (single,), ()
    adapter = next((name for name in _ADAPTERS if name in names), None)
    if adapter is not None:
        return (adapter,), ()
    files = sorted(name for name in names if name.endswith(".gguf") and "/" not in name)
    models = {match["stem"] if (match := _SPLIT_GGUF.fullmatch(name)) else name for name in files}
    if len(models) == 1:
        return tuple(files), ()
    raise CheckpointError("several GGUF files, and it is not clear which one is meant" if models else
                          "no weights that could be converted", where=where, found=_shown(files or names),
                          expected="safetensors, torch files or one GGUF file",
                          hint="Download the file you want and pass its path." if models else None)


def _plain(files: list[Any], names: Collection[str], where: str, index: str) -> tuple[str, ...]:
    """The different files that an index lists, each a plain name that the repository has."""
    if not files:
        raise CheckpointError("the index lists no files", where=f"{where}: {index}")
    for file in files:
        if not isinstance(file, str) or not re.fullmatch(r"[\w-][\w.-]*", file):
            raise CheckpointError("the index names a file outside the repository", where=f"{where}: {index}",
                                  found=repr(file)[:80], expected="a plain file name")
        if file not in names:
            raise CheckpointError("the index names a file that is not there", where=f"{where}: {index}", found=file)
    return tuple(dict.fromkeys(files))


def _list(document: dict[str, Any], key: str, where: str, index: str) -> list[dict[str, Any]]:
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CheckpointError(f"no list of {key}", where=f"{where}: {index}")
    return value


def _shown(names: Collection[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "nothing") + more
