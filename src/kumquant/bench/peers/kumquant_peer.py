"""Kumquant itself, measured as the others are: by its own benchmark, in a process of its own."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..workload import FIRST_TOKEN_PROMPT, Workload, by_tokens
from .peer import Opening, Peer, Speeds
from .process import run_pinned


class Kumquant(Peer):
    """options: by the name of each setting, what ``kumquant bench`` is given besides the workloads."""

    name = "kumquant"

    def __init__(self, options: Mapping[str, Sequence[str]] | None = None) -> None:
        self._options = dict(options or {"default": ()})
        self.settings = tuple(self._options)
        self._cache = Path()

    def how_to_install(self) -> str | None:
        return None

    def prepare(self, cache: Path, work: Path) -> None:
        self._cache = cache

    def measure(self, setting: str, workloads: Sequence[Workload], threads: int, processors: Sequence[int]) -> Speeds:
        speeds: dict[Workload, float] = {}
        peak = 0
        prefills = [one.tokens for one in workloads if one.test == "prefill"]
        decodes = by_tokens(one for one in workloads if one.test == "decode")
        for prefill, decode in itertools.zip_longest(prefills, decodes.items()):  # the benchmark always runs both
            tokens, group = decode or (1, [])
            contexts = [one.context for one in group if one.batch == 1] or [0]
            batches = [1, *(one.batch for one in group if one.batch > 1)]
            found = self._bench(setting, prefill or 1, tokens, contexts, batches, threads, processors)
            rates = {Workload(one["test"], one["tokens"], one["context"], one["batch"]): one["tokens_per_s"]
                     for one in found["results"]}
            speeds |= {one: rates[one] for one in workloads if one in rates}
            peak = max(peak, found["peak_rss_bytes"])
        return Speeds(speeds, peak)

    def open(self, setting: str, threads: int, processors: Sequence[int]) -> Opening:
        found = self._bench(setting, FIRST_TOKEN_PROMPT, 1, [0], [1], threads, processors)
        return Opening(found["first_token_s"], found["peak_rss_bytes"])

    def _bench(self, setting: str, prefill: int, tokens: int, contexts: list[int], batches: list[int], threads: int,
               processors: Sequence[int]) -> dict[str, Any]:
        command = [sys.executable, "-m", "kumquant", "bench", str(self._cache), "--json", "--quiet", "--rounds", "1",
                   "--threads", str(threads), "--prefill", str(prefill), "--decode", str(tokens),
                   "--context", ",".join(map(str, contexts)), "--batch", ",".join(map(str, batches))]
        found: dict[str, Any] = json.loads(run_pinned([*command, *self._options[setting]], processors).stdout)
        return found
