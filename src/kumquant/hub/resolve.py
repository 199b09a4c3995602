"""From what a user gives for a model to a folder on this machine."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RequestError
from ..files import checked_path
from ..progress import NO_PROGRESS, Progress
from .choice import Wanted
from .names import parse_name


def local_folder(source: str | Path, wanted: Wanted = "any", progress: Progress = NO_PROGRESS) -> Path:
    """The path that ``source`` means: itself, or what ``org/model[@revision]`` is on the hub, downloaded.

    Whatever exists on this machine wins. What is neither is given back as it is, for its reader to complain about.
    wanted: "cache" or "checkpoint" look before they fetch gigabytes of the other. Raises like ``download``.
    """
    path = checked_path(source, "model")
    if path.exists() or parse_name(str(source)) is None:
        return path
    return download(str(source), wanted=wanted, progress=progress)


def download(name: str, out: str | Path | None = None, *, wanted: Wanted = "any",
             progress: Progress = NO_PROGRESS) -> Path:
    """Fetch the files of ``org/model[@revision]`` that a conversion or a cache needs, and return their folder.

    out: where to put them; by default the hub's own cache, shared with other programs (HF_HOME). Files that are there
    are not fetched again, a file that was cut goes on where it stopped; lengths and hashes are compared with what
    the hub says. HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN and a stored token mean what they mean to every such program.
    A single GGUF file is returned itself.

    Raises RequestError (no name), CheckpointError (not there, not reachable, no access, damaged), CapacityError (disk).
    """
    parsed = parse_name(name)
    if parsed is None:
        raise RequestError("not the name of a model on the hub", where=name, expected="org/model or org/model@revision")
    # The client takes a tenth of a second to import, which programs that only use folders need not wait for.
    client: Any = importlib.import_module(".client", __package__)
    folder: Path = client.fetch(parsed, None if out is None else Path(out), wanted, progress)
    return folder


@contextmanager
def outline(source: str | Path) -> Iterator[tuple[Path, bool]]:
    """What ``source`` is, without its weights: (folder or file, whether it is all there), while the block runs.

    Of a model on the hub the small files come, and of its safetensors files the headers alone: the files in the folder
    have their true lengths and hold nothing else. Raises like ``download``, UnsupportedError for other weights.
    """
    path = Path(source)
    parsed = parse_name(str(source))
    if path.exists() or parsed is None:
        yield path, True
        return
    with tempfile.TemporaryDirectory(prefix="kumquant-outline-") as folder:
        client: Any = importlib.import_module(".client", __package__)
        yield client.outline(parsed, Path(folder))
