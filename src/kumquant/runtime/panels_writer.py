"""Writing a panels file: whole or not at all, one writer at a time, whatever happens in between."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import _native
from ..files import fsync_dir, temporary_name, translated_os_errors, write_all
from ..models import TensorCache
from ..progress import NO_PROGRESS, Progress
from .model import Model
from .panels import HEADER_BYTES, PanelsHeader, cache_key, find_panels, panels_paths

# Written in pieces of whole huge pages at offsets that are multiples of them: Linux then keeps the file in huge pages.
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class PackReport:
    """path: the panels file, nbytes: its size. is_new: whether it was written now. seconds: the time it took."""

    path: Path
    nbytes: int
    is_new: bool
    seconds: float


def pack(folder: str | Path, threads: int | None = None, *, force: bool = False,
         progress: Progress = NO_PROGRESS) -> PackReport:
    """Write the panels file of the cache in ``folder``, so that opening it neither repacks nor copies weights.

    It goes into the folder, or, where that is read-only, into the user's cache ($KUMQUANT_CACHE, else
    ~/.cache/kumquant). It takes as much disk as the cache itself. A file that is there and still valid is kept,
    unless ``force``. The shards are verified first. Raises TensorCacheError (VerifyError) for a damaged cache,
    UnsupportedError for a model that cannot be run, CapacityError when the disk is full, Error when neither place
    can be written.
    """
    start = time.monotonic()
    cache = TensorCache.open(folder)
    path, is_new = _existing(cache), False
    if path is None or force:
        cache.verify(progress)
        key = cache_key(cache)  # before the weights are read: what changes meanwhile makes the file stale
        model = Model(cache, threads=threads, panels=False)
        path, is_new = _write(cache, key, model, force, progress), True
    return PackReport(path, path.stat().st_size, is_new, time.monotonic() - start)


def remove_panels(folder: Path) -> list[Path]:
    """Delete the panels files of ``folder``, valid or not. Returns which there were. Raises Error."""
    removed = []
    for path in panels_paths(folder):
        for file in (path, temporary_name(path)):
            with translated_os_errors("delete", file):
                if file.exists():
                    file.unlink()
                    removed.append(file)
    return removed


def _existing(cache: TensorCache) -> Path | None:
    found = find_panels(cache, quiet=True)
    if found is None:
        return None
    with found:  # opening the model finds out the rest
        return found.path if Model(cache, threads=1).panels_path == found.path else None


def _write(cache: TensorCache, key: bytes, model: Model, force: bool, progress: Progress) -> Path:
    path = _writable_path(cache.folder)
    with translated_os_errors("write the panels", path), _locked_temporary(path) as descriptor:
        other = None if force else _existing(cache)  # another process may have been faster
        if other is not None:
            return other
        os.ftruncate(descriptor, 0)
        _write_panels(descriptor, cache, key, model, progress)
        os.fchmod(descriptor, 0o444)  # it is mapped: nobody should write into it by mistake
        os.fsync(descriptor)
        os.replace(temporary_name(path), path)
        fsync_dir(path.parent)
    return path


def _writable_path(folder: Path) -> Path:
    beside, cached = panels_paths(folder)
    if os.access(folder, os.W_OK):
        return beside
    with translated_os_errors("make the folder", cached.parent):
        cached.parent.mkdir(parents=True, exist_ok=True)
    return cached


@contextmanager
def _locked_temporary(path: Path) -> Iterator[int]:
    """The file that becomes ``path``, open and locked: another writer waits here until this one is done or dead.

    Whatever the block raises, the file is gone afterwards; what a killed process leaves, the next one overwrites.
    """
    temporary = temporary_name(path)
    while True:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not _is_open_as(temporary, descriptor):
                continue  # the writer before us has renamed or deleted it
            try:
                yield descriptor
            finally:
                if _is_open_as(temporary, descriptor):  # not renamed, and under the lock nobody else's
                    temporary.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def _is_open_as(path: Path, descriptor: int) -> bool:
    """Whether ``path`` names the file that is open as ``descriptor``."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _write_panels(descriptor: int, cache: TensorCache, key: bytes, model: Model, progress: Progress) -> None:
    runs: list[np.ndarray] = model.native.panel_runs()
    nbytes = sum(run.nbytes for run in runs)
    digest = hashlib.sha256()
    piece = memoryview(bytearray(_PIECE_BYTES))
    filled = HEADER_BYTES  # the header comes last: until then the file is none
    progress.start(nbytes, "write panels")
    try:
        for part in _parts(runs):
            digest.update(part)
            progress.advance(len(part))
            while part:
                count = min(len(part), _PIECE_BYTES - filled)
                piece[filled : filled + count] = part[:count]
                filled, part = filled + count, part[count:]
                if filled == _PIECE_BYTES:
                    write_all(descriptor, piece)
                    filled = 0
        write_all(descriptor, piece[:filled])
        write_all(descriptor, bytes(_native.PANEL_SLACK))
        header = PanelsHeader(nbytes, model.native.panels_layout, key, digest.digest(), str(cache.folder.resolve()))
        os.pwrite(descriptor, header.to_bytes(), 0)
    finally:
        progress.finish()


def _parts(runs: list[np.ndarray]) -> Iterator[memoryview]:
    for run in runs:
        for begin in range(0, run.nbytes, _PIECE_BYTES):
            yield memoryview(run)[begin : begin + _PIECE_BYTES]  # type: ignore[arg-type]
