"""Does the checkpoint hold what its family needs, and nothing else? Asked before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from ..checkpoint import Checkpoint, TensorInfo
from ..errors import CheckpointError, UnsupportedError
from ..models import CacheTensor, Family
from ..quant import SOURCE_DTYPES

_SHOWN = 5
_COMPARED_VALUES = 1 << 20


def check_sources(tensors: Sequence[CacheTensor], checkpoint: Checkpoint, family: Family) -> None:
    """Refuse missing, misshapen, unused and unreadable checkpoint tensors by name.

    MLC's converter only warns about unused tensors, also when the model needs them, and the cache is then
    silently wrong; here only names that ``family.ignored`` knows may be left over. Raises CheckpointError,
    or UnsupportedError for dtypes that cannot be converted.
    """
    missing = [name for tensor in tensors for name in tensor.sources if name not in checkpoint.tensors]
    if missing:
        what = f"tensors that a {family.model_type} model needs are missing: {_listed(missing)}"
        raise CheckpointError(what, where=checkpoint.folder,
                              hint="Is the checkpoint complete, and does its config.json belong to it?")
    for tensor in tensors:
        for name, shape in zip(tensor.sources, tensor.source_shapes, strict=True):
            found = checkpoint.tensors[name].shape
            if found != shape:
                raise CheckpointError(f"tensor {name} has another shape than config.json says",
                                      where=checkpoint.folder, found=list(found), expected=str(list(shape)))
        _check_dtypes(tensor, checkpoint)
    used = {name for tensor in tensors for name in tensor.sources}
    unused = [name for name in checkpoint.tensors if name not in used and not family.ignored(name)]
    if unused:
        what = f"a {family.model_type} model has no place for these tensors: {_listed(unused)}"
        raise CheckpointError(what, where=checkpoint.folder,
                              hint="The cache would lack them. Does config.json belong to the weights?")


def _check_dtypes(tensor: CacheTensor, checkpoint: Checkpoint) -> None:
    dtypes = {checkpoint.tensors[name].dtype for name in tensor.sources}
    for name in tensor.sources:
        info = checkpoint.tensors[name]
        if info.dtype not in SOURCE_DTYPES and info.dtype != tensor.dtype:
            raise UnsupportedError(f"tensor {name} has a dtype that weights cannot have",
                                   where=checkpoint.folder / info.file, found=info.dtype,
                                   expected=", ".join(SOURCE_DTYPES))
    if {"float16", "bfloat16"} <= dtypes:
        raise UnsupportedError(f"{tensor.name} would be fused from float16 and bfloat16 tensors",
                               where=checkpoint.folder, found=_listed(tensor.sources), expected="one dtype",
                               hint="Save the checkpoint in one dtype.")


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check_spare_head(tensors: Sequence[CacheTensor], checkpoint: Checkpoint, family: Family) -> None:
    """Refuse a head that the cache has no place for, because the config ties it, and that is not the embedding.

    MLC's converter drops it. Reads both tensors, block by block; raises CheckpointError.
    """
    used = {name for tensor in tensors for name in tensor.sources}
    embedding = checkpoint.tensors[family.embedding_source(checkpoint.tensors)]
    for name, head in checkpoint.tensors.items():
        if name in used or not family.is_head_name(name):
            continue
        if head.shape != embedding.shape or not _are_equal(checkpoint, head, embedding):
            raise CheckpointError(
                f"{name} is not the embedding, but this model's head is (tie_word_embeddings)",
                where=checkpoint.folder, found="two different matrices",
                hint='If the head is trained, say "tie_word_embeddings": false in config.json; if it is a leftover, '
                     "--compat drops it, as MLC does.",
            )


def _are_equal(checkpoint: Checkpoint, first: TensorInfo, second: TensorInfo) -> bool:
    rows, width = first.shape
    step = max(1, _COMPARED_VALUES // max(1, width))
    for begin in range(0, rows, step):
        end = min(begin + step, rows)
        left, right = (checkpoint.read_rows(info.name, width, begin, end) for info in (first, second))
        equal = np.array_equal(left.astype(np.float32), right.astype(np.float32), equal_nan=True)
        for info in (first, second):
            row_bytes = info.nbytes // rows
            checkpoint.release(info.name, begin * row_bytes, end * row_bytes)
        if not equal:
            return False
    return True
