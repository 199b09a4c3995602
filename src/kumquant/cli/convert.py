"""Convert a Hugging Face checkpoint into a tensor cache that MLC-LLM, WebLLM and Kumquant read.

The folder also gets mlc-chat-config.json, the tokenizer and the model's configs. An interrupted conversion
is continued by the same command.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..convert import convert
from .options import add_json, add_quantization, add_threads
from .output import counted, format_bytes, print_json, remark, warn
from .progress import progress_for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant convert SOURCE -o OUT [-q MODE] [options]"
    parser.add_argument("source", metavar="SOURCE", help="the checkpoint's folder (config.json, safetensors)")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the folder to write")
    add_quantization(parser, "q4f16_1")
    parser.add_argument("--compat", action="store_true", help="exactly the bytes that MLC's converter writes")
    parser.add_argument("--legacy-names", action="store_true",
                        help="also write ndarray-cache.json, the manifest's name of before 2025")
    parser.add_argument("--force", action="store_true", help="replace a finished cache in OUT")
    add_threads(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    report = convert(
        args.source, args.output, quantization=args.quantization, compat=args.compat, force=args.force,
        threads=args.threads, legacy_names=args.legacy_names, progress=progress_for(args),
    )
    warn(args, report.warnings)
    if args.json:
        print_json({**asdict(report), "source": str(report.source), "out": str(report.out)})
    else:
        print(f"{report.out}: {counted(report.shards, 'shard')}, {counted(report.records, 'tensor')}, "
              f"{format_bytes(report.cache_bytes)}, {report.stored_bits_per_parameter:.4f} bits a parameter")
        for use in report.routes:
            loss = "lossless" if use.is_lossless else "lossy"
            remark(args, f"{counted(use.tensors, 'tensor')}, {format_bytes(use.source_bytes)}: {use.route} ({loss})")
        resumed = f", {counted(report.resumed_shards, 'shard')} taken over" if report.resumed_shards else ""
        remark(args, f"[{format_bytes(report.source_bytes)} read in {report.seconds:.1f} s{resumed}]")
    return 0
