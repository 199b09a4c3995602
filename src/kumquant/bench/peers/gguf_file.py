"""The GGUF file that llama.cpp and its kin read.

A module of its own, loaded when a file is written: ``export`` with all it needs would count in the peak memory of every
benchmark.
"""

from __future__ import annotations

from pathlib import Path

from ...export import export


def write_gguf(cache: Path, path: Path) -> None:
    """The cache's own codes and scales as a file for llama.cpp. Raises what ``export`` raises."""
    export(cache, path, "gguf")
