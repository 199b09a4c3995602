"""Speed and memory of a model, and what a machine can be expected to do."""

from .diagnose import Bandwidth, Diagnosis, ExpectedSpeed, diagnose
from .run import BenchReport, BenchResult, BenchSettings, run_bench

__all__ = [
    "Bandwidth",
    "BenchReport",
    "BenchResult",
    "BenchSettings",
    "Diagnosis",
    "ExpectedSpeed",
    "diagnose",
    "run_bench",
]
