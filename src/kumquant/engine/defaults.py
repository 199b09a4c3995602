"""What a model's own files say about sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import TensorCacheError
from .sampling_params import SamplingParams

_CONFIGS = ("generation_config.json", "mlc-chat-config.json")
_KEYS = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)


def default_params(folder: Path) -> SamplingParams:
    """The sampling a model's makers recommend: generation_config.json, else mlc-chat-config.json, else
    neutral.

    Raises TensorCacheError for a file that is not JSON or has a value out of range.
    """
    for name in _CONFIGS:
        path = folder / name
        if path.is_file():
            return SamplingParams(**_recommended(path))
    return SamplingParams()


def _recommended(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TensorCacheError(f"cannot be read as JSON: {error}", where=path) from error
    if not isinstance(config, dict):
        raise TensorCacheError("is not a JSON object", where=path)
    return {key: config[key] for key in _KEYS if config.get(key) is not None}
