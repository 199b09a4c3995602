"""llama.cpp and its fork ik_llama.cpp: their own benchmark programs on a GGUF file of the cache."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..workload import FIRST_TOKEN_PROMPT, Workload, by_tokens
from .peer import Opening, Peer, Speeds
from .process import Finished, PeerError, run_pinned

_BENCH, _BATCHED_BENCH, _QUANTIZE = "llama-bench", "llama-batched-bench", "llama-quantize"
_TABLE_ROW = re.compile(r"^\|\s*\d+ \|\s*\d+ \|\s*(\d+) \|" + r"\s*[\d.]+ \|" * 4 + r"\s*([\d.]+) \|", re.MULTILINE)


class LlamaCpp(Peer):
    """llama.cpp as it comes, and without flash attention and with 8-bit keys, which is faster for small heads."""

    name = "llama.cpp"
    _options: ClassVar[dict[str, list[str]]] = {"default": [], "fa off, q8_0 K": ["-fa", "off", "-ctk", "q8_0"]}
    _no_warmup: tuple[str, ...] = ("--no-warmup",)
    _how_to_install = (
        "build llama-bench and llama-batched-bench (https://github.com/ggml-org/llama.cpp) and put them on PATH, or "
        "name their folder: --compare llama.cpp=FOLDER"
    )

    def __init__(self, location: Path | None = None) -> None:
        self._location = location and location.resolve()
        self.settings = tuple(self._options)
        self._model = Path()

    def how_to_install(self) -> str | None:
        found = self._program(_BENCH) and self._program(_BATCHED_BENCH)
        return None if found else self._how_to_install

    def prepare(self, cache: Path, work: Path) -> None:
        self._model = work.resolve() / "model-q4_0.gguf"
        if not self._model.exists():
                gguf_file: Any = importlib.import_module(".gguf_file", __package__)
                gguf_file.write_gguf(cache, self._model)

    def measure(self, setting: str, workloads: Sequence[Workload], threads: int, processors: Sequence[int]) -> Speeds:
        speeds: dict[Workload, float] = {}
        peak = 0
        prefills = [one for one in workloads if one.test == "prefill"]
        singles = [one for one in workloads if one.test == "decode" and one.batch == 1]
        if prefills:
            lengths = ",".join(str(one.tokens) for one in prefills)
            found = self._bench(setting, ["-p", lengths, "-n", "0"], threads, processors)
            rates = _rates(found, "n_prompt")
            speeds |= {one: _told(rates, one.tokens, one) for one in prefills}
            peak = found.peak_rss_bytes
        for tokens, group in by_tokens(singles).items():
            found, rates = self._decode(setting, tokens, [one.context for one in group], threads, processors)
            speeds |= {one: _told(rates, one.context, one) for one in group}
            peak = max(peak, found.peak_rss_bytes)
        batches = [one for one in workloads if one.batch > 1]
        if batches:
            speeds |= self._batches(setting, batches, threads, processors)
        return Speeds(speeds, peak)

    def open(self, setting: str, threads: int, processors: Sequence[int]) -> Opening:
        """The whole life of a llama-bench that warms nothing up: its start and end count too, some 20 ms."""
        options = ["-p", str(FIRST_TOKEN_PROMPT), "-n", "0", *self._no_warmup]
        found = self._bench(setting, options, threads, processors)
        return Opening(found.seconds, found.peak_rss_bytes)

    def _decode(self, setting: str, tokens: int, contexts: list[int], threads: int,
                processors: Sequence[int]) -> tuple[Finished, dict[int, float]]:
        """Tokens per second by context."""
        depths = ",".join(map(str, contexts))
        found = self._bench(setting, ["-p", "0", "-n", str(tokens), "-d", depths], threads, processors)
        return found, _rates(found, "n_depth")

    def _batches(self, setting: str, batches: list[Workload], threads: int,
                 processors: Sequence[int]) -> dict[Workload, float]:
        speeds: dict[Workload, float] = {}
        for tokens, group in by_tokens(batches).items():
            room = max(one.batch * (one.length + 1) for one in group)
            found = _call(
                [self._require(_BATCHED_BENCH), "-m", str(self._model_for(setting)), "-t", str(threads), "-tb",
                 str(threads), "-c", str(2 * room), "-npp", str(group[0].context), "-ntg", str(tokens), "-npl",
                 ",".join(str(one.batch) for one in group), *self._batch_options(setting)], processors)
            rates = {int(batch): float(rate) for batch, rate in _TABLE_ROW.findall(found.stdout + found.stderr)}
            speeds |= {one: _told(rates, one.batch, one) for one in group}
        return speeds

    def _bench(self, setting: str, options: list[str], threads: int, processors: Sequence[int]) -> Finished:
        return _call([self._require(_BENCH), "-m", str(self._model_for(setting)), "-t", str(threads), "-r", "1",
                      "-o", "json", *self._options[setting], *options], processors)

    def _batch_options(self, setting: str) -> list[str]:
        return self._options[setting]

    def _model_for(self, setting: str) -> Path:
        return self._model

    def _program(self, name: str) -> str | None:
        if self._location is None:
            return shutil.which(name)
        path = self._location / name
        return str(path) if os.access(path, os.X_OK) and path.is_file() else None

    def _require(self, name: str) -> str:
        program = self._program(name)
        if program is None:
            raise PeerError("is not installed", where=name, hint=self._how_to_install)
        return program


class IkLlamaCpp(LlamaCpp):
    """ik_llama.cpp, its rows interleaved at load or, where its llama-quantize is there too, in the file."""

    name = "ik_llama.cpp"
    _REPACKED = "repacked file"
    _options: ClassVar[dict[str, list[str]]] = {
        "rtr, fa off": ["-rtr", "1", "-fa", "0"],
        "rtr": ["-rtr", "1", "-fa", "1"],
        "rtr, q8_0 KV": ["-rtr", "1", "-fa", "1", "-ctk", "q8_0", "-ctv", "q8_0"],
        _REPACKED: ["-fa", "1"],
    }
    _no_warmup = ("-w", "0")
    _how_to_install = (
        "build llama-bench and llama-batched-bench of https://github.com/ikawrakow/ik_llama.cpp and name their folder: "
        "--compare ik_llama.cpp=FOLDER"
    )

    def __init__(self, location: Path | None = None) -> None:
        super().__init__(location)
        if self._program(_QUANTIZE) is None:
            self.settings = tuple(name for name in self.settings if name != self._REPACKED)

    def how_to_install(self) -> str | None:
        """Its programs are named like llama.cpp's, so they are not looked for on PATH."""
        return self._how_to_install if self._location is None else super().how_to_install()

    def prepare(self, cache: Path, work: Path) -> None:
        super().prepare(cache, work)
        repacked = self._model_for(self._REPACKED)
        if self._REPACKED in self.settings and not repacked.exists():
            _call([self._require(_QUANTIZE), "--repack", str(self._model), str(repacked), "q4_0_r8"], None)

    def _decode(self, setting: str, tokens: int, contexts: list[int], threads: int,
                processors: Sequence[int]) -> tuple[Finished, dict[int, float]]:
        """Its llama-bench has no depth, but generates after a prompt."""
        options = ["-p", "0", "-n", "0"]
        for context in contexts:
            options += ["-gp", f"{context},{tokens}"] if context else ["-n", str(tokens)]
        found = self._bench(setting, options, threads, processors)
        return found, _rates(found, "n_prompt")

    def _batch_options(self, setting: str) -> list[str]:
        """There, -rtr is a flag without a value."""
        options = self._options[setting]
        return ["-rtr", *options[2:]] if options[0] == "-rtr" else options

    def _model_for(self, setting: str) -> Path:
        return self._model.with_name("model-q4_0_r8.gguf") if setting == self._REPACKED else self._model


def _call(command: list[str], processors: Sequence[int] | None) -> Finished:
    """Some of these programs leave a log where they are called: nobody's folder."""
    with tempfile.TemporaryDirectory(prefix="kumquant-peers-") as nowhere:
        return run_pinned(command, processors, cwd=nowhere)


def _rates(found: Finished, key: str) -> dict[int, float]:
    """Tokens per second by one of llama-bench's keys."""
    return {line[key]: line["avg_ts"] for line in found.json_array() if key in line and "avg_ts" in line}


def _told(rates: dict[int, float], key: int, workload: Workload) -> float:
    if key not in rates:
        raise PeerError("tells no speed of this", where=workload, found=sorted(rates), expected=key)
    return rates[key]
