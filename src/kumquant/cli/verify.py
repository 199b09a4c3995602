"""Compare every shard of a cache with its manifest: lengths, md5 sums, and the manifests with each other.

The panels file of kumquant pack, if there is one, is compared with its checksum.
"""

from __future__ import annotations

import argparse

from ..runtime import verify_panels
from ..tensor_cache import verify
from .options import add_json, add_model, whole
from .output import counted, format_bytes, print_json, warn
from .progress import progress_for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant verify DIR [options]"
    add_model(parser)
    parser.add_argument("--workers", type=whole(1), metavar="N",
                        help="shards to read at once (default: one per CPU)")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    report = verify(args.model, progress_for(args), args.workers)
    warn(args, (f"{shard}: no md5 in the manifest; its length is right" for shard in report.unchecked))
    if not report.shards:
        warn(args, ["the manifest lists no shards: there is nothing to compare, and no model"])
    panels = verify_panels(args.model)
    if args.json:
        print_json({"ok": True, "shards": report.shards, "tensors": report.tensors, "nbytes": report.nbytes,
                    "unchecked": list(report.unchecked), **({"panels": str(panels)} if panels else {})})
    else:
        print(f"ok: {counted(report.shards, 'shard')}, {counted(report.tensors, 'tensor')}, "
              f"{format_bytes(report.nbytes)}" + (f"; {panels.name}" if panels else ""))
    return 0
