"""What a sentence encoder loses in each mode, and how fast it is.

    python benchmarks/embeddings.py CACHE [CACHE ...] --texts FILE [--count 1000] [--rounds 5] [--threads N] [--json]

FILE is cut into sentences; the first COUNT of 20 to 400 characters are embedded. The first CACHE (q0f32) is what the
others are compared with: cosine of each sentence's two vectors (mean and least), Spearman correlation of the
similarities of all pairs, how often a sentence's nearest neighbor is the same, and how many of its ten nearest are.
Speed: tokens a second of embed(), tokenizing included and apart; the caches take turns, the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kumquant import LLM

NEIGHBORS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("caches", nargs="+", metavar="CACHE", type=Path)
    parser.add_argument("--texts", metavar="FILE", type=Path, required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    texts = sentences(args.texts, args.count)
    models = [LLM(cache, threads=args.threads) for cache in args.caches]
    vectors = [model.embed(texts) for model in models]
    token_ids = [models[0].embedder.encode(text) for text in texts]
    num_tokens = sum(map(len, token_ids))
    speeds: list[list[tuple[float, float]]] = [[] for _ in models]
    load = os.getloadavg()[0]
    for _ in range(args.rounds):
        for model, measured in zip(models, speeds, strict=True):
            measured.append((seconds(model.embed, texts), seconds(model.embedder.embed, token_ids)))
    rows: list[dict[str, Any]] = []
    for cache, model, found, measured in zip(args.caches, models, vectors, speeds, strict=True):
        whole, apart = (statistics.median(column) for column in zip(*measured, strict=True))
        rows.append({"cache": cache.name, **losses(found, vectors[0]), "threads": model.model.threads,
                     "tokens_per_s": num_tokens / whole, "model_tokens_per_s": num_tokens / apart})
    if args.json:
        print(json.dumps({"texts": len(texts), "tokens": num_tokens, "load": load, "results": rows}, indent=2))
        return
    print(f"{len(texts)} sentences, {num_tokens} tokens; load average {load:.1f} on {os.cpu_count()} processors")
    print("cache                 cosine   least  Spearman  nearest  ten nearest  threads  tokens/s  without tokenizing")
    for row in rows:
        loss = "  ".join(f"{row[key]:.4f}" for key in ("cosine", "least_cosine", "spearman"))
        near = f"{row['nearest']:9.1%}  {row['ten_nearest']:11.1%}"
        speed = f"{row['threads']:7}  {row['tokens_per_s']:8,.0f}  {row['model_tokens_per_s']:18,.0f}"
        print(f"{row['cache']:20}  {loss}  {near}  {speed}")


def sentences(path: Path, count: int) -> list[str]:
    text = " ".join(path.read_text(encoding="utf-8").split())
    found = [part.strip() for part in re.split(r"(?<=[.!?])\s+(?=[A-Z“\"'])", text)]
    return [part for part in dict.fromkeys(found) if 20 <= len(part) <= 400][:count]


def losses(vectors: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """How vectors (n, dimensions) of unit length differ from the reference's. Keys: see the module."""
    cosines = (vectors * reference).sum(axis=1)
    ours, theirs = vectors @ vectors.T, reference @ reference.T
    pairs = np.triu_indices(len(vectors), 1)
    for similarities in (ours, theirs):
        np.fill_diagonal(similarities, -2)
    near, near_reference = (np.argsort(-each, axis=1)[:, :NEIGHBORS] for each in (ours, theirs))
    shared = [len(np.intersect1d(a, b)) for a, b in zip(near, near_reference, strict=True)]
    return {
        "cosine": float(cosines.mean()), "least_cosine": float(cosines.min()),
        "spearman": float(np.corrcoef(ranks(ours[pairs]), ranks(theirs[pairs]))[0, 1]),
        "nearest": float((near[:, 0] == near_reference[:, 0]).mean()),
        "ten_nearest": float(np.mean(shared) / NEIGHBORS),
    }


def ranks(values: np.ndarray) -> np.ndarray:
    result = np.empty(len(values))
    result[np.argsort(values)] = np.arange(len(values))
    return result


def seconds(work: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
