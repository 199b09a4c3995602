"""Finding and reading a manifest on disk, and the sizes of its shards."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import TensorCacheError
from ..files import holds_weights, translated_os_errors
from .manifest import MANIFEST_NAMES, Manifest
from .validate import MAX_MANIFEST_BYTES, validate

_MAX_NAMED = 5


def find_manifest(path: Path | str) -> Path:
    """The manifest at ``path``: the file itself, or the folder's (newer name first, a ``-b16`` twin last).

    Raises TensorCacheError when there is none.
    """
    path = Path(path)
    with translated_os_errors("look for the manifest", path, TensorCacheError):
        if not path.exists():
            raise TensorCacheError("no such file or folder", where=path, hint="Check the path.")
        if not path.is_dir():
            return path
        for name in MANIFEST_NAMES:
            if (path / name).exists():
                return path / name
        is_checkpoint = holds_weights(path)
        inside = sorted(entry.parent for name in MANIFEST_NAMES[:2] for entry in path.glob(f"*/{name}"))
    hint = "If a conversion was interrupted here, run it again to finish it; else check the path."
    if is_checkpoint:
        hint = f"It holds a checkpoint. Convert it first: kumquant convert {path} -o FOLDER"
    if inside:
        hint = f"It holds caches: try {' or '.join(map(str, dict.fromkeys(inside[:_MAX_NAMED])))}."
    raise TensorCacheError("no manifest in this folder", where=path, expected=" or ".join(MANIFEST_NAMES[:2]),
                           hint=hint)


def read_manifest(path: Path, *, check_sizes: bool = True, allow_missing_shards: bool = False) -> Manifest:
    """Read and validate the manifest file ``path``; with ``check_sizes`` against its shards on disk.

    Raises TensorCacheError.
    """
    with translated_os_errors("read the manifest", path, TensorCacheError):
        if not path.is_file():  # opening a pipe would wait for its writer
            raise TensorCacheError("the manifest is not a regular file", where=path)
        with path.open("rb") as file:
            text = file.read(MAX_MANIFEST_BYTES + 1)
    sizes = ShardSizes(path.parent) if check_sizes else None
    return validate(text, sizes, path=path, allow_missing_shards=allow_missing_shards)


class ShardSizes:
    """data_path -> bytes on disk, None for a missing file; refuses links that lead out of the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        real = Path(os.path.realpath(folder))
        self._roots = [real]
        if real.parent.name == "snapshots":
            # The model hub's download folder: snapshots/<revision>/ holds links to ../../blobs/<hash>.
            self._roots.append(real.parent.parent / "blobs")

    def __call__(self, data_path: str) -> int | None:
        """Raises TensorCacheError for a link out of the folder, and for what is no regular file."""
        path = self._folder / data_path
        with translated_os_errors("look at the shard", path, TensorCacheError):
            real = Path(os.path.realpath(path))
            if not any(real.is_relative_to(root) for root in self._roots):
                raise TensorCacheError(
                    "a link that leads out of the folder", where=data_path, found=real,
                    hint="Copy the file into the folder, if you trust it.",
                )
            try:
                status = real.stat()
            except (FileNotFoundError, NotADirectoryError):
                return None
        if not stat.S_ISREG(status.st_mode):
            raise TensorCacheError("not a regular file", where=data_path)
        return status.st_size
