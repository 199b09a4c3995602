#!/usr/bin/env python3
"""What keeping keys and values as float16 or int8 costs: KL divergence from float32 ones, everything else the same.

    python benchmarks/kv_cache_loss.py CACHE … --text eval_b.txt [--tokens 4096] [--window 1024] [--output FILE]

Prints a table, and writes it to FILE. "float32 activations" isolates the KV cache. With int8 activations any change,
however small, moves some activation to the neighboring code, so there the float16 row is the floor to compare with.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Literal

import numpy as np

from kumquant.evaluate.measures import Scores
from kumquant.models import TensorCache
from kumquant.runtime import KvDtype, Model
from kumquant.tokenizer import Tokenizer

Activations = Literal["float32", "int8"]

HEADER = [
    "| cache | activations | keys and values | mean KL | same top token | perplexity |",
    "|---|---|---|---|---|---|",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    lines = list(HEADER)
    print("\n".join(lines))
    for cache in args.caches:
        model = Model(TensorCache.open(cache))
        content = args.text.read_text(encoding="utf-8")
        token_ids = Tokenizer.open(cache).encode(content, add_special_tokens=False)[:args.tokens]
        windows = [token_ids[begin:begin + args.window] for begin in range(0, len(token_ids) - 1, args.window)]
        kinds: list[Activations] = ["float32", "int8"] if model.native.has_quantized_layers else ["float32"]
        for activations in kinds:
            for kv_dtype, scores in losses(model, windows, activations).items():
                lines.append(f"| {cache.name} | {activations} | {kv_dtype} | {scores.kl / scores.count:.1e} | "
                             f"{scores.agreements / scores.count:.2%} | {math.exp(scores.nll / scores.count):.3f} "
                             f"(float32: {math.exp(scores.reference_nll / scores.count):.3f}) |")
                print(lines[-1], flush=True)
    if args.output:
        about = f"{args.text.name}, {args.tokens} tokens in windows of {args.window}"
        args.output.write_text("\n".join([about, "", *lines]) + "\n", encoding="utf-8")


def losses(model: Model, windows: list[list[int]], activations: Activations) -> dict[KvDtype, Scores]:
    """Scores of float16 and int8 keys and values against float32 ones."""
    scores: dict[KvDtype, Scores] = {"float16": Scores(), "int8": Scores()}
    for ids in windows:
        targets = np.asarray(ids[1:])
        exact = model.logits(ids, activations, "float32")[:-1]
        for kv_dtype, sums in scores.items():
            sums.add(model.logits(ids, activations, kv_dtype)[:-1], targets, exact)
    return scores


if __name__ == "__main__":
    main()
