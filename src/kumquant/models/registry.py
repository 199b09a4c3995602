"""The table of families. Adding one is a file beside this one and a line here (docs/adding-a-family.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, UnsupportedError
from .bert import BERT, BERT_BGE
from .family import Family
from .llama import LLAMA
from .mistral import MISTRAL
from .qwen2 import QWEN2
from .qwen3 import QWEN3

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3, BERT, BERT_BGE)}


def family_of(config: Mapping[str, Any], model_type: str | None = None, where: str = "config.json") -> Family:
    """The family of a config: ``model_type``, or what the config says. where: the file, for errors.

    Raises CheckpointError if the config has no model_type, UnsupportedError if the family is not known.
    """
    name = model_type if model_type is not None else config.get("model_type")
    if not isinstance(name, str):
        raise CheckpointError('the key "model_type" is missing or not a string', where=where,
                              found=None if name is None else repr(name),
                              expected=f"one of {', '.join(FAMILIES)}",
                              hint="Is this the config.json of a language model?")
    if name not in FAMILIES:
        raise UnsupportedError("unknown model family", where=f"{where}: model_type", found=repr(name),
                               expected=", ".join(FAMILIES),
                               hint="docs/adding-a-family.md says how to add a family.")
    return FAMILIES[name]
