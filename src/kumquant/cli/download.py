"""Fetch a model from the Hugging Face hub: only the files that a conversion or a cache needs, each checked.

An interrupted download goes on where it stopped. Prints the folder. Without -o the files go into the cache
that other programs share (HF_HOME); every command that takes a folder finds them there by the same name.
"""

from __future__ import annotations

import argparse

from ..hub import download
from .options import add_json
from .output import print_json
from .progress import progress_for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant download ORG/MODEL[@REVISION] [-o DIR] [options]"
    parser.add_argument("name", metavar="ORG/MODEL[@REVISION]", help="the model's name on the hub")
    parser.add_argument("-o", "--output", metavar="DIR", help="the folder to put the files in")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    folder = download(args.name, args.output, progress=progress_for(args))
    if args.json:
        print_json({"name": args.name, "folder": str(folder)})
    else:
        print(folder)
    return 0
