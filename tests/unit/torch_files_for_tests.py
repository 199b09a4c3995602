"""Torch files as torch.save lays them out, written with the standard library alone."""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np

STORAGES = {np.dtype(np.float32): "FloatStorage", np.dtype(np.float16): "HalfStorage",
            np.dtype(ml_dtypes.bfloat16): "BFloat16Storage", np.dtype(np.int64): "LongStorage",
            np.dtype(np.int32): "IntStorage"}


class Storage:
    def __init__(self, key: str, array: np.ndarray, num_elements: int | None = None) -> None:
        self.key, self.array = key, array
        self.num_elements = array.size if num_elements is None else num_elements


class Tensor:
    """What pickles as torch's tensors do."""

    def __init__(self, storage: Storage, shape: tuple[int, ...], offset: Any = 0,
                 stride: tuple[int, ...] | None = None) -> None:
        self.storage, self.shape, self.offset = storage, shape, offset
        self.stride = tuple(int(np.prod(shape[axis + 1:])) for axis in range(len(shape))) if stride is None else stride

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (self.storage, self.offset, self.shape, self.stride, False, OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, Storage):
            return None
        storage_type = getattr(sys.modules["torch"], STORAGES[obj.array.dtype])
        return "storage", storage_type, obj.key, "cpu", obj.num_elements


def _fake_torch() -> dict[str, types.ModuleType]:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for name in STORAGES.values():
        setattr(torch, name, type(name, (), {"__module__": "torch", "__qualname__": name}))

    def rebuild() -> None: ...

    rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = rebuild  # type: ignore[attr-defined]
    torch._utils = utils  # type: ignore[attr-defined]
    return {"torch": torch, "torch._utils": utils}


def pickled(value: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    with mock.patch.dict(sys.modules, _fake_torch()):
        _Pickler(buffer, protocol).dump(value)
    return buffer.getvalue()


def write_archive(path: Path, description: bytes, storages: Mapping[str, bytes], top: str = "archive",
                  byte_order: str = "little", compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{top}/data.pkl", description)
        archive.writestr(f"{top}/byteorder", byte_order)
        for key, data in storages.items():
            archive.writestr(f"{top}/data/{key}", data)
        archive.writestr(f"{top}/version", "3\n")
    return path


def write_torch(path: Path, tensors: Mapping[str, np.ndarray], **options: Any) -> Path:
    """Every tensor in a storage of its own, in the order of the dictionary."""
    storages = {name: Storage(str(number), array) for number, (name, array) in enumerate(tensors.items())}
    state = OrderedDict((name, Tensor(storage, storage.array.shape)) for name, storage in storages.items())
    state._metadata = OrderedDict([("", {"version": 1})])  # type: ignore[attr-defined]  # as a Module leaves it
    data = {storage.key: storage.array.tobytes() for storage in storages.values()}
    return write_archive(path, pickled(state), data, **options)
