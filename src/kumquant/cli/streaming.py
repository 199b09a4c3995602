"""Showing an answer as it comes."""

from __future__ import annotations

import argparse

from ..engine import Generation, TextStream
from .output import remark


def show_pieces(stream: TextStream, show: bool = True) -> bool:
    """Print the pieces as they come, and a line's end. Returns whether Ctrl-C came before the end.

    What has come is kept and shown either way. show: False runs the generation silently.
    """
    interrupted = False
    try:
        _print_pieces(stream, show)
    except KeyboardInterrupt:
        interrupted = True
        stream.close()
        _print_pieces(stream, show)
    if show:
        print(flush=True)
    return interrupted


def remark_speed(args: argparse.Namespace, result: Generation) -> None:
    """How fast it was, on stderr."""
    prompt = f"{len(result.prompt_token_ids)} prompt tokens in {result.prefill_s:.2f} s"
    remark(args, f"[{prompt}, then {len(result.token_ids)} tokens at {result.tokens_per_s:.1f} tokens/s]")


def _print_pieces(stream: TextStream, show: bool) -> None:
    for piece in stream:
        if show:
            print(piece, end="", flush=True)
