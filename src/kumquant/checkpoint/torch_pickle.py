"""The pickle inside a torch file, read as data: no code from the file ever runs.

A pickle is a program for a stack machine that may call any function it can import. This reader knows a few names and
gives each a harmless meaning of its own; everything else that a file asks for is refused by name before it happens.
Tensors come out as descriptions: which storage, from which element on, in which shape.
"""

from __future__ import annotations

import io
import pickle
import reprlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..errors import CheckpointError, UnsupportedError

# torch's storage types -> safetensors' tag of their elements.
STORAGE_TAGS = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
_REFUSED_HINT = "Torch files may carry programs; this reader only takes tensors. Save the model as safetensors."
MAX_PICKLE_BYTES = 64 << 20


class _Sealed:
    """Something that a pickle can make but not change: the opcode BUILD would set attributes."""

    def __setstate__(self, state: object) -> None:
        raise pickle.UnpicklingError(f"the file tries to change a {type(self).__name__}")


@dataclass(frozen=True)
class StoredTensor(_Sealed):
    """A tensor of a torch file. storage: the name of the entry its elements are in; offset, stride: in elements."""

    storage: str
    num_stored: int
    tag: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for extent, stride in zip(reversed(self.shape), reversed(self.stride)):
            if extent != 1 and stride != expected:
                return False
            expected *= extent
        return True


@dataclass(frozen=True)
class _StorageType(_Sealed):
    tag: str


@dataclass(frozen=True)
class _Storage(_Sealed):
    key: str
    tag: str
    num_elements: int


@dataclass(frozen=True)
class _Function(_Sealed):
    """What a name in the file calls. Not the function itself, which BUILD could reach into."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class _Dictionary(dict[Any, Any]):
    """Stands for collections.OrderedDict; what torch attaches to one (_metadata) is not needed."""

    def __setstate__(self, state: object) -> None:
        pass


def load_tensors(data: bytes, where: Path) -> dict[str, StoredTensor]:
    """Name -> tensor, in the order of the file's dictionary.

    Dictionaries in dictionaries ("state_dict" in older files) are not entered. Raises UnsupportedError for a name that
    is not known here, CheckpointError for a damaged pickle or one that holds no tensors by name.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise CheckpointError("the description of the tensors is impossibly long", where=where,
                              found=f"{len(data)} bytes", expected=f"at most {MAX_PICKLE_BYTES}")
    try:
        value = _Reader(data, where).load()
    except (CheckpointError, UnsupportedError):
        raise
    except RecursionError as error:
        raise CheckpointError("the pickle is nested too deeply", where=where) from error
    except Exception as error:  # a damaged pickle can make the stack machine fail in any way
        raise CheckpointError(f"not a pickle that torch wrote ({type(error).__name__}: {error})", where=where,
                              hint="The file is damaged. Fetch it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError("no dictionary of tensors", where=where, found=type(value).__name__)
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, StoredTensor):
            raise UnsupportedError("the file holds something beside tensors by name", where=where,
                                   found=f"{str(name)[:80]}: {type(tensor).__name__}",
                                   hint="Save the model's state_dict() alone, best as safetensors.")
    return dict(value)


# What torch.save needs of pickle's machine. Left out: what makes objects of classes, sets, and byte arrays of any size.
_OPCODES = frozenset((
    "MARK", "STOP", "POP", "POP_MARK", "BINFLOAT", "INT", "BININT", "BININT1", "LONG", "BININT2", "NONE", "BINPERSID",
    "REDUCE", "UNICODE", "BINUNICODE", "APPEND", "BUILD", "GLOBAL", "EMPTY_DICT", "APPENDS", "GET", "BINGET",
    "LONG_BINGET", "LIST", "EMPTY_LIST", "PUT", "BINPUT", "LONG_BINPUT", "SETITEM", "TUPLE", "EMPTY_TUPLE", "SETITEMS",
    "PROTO", "TUPLE1", "TUPLE2", "TUPLE3", "NEWTRUE", "NEWFALSE", "LONG1", "SHORT_BINUNICODE", "STACK_GLOBAL",
    "MEMOIZE", "FRAME", "FLOAT",
))


class _Reader(pickle._Unpickler):
    """pickle's machine with a closed list of names. ``find_class`` is its only way to anything outside.

    The machine written in Python: its table of opcodes can be shortened, and its memo is a dictionary, where C's is an
    array as long as the file says. A key must be a name or a small number: a tuple that holds itself twice, thirty
    times over, takes hours to hash.
    """

    stack: list[Any]
    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        opcode: load for opcode, load in pickle._Unpickler.dispatch.items()
        if any(getattr(pickle, name) == bytes((opcode,)) for name in _OPCODES)}

    def __init__(self, data: bytes, where: Path) -> None:
        super().__init__(io.BytesIO(data), encoding="utf-8")
        self._where = where
        self._names: dict[tuple[str, str], Any] = {
            ("collections", "OrderedDict"): _Function(_Dictionary),
            ("torch._utils", "_rebuild_tensor_v2"): _Function(self._tensor),
            ("torch._utils", "_rebuild_parameter"): _Function(_rebuild_parameter),
            **{("torch", name): _StorageType(tag) for name, tag in STORAGE_TAGS.items()},
        }

    def load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()  # type: ignore[misc]  # the type stubs leave it out

    def load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()  # type: ignore[misc]

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def _check_keys(self, keys: list[Any]) -> None:
        for key in keys:
            if not isinstance(key, str) and not _is_count(key):
                raise CheckpointError("a dictionary whose keys are no names", where=self._where,
                                      found=type(key).__name__)

    def find_class(self, module: str, name: str) -> Any:
        known: Any = self._names.get((module, name))
        if known is None:
            raise UnsupportedError("the file asks for something that is no tensor", where=self._where,
                                   found=f"{module}.{name}", hint=_REFUSED_HINT)
        return known

    def persistent_load(self, pid: Any) -> _Storage:
        """("storage", type, key, device, number of elements): where a storage's bytes are."""
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], _StorageType)
                and isinstance(pid[2], str) and _is_count(pid[4])):
            raise CheckpointError("a storage is not described as torch does", where=self._where,
                                  found=reprlib.repr(pid)[:80])
        return _Storage(pid[2], pid[1].tag, pid[4])

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> StoredTensor:
        """torch._utils._rebuild_tensor_v2(storage, offset, size, stride, requires_grad, backward_hooks, metadata)."""
        counts = isinstance(shape, tuple) and isinstance(stride, tuple) and len(shape) == len(stride)
        if not (isinstance(storage, _Storage) and _is_count(offset) and counts
                and all(map(_is_count, (*shape, *stride)))):
            raise CheckpointError("a tensor is not described as torch does", where=self._where,
                                  found=reprlib.repr((offset, shape, stride))[:80])
        last = offset + sum((extent - 1) * step for extent, step in zip(shape, stride))
        if 0 not in shape and last >= storage.num_elements:
            raise CheckpointError("a tensor reaches past its storage", where=self._where, found=f"element {last}",
                                  expected=f"{storage.num_elements} elements")
        return StoredTensor(storage.key, storage.num_elements, storage.tag, offset, shape, stride)


def _rebuild_parameter(tensor: Any, *_: Any) -> Any:
    return tensor


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
