"""Writes ``mlc-chat-config.json``, the file by which MLC-LLM and WebLLM accept a cache folder as it is.

Source: shared/conformance/FORMAT.md section 6 (see docs/format.md).
"""

from __future__ import annotations

from pathlib import Path

from ..models import Family, ModelConfig
from ..schemes import Scheme


def write_chat_config(source: Path, out: Path, family: Family, model_config: ModelConfig, scheme: Scheme,
                      warnings: list[str]) -> None:
    """Write ``out/mlc-chat-config.json`` for the checkpoint folder ``source``.

    Appends to ``warnings`` one line for everything that MLC's file cannot say about this model.
    """
