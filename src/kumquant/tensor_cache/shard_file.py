"""One shard being written: temporary name, then flush, then its final name."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import temporary_name, translated_os_errors, write_all


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

    def read_into(self, buffer: memoryview, offset: int) -> int:
        """Read what arrived in the file from ``offset`` on; the number of bytes, less than asked only at its end."""
        descriptor, count = self._open_descriptor, 0
        with translated_os_errors("read the shard", self.path):
            while count < len(buffer) and (more := os.preadv(descriptor, [buffer[count:]], offset + count)):
                count += more
        return count

    def flush(self) -> None:
        """Have the disk hold all that was written. For a worker thread: it takes long."""
        with translated_os_errors("write the shard", self.path):
            os.fsync(self._open_descriptor)

    def publish(self) -> None:
        """Close the file and give it its final name; call ``flush`` before."""
        with translated_os_errors("write the shard", self.path):
            self._close()
            os.replace(self._temporary, self.path)

    def abandon(self) -> None:
        """Close and remove the temporary file; a completed shard stays."""
        with translated_os_errors("remove the unfinished shard", self._temporary):
            self._close()
            self._temporary.unlink(missing_ok=True)

    @property
    def _open_descriptor(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"{self.path} is closed")
        return self._descriptor

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)
