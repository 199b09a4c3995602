"""Measure a model on a text: perplexity, and with --against its divergence from another model.

The text's first tokens are cut into windows that stand alone; the first token of each is not scored. With
--against, every scored position also gives KL(against || this model) and whether both find the same token
likeliest. AGAINST computes with float32 activations; it may be the same folder, which measures the loss of
int8 activations alone.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict

from ..evaluate import DEFAULT_TOKENS, DEFAULT_WINDOW, Evaluation, evaluate
from .options import add_activations, add_json, add_kv_dtype, add_model, add_threads, whole
from .output import counted, print_facts, print_json
from .progress import progress_for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant evaluate DIR TEXT [--against DIR_OR_SOURCE] [options]"
    add_model(parser)
    parser.add_argument("text", metavar="TEXT", help="a text file, UTF-8")
    parser.add_argument("--against", metavar="DIR_OR_SOURCE",
                        help="another cache of the same vocabulary, or a checkpoint folder")
    parser.add_argument("--tokens", type=whole(2), metavar="N", default=DEFAULT_TOKENS,
                        help=f"take the first N tokens (default {DEFAULT_TOKENS})")
    parser.add_argument("--window", type=whole(2), metavar="N",
                        help=f"tokens of a window (default {DEFAULT_WINDOW}, or the context if that is less)")
    add_json(parser)
    add_threads(parser)
    add_activations(parser)
    add_kv_dtype(parser)


def run(args: argparse.Namespace) -> int:
    result = evaluate(
        args.model, args.text, against=args.against, num_tokens=args.tokens, window=args.window,
        activations=args.activations, kv_dtype=args.kv_dtype, threads=args.threads, progress=progress_for(args),
    )
    if args.json:
        print_json(asdict(result))
    else:
        print_facts(_facts(result))
    return 0


def _facts(result: Evaluation) -> list[tuple[str, str]]:
    facts = [
        ("perplexity", f"{result.perplexity:.4f}"),
        ("scored tokens", f"{result.scored_tokens:,} in {counted(result.windows, 'window')} of {result.window}"),
    ]
    if result.mean_kl is not None:
        facts += [
            ("against", f"{result.against}: perplexity {result.against_perplexity:.4f}"),
            ("mean KL", f"{result.mean_kl:.6f} nats"),
            ("same top token", f"{result.top1_agreement:.2%}"),
        ]
    return facts
