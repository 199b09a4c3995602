"""Opening a GGUF file, or all files of a split one, as a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ...errors import CheckpointError
from ...files import translated_os_errors
from .checkpoint import GgufCheckpoint
from .header import MAGIC, GgufHeader, read_header

_SPLIT_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def is_gguf(source: str | Path) -> bool:
    """Whether ``source`` is a file that is or claims to be GGUF."""
    path = Path(source)
    if not path.is_file():
        return False
    with translated_os_errors("read the file", path, CheckpointError), path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(len(MAGIC)) == MAGIC


def open_gguf(source: str | Path) -> GgufCheckpoint:
    """The checkpoint in a GGUF file; of a split one, any of its files will do.

    Reads headers only. Raises CheckpointError (damaged, parts missing), UnsupportedError (architecture, type,
    version).
    """
    paths = _parts(Path(source))
    headers = [read_header(path) for path in paths]
    _check_parts(paths, headers)
    return GgufCheckpoint(paths, headers)


def _parts(path: Path) -> list[Path]:
    named = _SPLIT_NAME.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named["count"])
    paths = [path.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise CheckpointError("a part of the split file is missing", where=path.parent,
                              expected=", ".join(missing[:3]), hint="Fetch all its parts into one folder.")
    return paths


def _check_parts(paths: Sequence[Path], headers: Sequence[GgufHeader]) -> None:
    """Each part says which one it is, and together they hold as many tensors as the first one says."""
    for number, (path, header) in enumerate(zip(paths, headers, strict=True)):
        count = header.metadata.get("split.count", 1)
        if count != len(paths) or header.metadata.get("split.no", 0) != number:
            raise CheckpointError("the file is not the part its name says", where=path,
                                  found=f"number {header.metadata.get('split.no', 0)} of {count}, counted from 0",
                                  expected=f"{number} of {len(paths)}",
                                  hint="A part keeps the name that llama.cpp gave it.")
    total = sum(len(header.tensors) for header in headers)
    expected = headers[0].metadata.get("split.tensors.count", total)
    if total != expected:
        raise CheckpointError("the parts hold another number of tensors than the first one says", where=paths[0],
                              found=total, expected=expected, hint="Fetch all its parts again.")
