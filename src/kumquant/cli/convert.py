"""Convert a Hugging Face checkpoint or a GGUF file into a tensor cache that MLC-LLM, WebLLM and Kumquant read.

The folder also gets mlc-chat-config.json, the tokenizer and the model's configs. An interrupted conversion
is continued by the same command. Several modes (-q q4f16_1 -q q4f32_1) come from one pass over the source,
each in OUT/MODE.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..convert import ConvertReport, convert
from ..errors import RequestError
from .options import add_json, add_threads
from .output import counted, format_bytes, print_json, remark, warn
from .progress import progress_for

DEFAULT_MODE = "q4f16_1"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant convert SOURCE -o OUT [-q MODE …] [options]"
    parser.add_argument("source", metavar="SOURCE",
                        help="the checkpoint: a folder, a GGUF file, or its name on the hub (org/model)")
    parser.add_argument("-o", "--output", metavar="OUT", required=True, help="the folder to write")
    parser.add_argument("-q", "--quantization", metavar="MODE", action="append",
                        help=f"how: {DEFAULT_MODE} (default), q4f32_1, q0f16, …; kumquant models lists all; repeatable")
    parser.add_argument("--lora", metavar="DIR", action="append", default=[],
                        help="merge the LoRA adapter in DIR (PEFT's format), in float32; repeatable")
    parser.add_argument("--model-type", metavar="NAME",
                        help="the family, if it is not the one in config.json (kumquant models lists them)")
    parser.add_argument("--compat", action="store_true", help="exactly the bytes that MLC's converter writes")
    parser.add_argument("--legacy-names", action="store_true",
                        help="also write ndarray-cache.json, the manifest's name of before 2025")
    parser.add_argument("--force", action="store_true", help="replace a finished cache in OUT")
    add_threads(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    if not args.output:  # as a path it would mean the working directory: "$OUT" of a script that never set it
        raise RequestError("is empty", where="-o/--output", expected="a folder to write")
    modes = args.quantization or [DEFAULT_MODE]
    reports = convert(
        args.source, args.output, quantization=modes if len(modes) > 1 else modes[0], compat=args.compat,
        force=args.force, threads=args.threads, legacy_names=args.legacy_names, progress=progress_for(args),
        lora=args.lora, model_type=args.model_type,
    )
    several = reports if isinstance(reports, list) else [reports]
    warn(args, dict.fromkeys(warning for report in several for warning in report.warnings))
    if args.json:
        documents = [{**asdict(report), "source": str(report.source), "out": str(report.out)} for report in several]
        print_json(documents if isinstance(reports, list) else documents[0])
        return 0
    for report in several:
        _print(args, report)
    return 0


def _print(args: argparse.Namespace, report: ConvertReport) -> None:
    print(f"{report.out}: {counted(report.shards, 'shard')}, {counted(report.records, 'tensor')}, "
          f"{format_bytes(report.cache_bytes)}, {report.stored_bits_per_parameter:.4f} bits a parameter")
    for use in report.routes:
        loss = "lossless" if use.is_lossless else "lossy"
        remark(args, f"{counted(use.tensors, 'tensor')}, {format_bytes(use.source_bytes)}: {use.route} ({loss})")
    if report.losses:
        lost = ", ".join(f"{loss.tensors} {loss.rms_relative_error:.2%}" for loss in report.losses)
        remark(args, f"lost of the weights (rms): {lost}")
    resumed = f", {counted(report.resumed_shards, 'shard')} taken over" if report.resumed_shards else ""
    remark(args, f"[{format_bytes(report.source_bytes)} read in {report.seconds:.1f} s{resumed}]")
