"""Speed and memory of a model, and what a machine can be expected to do."""

from .diagnosis import Bandwidth, Diagnosis, ExpectedSpeed, diagnose
from .run import (
    DEFAULT_BATCH,
    DEFAULT_CONTEXT,
    DEFAULT_DECODE,
    DEFAULT_PREFILL,
    DEFAULT_ROUNDS,
    BenchReport,
    BenchResult,
    BenchSettings,
    run_bench,
)

__all__ = [
    "DEFAULT_BATCH",
    "DEFAULT_CONTEXT",
    "DEFAULT_DECODE",
    "DEFAULT_PREFILL",
    "DEFAULT_ROUNDS",
    "Bandwidth",
    "BenchReport",
    "BenchResult",
    "BenchSettings",
    "Diagnosis",
    "ExpectedSpeed",
    "diagnose",
    "run_bench",
]
