"""Write a tensor cache as a GGUF file that llama.cpp runs, or as a checkpoint that transformers opens.

In a GGUF file the 4-bit modes with groups of 32 become Q4_0, without loss where the scales fit float16.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..export import FORMATS, export
from .options import add_json, add_model
from .output import counted, format_bytes, print_json, remark, warn
from .progress import progress_for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant export DIR --to FORMAT [-o OUT] [options]"
    add_model(parser)
    parser.add_argument("--to", metavar="FORMAT", choices=FORMATS, required=True, help=" or ".join(FORMATS))
    parser.add_argument("-o", "--output", metavar="OUT",
                        help="the file (gguf) or folder (safetensors) to write (default: DIR's name, here)")
    parser.add_argument("-q", "--quantization", metavar="MODE", help="the mode, where mlc-chat-config.json is missing")
    parser.add_argument("--force", action="store_true", help="replace OUT")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    report = export(args.model, args.output, args.to, quantization=args.quantization, force=args.force,
                    progress=progress_for(args))
    warn(args, report.warnings)
    if args.json:
        print_json({**asdict(report), "source": str(report.source), "out": str(report.out)})
        return 0
    print(f"{report.out}: {counted(report.tensors, 'tensor')}, {format_bytes(report.nbytes)}")
    for route in report.routes:
        loss = "no loss" if route.is_lossless else "with loss"
        print(f"  {route.route}: {counted(route.tensors, 'tensor')}, {format_bytes(route.nbytes)}, {loss}")
    remark(args, f"[written in {report.seconds:.1f} s]")
    return 0
