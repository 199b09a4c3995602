"""A sentence encoder by Kumquant and by Transformers (float32), turn by turn on the same token ids.

    python benchmarks/compare_embeddings.py CACHE CHECKPOINT [--peer-python PYTHON] [--threads 1] [--turns 2]

CACHE: converted from CHECKPOINT. PYTHON: one that has torch and transformers. Tokens per second of processor time, the
best of the rounds: on a busy machine the only measure that means something. With one thread it is what one free core
does at most; waiting threads count as busy.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

SHAPES = ((32, 32), (8, 128))  # texts, tokens of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cache", metavar="CACHE")
    parser.add_argument("checkpoint", metavar="CHECKPOINT")
    parser.add_argument("--peer-python", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--only", choices=("kumquant", "transformers"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        run = embed_with_kumquant(args) if args.only == "kumquant" else embed_with_transformers(args)
        measure(args.only, run, args.rounds)
        return
    for _ in range(args.turns):
        for name, python in (("kumquant", sys.executable), ("transformers", args.peer_python)):
            subprocess.run([python, __file__, *sys.argv[1:], "--only", name], check=True)


def measure(name: str, run: Callable[[np.ndarray], object], rounds: int) -> None:
    rng = np.random.default_rng(0)
    for texts, tokens in SHAPES:
        ids = rng.integers(1000, 30000, (texts, tokens))
        run(ids)
        best = min(processor_seconds(run, ids) for _ in range(rounds))
        print(f"{name:12}  {texts} texts of {tokens:3} tokens  {texts * tokens / best:8,.0f} tokens/processor-second"
              f"  load {os.getloadavg()[0]:.1f}", flush=True)


def processor_seconds(run: Callable[[np.ndarray], object], ids: np.ndarray) -> float:
    started = time.process_time()
    run(ids)
    return time.process_time() - started


def embed_with_kumquant(args: argparse.Namespace) -> Callable[[np.ndarray], object]:
    from kumquant import LLM

    llm = LLM(args.cache, threads=args.threads)
    return lambda ids: llm.embed(ids.tolist())


def embed_with_transformers(args: argparse.Namespace) -> Callable[[np.ndarray], object]:
    import torch
    from transformers import AutoModel

    torch.set_num_threads(args.threads)
    model = AutoModel.from_pretrained(args.checkpoint, dtype=torch.float32).eval()

    def run(ids: np.ndarray) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(ids)).last_hidden_state.mean(dim=1)

    return run


if __name__ == "__main__":
    main()
