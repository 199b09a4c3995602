"""What a model is measured against: another cache, or a checkpoint with its weights in float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..checkpoint import Checkpoint, is_gguf, open_checkpoint
from ..errors import CheckpointError
from ..hub import local_folder
from ..models import CacheTensor, TensorCache, family_of
from ..runtime import Model
from ..tensor_cache import MANIFEST_NAMES


def open_reference(path: Path, threads: int) -> Model:
    """The model at ``path``: a cache (a folder with a manifest, or a manifest), else a checkpoint; or on the hub."""
    path = local_folder(path)
    if (path.is_file() and not is_gguf(path)) or any((path / name).exists() for name in MANIFEST_NAMES):
        return Model(TensorCache.open(path), threads=threads)
    return _from_checkpoint(path, threads)


def _from_checkpoint(folder: Path, threads: int) -> Model:
    """A checkpoint's own weights, widened to float32. All of them are in memory at once."""
    checkpoint = open_checkpoint(folder)
    family = family_of(checkpoint.config)
    config = family.config(checkpoint.config)
    plan = family.plan(config, checkpoint.tensors)
    arrays = {tensor.name: _fused(checkpoint, tensor) for tensor in plan}
    return Model.from_arrays(family.spec(config, arrays), arrays, threads=threads)


def _fused(checkpoint: Checkpoint, tensor: CacheTensor) -> np.ndarray:
    """A cache tensor from its sources. Raises CheckpointError if one is missing or misshapen."""
    parts = []
    for name, shape in zip(tensor.sources, tensor.source_shapes):
        info = checkpoint.tensors.get(name)
        if info is None:
            raise CheckpointError("a tensor of the model is missing", where=checkpoint.folder, expected=name)
        if info.shape != shape:
            raise CheckpointError("the shape contradicts config.json", where=f"{checkpoint.folder}: {name}",
                                  found=info.shape, expected=shape)
        parts.append(checkpoint.read(name).astype(np.float32))
        checkpoint.release(name)
    return tensor.assembled(parts)
