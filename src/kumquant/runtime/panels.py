"""Panels files: a model's weights as the native core wants them, ready to be mapped. docs/native-core.md.

``write_panels`` (panels_writer.py) makes one when asked to; a model uses it for as long as it belongs to the cache
as it is now. Whatever is wrong with the file, the model is loaded from the cache instead, after a notice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import mmap
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .. import _native
from ..errors import Error, TensorCacheError
from ..files import translated_os_errors
from ..models import TensorCache

PANELS_NAME = "kumquant-panels.bin"
MAGIC = b"KQPANELS"
FORMAT_VERSION = 1
HEADER_BYTES = 8192
# Files up to this size are read into huge pages of the process: that takes milliseconds. Larger ones are mapped and
# shared, unless the system maps them in 4 KiB pages, which cost a decode step a third or more.
COPIED_BYTES = 256 << 20
SMAPS = Path("/proc/self/smaps_rollup")
MADV_POPULATE_READ = 22  # Linux 5.14

_FIELDS = struct.Struct("<8sIIQQ32s32sH")  # then the folder's path
_log = logging.getLogger(__name__)


class UnusablePanelsError(Exception):
    """Why a panels file is not used; never leaves this package."""


@dataclass(frozen=True)
class PanelsHeader:
    """The first HEADER_BYTES of a panels file; the panels follow, then _native.PANEL_SLACK bytes of zeros.

    nbytes: of the panels. layout: _native.PANEL_LAYOUT. geometry: the native core's digest of what lies where.
    key: ``cache_key`` of the cache. sha256: of the panels. folder: whose panels these are, for people.
    """

    nbytes: int
    geometry: int
    key: bytes
    sha256: bytes
    folder: str
    layout: int = _native.PANEL_LAYOUT

    @property
    def file_bytes(self) -> int:
        return HEADER_BYTES + self.nbytes + _native.PANEL_SLACK

    def to_bytes(self) -> bytes:
        folder = self.folder.encode("utf-8", "replace")[: HEADER_BYTES - _FIELDS.size]
        fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, self.layout, self.nbytes, self.geometry, self.key, self.sha256,
                              len(folder))
        return (fields + folder).ljust(HEADER_BYTES, b"\0")

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Raises UnusablePanelsError for what is no header of this version."""
        if len(data) < HEADER_BYTES or not data.startswith(MAGIC):
            raise UnusablePanelsError("not a panels file")
        _, version, layout, nbytes, geometry, key, sha256, length = _FIELDS.unpack_from(data)
        if version != FORMAT_VERSION or layout != _native.PANEL_LAYOUT:
            raise UnusablePanelsError("made by another version of Kumquant")
        folder = data[_FIELDS.size : _FIELDS.size + length].decode("utf-8", "replace")
        return cls(nbytes, geometry, key, sha256, folder, layout)


class PanelsFile:
    """An open panels file that belongs to a cache; its descriptor stays on one file whoever replaces it."""

    def __init__(self, path: Path, cache: TensorCache) -> None:
        """Raises UnusablePanelsError, or OSError when it cannot be opened."""
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(self.descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnusablePanelsError("not a regular file")
            self.header = PanelsHeader.from_bytes(os.pread(self.descriptor, HEADER_BYTES, 0))
            if status.st_size != self.header.file_bytes:
                raise UnusablePanelsError(f"{status.st_size} bytes, its header says {self.header.file_bytes}")
            if self.header.key != cache_key(cache):
                raise UnusablePanelsError("made for other weights, or before the cache was changed or copied")
        except BaseException:
            os.close(self.descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        os.close(self.descriptor)

    def give_to(self, native: Any) -> None:
        """Let ``native``, which has no weights yet, take its panels from here. Raises UnusablePanelsError."""
        nbytes = self.header.nbytes
        try:
            if nbytes > COPIED_BYTES:
                before = huge_mapped_bytes()
                native.use_panels(self.descriptor, HEADER_BYTES, nbytes, False)
                after = huge_mapped_bytes()
                if before is None or after is None or after - before >= nbytes // 2:
                    return
            native.use_panels(self.descriptor, HEADER_BYTES, nbytes, True)
        except RuntimeError as reason:
            raise UnusablePanelsError(str(reason)) from None

    def check_taken(self, native: Any) -> None:
        """Whether ``native``, loaded, took all there is, and as it was laid out. Raises UnusablePanelsError."""
        if (native.panels_used, native.panels_layout) != (self.header.nbytes, self.header.geometry):
            raise UnusablePanelsError("laid out for another model")

    def is_whole(self) -> bool:
        """Whether the panels have the checksum of the header. Reads the whole file. Raises OSError."""
        digest, left = hashlib.sha256(), self.header.nbytes
        fetch_in_huge_pages(self.descriptor)
        os.lseek(self.descriptor, HEADER_BYTES, os.SEEK_SET)
        while left and (data := os.read(self.descriptor, min(left, 1 << 22))):
            digest.update(data)
            left -= len(data)
        return digest.digest() == self.header.sha256


def fetch_in_huge_pages(descriptor: int) -> None:
    """Have what the page cache lacks of a file read as opening it would: in huge pages, where the file system has them.

    Read in small pieces it would lie there in small pages, and every opening would have to copy it.
    """
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return
    try:
        with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as memory:
            memory.madvise(mmap.MADV_HUGEPAGE)
            memory.madvise(MADV_POPULATE_READ)
    except (OSError, ValueError):  # an older system, an empty file: it is only faster
        pass


def huge_mapped_bytes() -> int | None:
    """Bytes of files that this process has mapped in huge pages; None where the system does not say."""
    try:
        found = re.search(r"^FilePmdMapped:\s+(\d+) kB", SMAPS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024


def cache_key(cache: TensorCache) -> bytes:
    """What the panels depend on: the manifest (with the shards' md5 sums), the model, and which files these are.

    Modification times are in it, so that a shard edited in place counts, although nobody computed its md5 again.
    """
    manifest = cache.manifest
    assert manifest.path is not None
    digest = hashlib.sha256(manifest.path.read_bytes())
    model = {"mode": cache.scheme.name if cache.scheme is not None else None, "spec": cache.spec.to_json()}
    digest.update(json.dumps(model, sort_keys=True, default=str).encode())
    for shard in manifest.shards:
        status = os.stat(cache.folder / shard.data_path)
        digest.update(f"\n{shard.data_path} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.digest()


def panels_paths(folder: Path) -> tuple[Path, Path]:
    """Where a folder's panels file may be: in the folder; or, where that is read-only, in the user's cache."""
    real = Path(os.path.realpath(folder))
    name = f"{real.name}-{hashlib.sha256(os.fsencode(real)).hexdigest()[:16]}.bin"
    return folder / PANELS_NAME, user_cache() / "panels" / name


def user_cache() -> Path:
    """$KUMQUANT_CACHE, else kumquant/ in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("KUMQUANT_CACHE")
    if own:
        return Path(own)
    shared = os.environ.get("XDG_CACHE_HOME")
    return (Path(shared) if shared else Path(os.path.expanduser("~")) / ".cache") / "kumquant"


def find_panels(cache: TensorCache, *, quiet: bool = False) -> PanelsFile | None:
    """The panels file that belongs to ``cache``, open; None when there is none. A useless one gets a notice."""
    useless: list[tuple[Path, object]] = []
    for path in panels_paths(cache.folder):
        try:
            return PanelsFile(path, cache)
        except FileNotFoundError:
            continue
        except (UnusablePanelsError, OSError) as reason:
            useless.append((path, reason))
    if not quiet:
        for path, why in useless:
            notice_unused(path, cache, why)
    return None


def verify_panels(path: str | Path) -> Path | None:
    """Compare the panels file that the cache at ``path`` uses with its checksum; returns where it is.

    None when there is none, or none that would be used (as a notice then says), or when the cache holds no model that
    can be run. Raises TensorCacheError for a damaged file.
    """
    try:
        cache = TensorCache.open(path)
        found = find_panels(cache)
    except Error:
        return None
    if found is None:
        return None
    with found, translated_os_errors("read", found.path, TensorCacheError):
        if not found.is_whole():
            raise TensorCacheError("the checksum of the panels is wrong", where=found.path,
                                   hint=f"kumquant pack {cache.folder} --force makes the file anew.")
    return found.path


def notice_unused(path: Path, cache: TensorCache, reason: object) -> None:
    """One line in the log: the panels file at ``path`` is not used."""
    _log.warning("%s: not used (%s); 'kumquant pack %s' makes it anew", path, reason, cache.folder)
