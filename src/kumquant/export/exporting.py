"""Writing a cache as another program's model."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..errors import RequestError
from ..models import TensorCache
from ..progress import NO_PROGRESS, Progress
from .gguf import write_gguf_model
from .routes import ExportRoute
from .safetensors import write_safetensors_model


@dataclass(frozen=True)
class ExportReport:
    """What an export did. out: the file or folder. routes: how the tensors went out, most bytes first."""

    source: Path
    out: Path
    format: str
    model_type: str
    tensors: int
    nbytes: int
    seconds: float
    routes: tuple[ExportRoute, ...]
    warnings: tuple[str, ...]


# Format -> a function that writes it, given cache, out, warnings and progress; it returns the routes.
_WRITERS: dict[str, Callable[[TensorCache, Path, list[str], Progress], list[ExportRoute]]] = {
    "gguf": write_gguf_model, "safetensors": write_safetensors_model,
}
FORMATS = tuple(_WRITERS)


def export(source: str | Path, out: str | Path | None = None, to: str = "gguf", *, quantization: str | None = None,
           force: bool = False, progress: Progress = NO_PROGRESS) -> ExportReport:
    """Write the cache in the folder ``source`` as a model of another format.

    to: "gguf": one file that llama.cpp runs; tensors of the 4-bit modes with groups of 32 become Q4_0, without loss
    where the scales fit float16. "safetensors": a folder that transformers opens; codes become the float32 numbers
    they stand for. out: the file or folder; by default the source's name, in the working directory. quantization: the
    mode, where the cache does not say. force: replace what is there.

    Raises RequestError (what ``out`` holds, unknown format), UnsupportedError (family or mode), TensorCacheError,
    CapacityError (disk full). Nothing half-written is left.
    """
    started = time.perf_counter()
    if to not in _WRITERS:
        raise RequestError("unknown format", where="to", found=repr(to), expected=", ".join(FORMATS))
    cache = TensorCache.open(source, quantization)
    path = Path(out) if out is not None else _default_out(cache.folder, to)
    _check_out(path, cache.folder, to, force)
    warnings: list[str] = []
    routes = _WRITERS[to](cache, path, warnings, progress)
    return ExportReport(
        source=cache.folder, out=path, format=to, model_type=cache.family.model_type,
        tensors=sum(route.tensors for route in routes), nbytes=sum(route.nbytes for route in routes),
        seconds=time.perf_counter() - started, routes=tuple(sorted(routes, key=lambda route: -route.nbytes)),
        warnings=tuple(warnings))


def _check_out(path: Path, source: Path, to: str, force: bool) -> None:
    """Raises RequestError where ``path`` must not be written, whatever is forced or not."""
    if to == "gguf" and not path.parent.is_dir():
        raise RequestError("no such folder", where=path.parent, hint="Make it first, or choose another output.")
    if not path.exists():
        return
    if path.is_dir() and path.samefile(source):
        raise RequestError("source and output are the same folder", where=path, hint="Choose another output.")
    if path.parent.samefile(source):
        raise RequestError("is a file of the cache itself", where=path, hint="Choose another output.")
    if not (path.is_file() if to == "gguf" else path.is_dir()):
        raise RequestError("cannot be replaced", where=path, expected="a file" if to == "gguf" else "a folder",
                           hint="Choose another output.")
    is_empty = path.is_dir() and not any(path.iterdir())
    if not force and not is_empty:
        raise RequestError("is there already", where=path, hint="Choose another output, or give --force to replace it.")


def _default_out(folder: Path, to: str) -> Path:
    name = folder.resolve().name
    return Path(f"{name}.gguf") if to == "gguf" else Path(f"{name}-safetensors")
