"""The model a subcommand works on: a folder, or a name on the hub."""

from __future__ import annotations

import argparse

from ..hub import local_folder
from .progress import progress_for


def with_local_model(args: argparse.Namespace) -> argparse.Namespace:
    """``args`` with ``args.model``, where a subcommand has it, on this machine: downloaded if it is a hub name."""
    if hasattr(args, "model"):
        args.model = str(local_folder(args.model, "cache", progress_for(args)))
    return args
