"""A cache as a Hugging Face checkpoint: unfused, dequantized, with its configs and tokenizer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import CheckpointError
from ..files import atomic_write, fsync_dir, temporary_name, translated_os_errors, write_all
from ..json_files import read_json_object
from ..models import TensorCache
from ..progress import Progress
from ..tokenizer import TOKENIZER_FILES
from .routes import ExportRoute, summarize
from .sources import SourceTensor, float_blocks, is_quantized, sources_of, stored_dtype

_WEIGHTS_NAME = "model.safetensors"
_COPIED = ("generation_config.json", *TOKENIZER_FILES, "special_tokens_map.json", "chat_template.jinja",
           "chat_template.json")
_TAGS: dict[str, tuple[str, np.dtype[Any]]] = {
    "float32": ("F32", np.dtype("<f4")), "float16": ("F16", np.dtype("<f2")),
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
}


def write_safetensors_model(cache: TensorCache, folder: Path, warnings: list[str],
                            progress: Progress) -> list[ExportRoute]:
    """Write the folder; the weights come last, under a temporary name first. Raises like ``export``."""
    config_path = cache.folder / "config.json"
    if not config_path.is_file():
        raise CheckpointError("the cache has no config.json, which transformers needs", where=cache.folder,
                              hint="Copy the original model's config.json into the folder.")
    config = _text_config(read_json_object(config_path, CheckpointError))
    sources = sorted(sources_of(cache), key=lambda source: source.name)
    dtypes = [_dtype(cache, source) for source in sources]
    made = not folder.exists()
    with translated_os_errors("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    partial = temporary_name(folder / _WEIGHTS_NAME)
    try:
        progress.start(sum(_nbytes(*pair) for pair in zip(sources, dtypes, strict=True)), "export")
        _write_weights(partial, cache, sources, dtypes, progress)
        config |= {"torch_dtype": max(dtypes, key=dtypes.count)}
        config.pop("dtype", None)
        atomic_write(folder / "config.json", json.dumps(config, indent=2))
        for name in _COPIED:
            if (cache.folder / name).is_file():
                with translated_os_errors("copy the file", folder / name):
                    shutil.copyfile(cache.folder / name, folder / name)
        with translated_os_errors("rename the file", folder / _WEIGHTS_NAME):
            os.replace(partial, folder / _WEIGHTS_NAME)
        fsync_dir(folder)
    finally:
        partial.unlink(missing_ok=True)
        progress.finish()
        if made and not any(folder.iterdir()):
            folder.rmdir()
    return summarize((_route(cache, source, dtype), True, _nbytes(source, dtype))
                     for source, dtype in zip(sources, dtypes, strict=True))


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of what a cache holds of a model that also sees: its text part."""
    text = config.get("text_config")
    if config.get("model_type") != "gemma3" or not isinstance(text, dict):
        return config
    return {**text, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}


def _dtype(cache: TensorCache, source: SourceTensor) -> str:
    """Numbers stay as they are stored; what codes stand for needs float32 to be exact."""
    return "float32" if is_quantized(cache, source.tensor) else stored_dtype(cache, source.tensor)


def _route(cache: TensorCache, source: SourceTensor, dtype: str) -> str:
    return f"to {dtype}: {'dequantized' if is_quantized(cache, source.tensor) else 'kept'}"


def _nbytes(source: SourceTensor, dtype: str) -> int:
    values = 1
    for extent in source.shape:
        values *= extent
    return values * _TAGS[dtype][1].itemsize


def _write_weights(path: Path, cache: TensorCache, sources: list[SourceTensor], dtypes: list[str],
                   progress: Progress) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for source, dtype in zip(sources, dtypes, strict=True):
        end = offset + _nbytes(source, dtype)
        header[source.name] = {"dtype": _TAGS[dtype][0], "shape": list(source.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with translated_os_errors("write the file", path), path.open("wb", buffering=0) as file:
        write_all(file.fileno(), len(text).to_bytes(8, "little") + text)
        for source, dtype in zip(sources, dtypes, strict=True):
            for block in _blocks(cache, source):
                write_all(file.fileno(), np.ascontiguousarray(block.astype(_TAGS[dtype][1])).view(np.uint8).data)
            progress.advance(_nbytes(source, dtype), source.name)
        os.fsync(file.fileno())


def _blocks(cache: TensorCache, source: SourceTensor) -> Iterator[np.ndarray]:
    """The tensor's values in the checkpoint's order; one that is stored the other way round comes whole."""
    if source.tensor.transposed:
        yield np.concatenate(list(float_blocks(cache, source))).T
    else:
        yield from float_blocks(cache, source)
