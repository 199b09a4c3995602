"""Files that appear whole or not at all, and OSError as our own errors."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import CapacityError, Error, RequestError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def checked_path(value: Any, where: str) -> Path:
    """``value`` as a path. Raises RequestError, which names the argument ``where``, for what can be none."""
    if not isinstance(value, (str, Path)):
        raise RequestError("not a path", where=where, found=type(value).__name__, expected="a string or a Path")
    if "\0" in str(value):
        raise RequestError("no path has a null character", where=where, found=ascii(str(value))[:80])
    return Path(value)


@contextmanager
def translated_os_errors(doing: str, where: object, error: type[Error] = Error) -> Iterator[None]:
    """Turn an OSError of the block into ``error``, or CapacityError when the disk or a quota is full.

    doing: what was tried, after "cannot" ("write", "open the manifest"). where: the file concerned.
    """
    try:
        yield
    except OSError as reason:
        if reason.errno in _DISK_FULL:
            raise CapacityError(
                f"cannot {doing}: {reason.strerror}", where=where,
                hint="Free some space, or choose a folder on another disk; finished files are kept.",
            ) from reason
        raise error(f"cannot {doing}: {reason.strerror or reason}", where=where) from reason


def temporary_name(path: Path) -> Path:
    """Where a file is written before it is renamed to ``path``.

    The same name every time, so that what a killed process leaves behind is overwritten by the next one.
    """
    return path.with_name(path.name + ".partial")


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write every byte of ``data`` (a flat byte buffer). Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def fsync_dir(path: Path) -> None:
    """Make renames in the folder ``path`` durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as reason:
        # Some network and FUSE file systems cannot flush a folder; there is nothing more to do there.
        if reason.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def atomic_write(path: Path | str, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``; the file is always the old or the new one, whole.

    Raises CapacityError when the disk is full and Error for any other failure; ``path`` is then unchanged.
    """
    path = Path(path)
    temporary = temporary_name(path)
    raw = data.encode("utf-8") if isinstance(data, str) else data
    with translated_os_errors("write", path):
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            try:
                write_all(descriptor, raw)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_dir(path.parent)


def holds_weights(folder: Path) -> bool:
    """Whether files of a checkpoint, still to be converted, stand in ``folder``."""
    patterns = ("*.safetensors", "pytorch_model*.bin", "*.gguf")
    return any(match for pattern in patterns for match in folder.glob(pattern))
