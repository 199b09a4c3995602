"""Make opening a model a matter of milliseconds: write its weights once more, ready to be mapped.

The panels file goes into DIR (where DIR is read-only: into $KUMQUANT_CACHE, else
~/.cache/kumquant) and takes as much disk as the cache. Whatever opens DIR later uses it, and
processes share its memory. Answers stay the same, bit for bit. It may be deleted at any time;
after a change of DIR's weights it is ignored, with a notice.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..runtime import pack, remove_panels
from .options import add_json, add_model, add_threads
from .output import format_bytes, print_json, remark
from .progress import progress_for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant pack DIR [options]"
    add_model(parser)
    parser.add_argument("--force", action="store_true", help="write it again although it is there and valid")
    parser.add_argument("--remove", action="store_true", help="delete it instead")
    add_threads(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.remove:
        return _remove(args)
    report = pack(args.model, args.threads, force=args.force, progress=progress_for(args))
    if args.json:
        print_json({"path": str(report.path), "nbytes": report.nbytes, "is_new": report.is_new,
                    "seconds": report.seconds, "removed": []})
        return 0
    print(f"{report.path}: {format_bytes(report.nbytes)}")
    remark(args, f"[written in {report.seconds:.1f} s]" if report.is_new else "[was there already, and is valid]")
    return 0


def _remove(args: argparse.Namespace) -> int:
    model = Path(args.model)
    removed = remove_panels(model if model.is_dir() else model.parent)
    if args.json:
        print_json({"path": None, "nbytes": 0, "is_new": False, "seconds": 0.0,
                    "removed": [str(path) for path in removed]})
        return 0
    for path in removed:
        print(f"{path}: deleted")
    if not removed:
        remark(args, "there is none")
    return 0
