"""Speed and memory of a model, and what a machine can be expected to do."""

from .comparison import ComparedMeasure, Comparison, LeftOut, PeerFigure, Spread, compare
from .diagnosis import Bandwidth, Diagnosis, ExpectedSpeed, diagnose
from .peers import PEER_NAMES, Kumquant, Opening, Peer, PeerError, Speeds, find_peer, run_pinned
from .run import (
    DEFAULT_BATCH,
    DEFAULT_CONTEXT,
    DEFAULT_DECODE,
    DEFAULT_PREFILL,
    DEFAULT_ROUNDS,
    BenchReport,
    BenchResult,
    BenchSettings,
    planned_workloads,
    run_bench,
)
from .workload import Workload

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_CONTEXT",
    "DEFAULT_DECODE",
    "DEFAULT_PREFILL",
    "DEFAULT_ROUNDS",
    "PEER_NAMES",
    "Bandwidth",
    "BenchReport",
    "BenchResult",
    "BenchSettings",
    "ComparedMeasure",
    "Comparison",
    "Diagnosis",
    "ExpectedSpeed",
    "Kumquant",
    "LeftOut",
    "Opening",
    "Peer",
    "PeerError",
    "PeerFigure",
    "Speeds",
    "Spread",
    "Workload",
    "compare",
    "diagnose",
    "find_peer",
    "planned_workloads",
    "run_bench",
    "run_pinned",
]
