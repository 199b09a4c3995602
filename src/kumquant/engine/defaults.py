"""What a model's own files say about sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import RequestError, TensorCacheError
from ..json_files import read_json_object
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
            try:
                return SamplingParams(**_recommended(path))
            except RequestError as error:  # the file's fault, not the caller's
                raise TensorCacheError(str(error), where=path, hint="Correct or remove the file.") from error
    return SamplingParams()


def _recommended(path: Path) -> dict[str, Any]:
    config = read_json_object(path, TensorCacheError)
    return {key: config[key] for key in _KEYS if config.get(key) is not None}
