"""A tokenizer.json rebuilt from a GGUF file's metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tokenizer_files_from_gguf(metadata: Mapping[str, Any], where: str) -> dict[str, str]:
    """Name -> text of the tokenizer's files, none if the metadata describe no tokenizer."""
    return {}
