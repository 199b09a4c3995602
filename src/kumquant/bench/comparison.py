"""``kumquant bench --compare``: the same weights and the same work in other runtimes, paired in every round."""

from __future__ import annotations

import hashlib
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import Error, RequestError
from ..files import translated_os_errors
from ..models import TensorCache
from ..processors import default_threads, processors_for
from ..progress import NO_PROGRESS, Progress
from ..runtime import KvDtype
from .machine import cpu_name
from .peers import Kumquant, Peer, PeerError
from .run import BenchSettings, planned_workloads
from .workload import Workload

FIRST_TOKEN, PEAK_MEMORY = "first token", "peak memory"  # what is measured besides workloads
_OWN_SETTING = "default"
_UNITS = {FIRST_TOKEN: "s", PEAK_MEMORY: "bytes"}

Rounds = dict[int, float]  # round -> figure


@dataclass(frozen=True)
class Spread:
    """Over the rounds."""

    median: float
    min: float
    max: float


@dataclass(frozen=True)
class PeerFigure:
    """A peer at the setting with the better median. ratio: Kumquant's figure over the peer's of the same round."""

    peer: str
    setting: str
    figure: Spread
    ratio: Spread


@dataclass(frozen=True)
class ComparedMeasure:
    """measure: "prefill 512", "decode @0", "batch 8", "first token" (opening and a 16-token prompt), "peak memory" (of
    that). unit: "tokens/s" (of the whole batch), "s" or "bytes".
    """

    measure: str
    unit: str
    kumquant: Spread
    peers: tuple[PeerFigure, ...]


@dataclass(frozen=True)
class LeftOut:
    """A peer without figures, and what to do about it."""

    peer: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """missing: peers that are not installed. failed: those that did not run, or cannot take this model."""

    cpu: str
    threads: int
    rounds: int
    results: tuple[ComparedMeasure, ...]
    missing: tuple[LeftOut, ...]
    failed: tuple[LeftOut, ...]


def compare(folder: str | Path, peers: Sequence[Peer], settings: BenchSettings | None = None, *,
            threads: int | None = None, kv_dtype: KvDtype = "auto", models: Path | None = None,
            progress: Progress = NO_PROGRESS) -> Comparison:
    """Measure the cache in ``folder`` and the same weights in each peer that is installed.

    Every engine, and every setting of a peer, runs once a round in processes of its own, on the same ``threads``
    processors (default: the physical cores); odd rounds in the opposite order. kv_dtype: Kumquant's. models: where the
    peers' own models are written, and found again (default: a temporary folder). Raises PeerError where no peer is
    installed, or Kumquant's own benchmark fails.
    """
    settings = settings or BenchSettings()
    cache = TensorCache.open(folder)
    workloads = planned_workloads(settings, cache.spec.context_length)
    threads = threads or default_threads()
    missing = [LeftOut(peer.name, how) for peer in peers if (how := peer.how_to_install())]
    present = [peer for peer in peers if peer.name not in {one.peer for one in missing}]
    if not present:
        raise PeerError("none of the peers is installed", where="--compare",
                           found=", ".join(peer.name for peer in peers),
                           hint="\n".join(f"{one.peer}: {one.reason}" for one in missing))
    with _models_folder(models, cache) as work:
        rounds = _Rounds([Kumquant({_OWN_SETTING: ("--kv-dtype", kv_dtype)}), *present], workloads, threads)
        rounds.prepare(cache.folder, work)
        progress.start(settings.rounds * rounds.num_turns, "compare")
        try:
            for number in range(settings.rounds):
                rounds.run(number, lambda note: progress.advance(1, note))
        finally:
            progress.finish()
    results = rounds.results([str(one) for one in workloads] + list(_UNITS))
    return Comparison(cpu_name(), threads, settings.rounds, results, tuple(missing), tuple(rounds.failed))


class _Rounds:
    """Figures as they come in: (engine, setting, measure) -> round -> figure."""

    def __init__(self, engines: list[Peer], workloads: Sequence[Workload], threads: int) -> None:
        self._engines, self._workloads = engines, workloads
        self._threads, self._processors = threads, processors_for(threads)
        self._figures: dict[tuple[str, str, str], Rounds] = {}
        self.failed: list[LeftOut] = []

    @property
    def num_turns(self) -> int:
        """Of one round."""
        return sum(len(engine.settings) for engine in self._engines)

    def prepare(self, cache: Path, work: Path) -> None:
        for engine in list(self._engines):
            self._unless_it_fails(engine, partial(engine.prepare, cache, work))

    def run(self, number: int, done: Callable[[str], None]) -> None:
        turns = [(engine, setting) for engine in self._engines for setting in engine.settings]
        for engine, setting in turns if number % 2 == 0 else reversed(turns):
            if engine in self._engines:
                self._unless_it_fails(engine, partial(self._turn, engine, setting, number))
            done(f"{engine.name}, {setting}")

    def results(self, measures: list[str]) -> tuple[ComparedMeasure, ...]:
        return tuple(self._compared(measure) for measure in measures)

    def _turn(self, engine: Peer, setting: str, number: int) -> None:
        speeds = engine.measure(setting, self._workloads, self._threads, self._processors)
        opening = engine.open(setting, self._threads, self._processors)
        figures = {str(one): rate for one, rate in speeds.tokens_per_s.items()}
        figures |= {FIRST_TOKEN: opening.seconds, PEAK_MEMORY: float(opening.peak_rss_bytes)}
        for measure, figure in figures.items():
            self._figures.setdefault((engine.name, setting, measure), {})[number] = figure

    def _unless_it_fails(self, engine: Peer, work: Callable[[], None]) -> None:
        """A peer that fails is out of the comparison; Kumquant's own failure ends it."""
        try:
            work()
        except Error as error:
            if isinstance(engine, Kumquant) or isinstance(error, RequestError):
                raise
            self.failed.append(LeftOut(engine.name, str(error)))
            self._engines.remove(engine)

    def _compared(self, measure: str) -> ComparedMeasure:
        own = self._figures[Kumquant.name, _OWN_SETTING, measure]
        better = min if measure in _UNITS else max
        peers = []
        for engine in self._engines:
            found = {setting: self._figures[engine.name, setting, measure] for setting in engine.settings
                     if (engine.name, setting, measure) in self._figures}
            if isinstance(engine, Kumquant) or not found:
                continue
            setting = better(found, key=lambda name: statistics.median(found[name].values()))
            ratios = [own[number] / figure for number, figure in found[setting].items()]
            peers.append(PeerFigure(engine.name, setting, _spread(found[setting].values()), _spread(ratios)))
        return ComparedMeasure(measure, _UNITS.get(measure, "tokens/s"), _spread(own.values()), tuple(peers))


@contextmanager
def _models_folder(models: Path | None, cache: TensorCache) -> Iterator[Path]:
    """A folder for the peers' models of this cache: named after it and its content in ``models``, or temporary."""
    if models is None:
        with tempfile.TemporaryDirectory(prefix="kumquant-peers-") as temporary:
            yield Path(temporary)
        return
    digest = hashlib.sha256(cache.manifest.to_text().encode()).hexdigest()[:12]
    folder = models / f"{cache.folder.resolve().name}-{digest}"
    with translated_os_errors("make the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    yield folder


def _spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(statistics.median(found), min(found), max(found))
