"""One shard being written: temporary name, then md5 and flush, then its final name."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ..files import temporary_name, translated_os_errors, write_all

_READ_BYTES = 1 << 20


class ShardFile:
    """A shard that others cannot see yet. Every method raises CapacityError or Error when the disk fails."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.nbytes = 0
        self._temporary = temporary_name(path)
        with translated_os_errors("create the shard", path):
            # Read too: the md5 is taken from what arrived in the file.
            self._descriptor: int | None = os.open(
                self._temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666
            )

    def write(self, data: memoryview) -> None:
        """Append a flat byte buffer."""
        with translated_os_errors("write the shard", self.path):
            write_all(self._open_descriptor, data)
        self.nbytes += data.nbytes

    def complete(self) -> str:
        """Flush the file to disk, give it its final name and return its md5 as lower-case hex.

        Meant for a worker thread: hashing and flushing take long and need no interpreter lock.
        """
        descriptor = self._open_descriptor
        with translated_os_errors("write the shard", self.path):
            md5sum = self._md5(descriptor)
            os.fsync(descriptor)
            self._close()
            os.replace(self._temporary, self.path)
        return md5sum

    def abandon(self) -> None:
        """Close and remove the temporary file; a completed shard stays."""
        with translated_os_errors("remove the unfinished shard", self._temporary):
            self._close()
            self._temporary.unlink(missing_ok=True)

    def _md5(self, descriptor: int) -> str:
        digest, buffer = hashlib.md5(usedforsecurity=False), memoryview(bytearray(_READ_BYTES))
        offset = 0
        while count := os.preadv(descriptor, [buffer], offset):
            digest.update(buffer[:count])
            offset += count
        return digest.hexdigest()

    @property
    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        return self._descriptor

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
