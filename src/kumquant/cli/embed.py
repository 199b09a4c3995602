"""Turn texts into vectors with an encoder, pooled as its makers chose.

Without TEXT, or with "-", every line of stdin is a text. Prints one vector a line, its numbers separated by
spaces; --json prints a document, --npy writes a NumPy array, float32 (texts, dimensions). Texts that are
longer than the model takes are cut.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..engine import LLM
from ..errors import RequestError
from ..files import atomic_write
from .options import add_activations, add_json, add_model, add_threads
from .output import counted, print_json, remark
from .progress import progress_for


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant embed DIR [TEXT …] [options]"
    add_model(parser)
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text each; - or nothing: the lines of stdin")
    add_json(parser)
    parser.add_argument("--npy", metavar="FILE", help="write the vectors to FILE as a NumPy array")
    parser.add_argument("--no-normalize", action="store_true",
                        help="vectors as they are pooled, also where the model's makers want unit length")
    parser.add_argument("--prompt-name", metavar="NAME", help="which of the model's prompts goes before each text")
    add_threads(parser)
    add_activations(parser)


def run(args: argparse.Namespace) -> int:
    if args.json and args.npy:
        raise RequestError("one form of output at a time", where="--json, --npy")
    texts = _lines_of_stdin() if args.texts in ([], ["-"]) else args.texts
    with LLM(args.model, threads=args.threads, activations=args.activations) as llm:
        embedder = llm.embedder
        started = time.perf_counter()
        token_ids = [embedder.encode(text, args.prompt_name) for text in texts]
        normalize = False if args.no_normalize else None
        vectors = embedder.embed(token_ids, normalize, progress_for(args))
        seconds = time.perf_counter() - started
        is_unit = embedder.pooling.normalize and not args.no_normalize
    num_tokens = sum(map(len, token_ids))
    if args.json:
        print_json({
            "pooling": list(embedder.pooling.modes), "normalized": is_unit, "dimensions": embedder.dimensions,
            "max_length": embedder.max_length, "tokens": num_tokens, "seconds": seconds,
            "embeddings": [_embedding_json(*each) for each in zip(texts, token_ids, vectors)],
        })
    elif args.npy:
        _write_npy(Path(args.npy), vectors)
        print(f"{args.npy}: {counted(len(texts), 'vector')} of {embedder.dimensions} dimensions")
    else:
        for vector in vectors:
            print(" ".join(f"{value:.7g}" for value in vector))
    speed = f"{num_tokens / seconds:,.0f} tokens/s"
    remark(args, f"[{counted(len(texts), 'text')}, {counted(num_tokens, 'token')}, {speed}]")
    return 0


def _embedding_json(text: str, token_ids: list[int], vector: np.ndarray) -> dict[str, Any]:
    return {"text": text, "tokens": len(token_ids), "embedding": [float(value) for value in vector]}


def _write_npy(path: Path, vectors: np.ndarray) -> None:
    data = io.BytesIO()
    np.save(data, vectors)
    atomic_write(path, data.getvalue())


def _lines_of_stdin() -> list[str]:
    if sys.stdin.isatty():
        print("Type the texts, one a line; Ctrl-D ends them.", file=sys.stderr)
    text = sys.stdin.read().removesuffix("\n")
    return text.split("\n") if text else []
