"""What an unfinished conversion has done so far, so that it can go on, and a lock so that only one does."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import RequestError, TensorCacheError
from ..files import atomic_write, translated_os_errors
from ..json_files import read_json_object
from ..tensor_cache import FinishedShard, ShardPlan

JOURNAL_NAME = ".kumquant-convert.json"
_VERSION = 1


class Journal:
    """The journal of a conversion into ``folder``: what is converted how, and the shards that are finished.

    It exists exactly while the conversion is unfinished: written before the first shard, removed after the
    manifest.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """identity: source, options and plan (``identity_of``); only the same conversion may go on."""
        self.path = folder / JOURNAL_NAME
        self._identity = identity
        self._shards: list[FinishedShard] = []

    def exists(self) -> bool:
        return self.path.is_file()

    def load(self) -> list[FinishedShard]:
        """The finished shards that the journal in the folder lists.

        Raises RequestError that says what differs when it belongs to another conversion, TensorCacheError
        when it is damaged.
        """
        hint = "Give the same source and options to go on, or --force to start over."
        try:
            text = read_json_object(self.path, TensorCacheError)
        except TensorCacheError as reason:
            raise TensorCacheError(f"the journal of the unfinished conversion is damaged: {reason.what}",
                                   where=self.path, hint="Start over with --force.") from reason
        for key, expected in self._identity.items():
            found = text.get(key)
            if found != expected:
                raise RequestError(f"holds an unfinished conversion with {_difference(key, found, expected)}",
                                   where=self.path.parent, hint=hint)
        try:
            self._shards = [FinishedShard(str(s["data_path"]), int(s["nbytes"]), str(s["md5sum"]))
                            for s in text["shards"]]
        except (KeyError, TypeError, ValueError) as error:
            raise TensorCacheError("the journal of the unfinished conversion is damaged", where=self.path,
                                   hint="Start over with --force.") from error
        return self._shards

    def start(self, shards: list[FinishedShard]) -> None:
        """Write the journal with the shards that are there already."""
        self._shards = list(shards)
        self._write()

    def add(self, shard: FinishedShard) -> None:
        self._shards.append(shard)
        self._write()

    def remove(self) -> None:
        with translated_os_errors("remove the journal", self.path):
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        content = {**self._identity, "shards": [asdict(shard) for shard in self._shards]}
        atomic_write(self.path, json.dumps(content, indent=1))


def identity_of(checkpoint: Checkpoint, plan: ShardPlan, options: dict[str, Any]) -> dict[str, Any]:
    """What makes two conversions the same: checkpoint files, config, options, and every record's place."""
    places = [(shard.data_path, record.name, record.shape, record.dtype, record.byte_offset)
              for shard in plan.shards for record in shard.records]
    return {
        "version": _VERSION,
        "options": options,
        "source": str(checkpoint.folder.resolve()),
        "files": {file.name: [file.nbytes, file.mtime_ns, file.header_sha256] for file in checkpoint.files},
        "config_sha256": _sha256(checkpoint.config),
        "plan_sha256": _sha256(places),
    }


def _difference(key: str, found: object, expected: object) -> str:
    if key == "source":
        return f"another source; found {found}, expected {expected}"
    if key == "options" and isinstance(found, dict) and isinstance(expected, dict):
        names = [name for name in expected if found.get(name) != expected[name]]
        pairs = ", ".join(f"{name} {found.get(name)!r}, expected {expected[name]!r}" for name in names)
        return f"other options; found {pairs}"
    if key == "files":
        return "a source whose weights have changed since"
    changes = {"config_sha256": "another config.json", "plan_sha256": "another layout of the cache"}
    return changes.get(key, f"another journal {key}; found {found}, expected {expected}")


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process until the block ends, however it ends. Raises RequestError if
    another does.

    The lock is on the folder itself, so nothing is left behind by a killed process.
    """
    with translated_os_errors("open the folder", folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with translated_os_errors("lock the folder", folder):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as reason:
                if reason.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
                raise RequestError("another conversion into this folder is running", where=folder,
                                   hint="Wait for it, or choose another folder.") from reason
        yield
    finally:
        os.close(descriptor)
