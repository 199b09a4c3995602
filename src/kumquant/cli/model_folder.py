"""The model a subcommand works on: a folder, or a name on the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import TensorCacheError
from ..files import holds_weights
from ..hub import MANIFESTS, TWINS, local_folder
from .progress import progress_for


def with_local_model(args: argparse.Namespace) -> argparse.Namespace:
    """``args`` with ``args.model``, where a subcommand has it, on this machine: downloaded if it is a hub name.

    Raises TensorCacheError for what is still to be converted.
    """
    if hasattr(args, "model"):
        args.model = str(local_folder(args.model, "cache", progress_for(args)))
        if _is_checkpoint(Path(args.model)):
            raise TensorCacheError("a checkpoint, not a tensor cache", where=args.model,
                                   hint=f"Convert it first: kumquant convert {args.model} -o FOLDER")
    return args


def _is_checkpoint(path: Path) -> bool:
    if not path.is_dir():
        return path.suffix == ".gguf" and path.is_file()
    if any((path / name).exists() for name in MANIFESTS + TWINS):
        return False
    return holds_weights(path)
