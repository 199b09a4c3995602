"""What this machine is, and how fast models will be on it: ``kumquant doctor``."""

from __future__ import annotations

import os
from dataclasses import dataclass

from .. import _native
from ..processors import available_processors, default_threads
from .machine import cpu_features, cpu_name, memory_bytes

BANDWIDTH_BUFFER = 256 * 2**20  # far more than any cache holds, so that memory is measured
ISA_VARIABLE = "KUMQUANT_ISA"  # names the kernels to use instead of the best (docs/development.md)
BITS_PER_PARAMETER = 4.5  # of the 4-bit modes with 16-bit scales
MODEL_SIZES = {"135M": 0.135e9, "0.5B": 0.5e9, "1B": 1.24e9, "1.7B": 1.7e9, "3B": 3.2e9, "8B": 8.0e9}
MEMORY_HEADROOM = 1.2  # weights, and some room for the KV cache and everything else


@dataclass(frozen=True)
class Bandwidth:
    """Memory read by so many threads at once."""

    threads: int
    bytes_per_s: float


@dataclass(frozen=True)
class ExpectedSpeed:
    """A model size at 4.5 bits per parameter. tokens_per_s: bandwidth / nbytes, the most decode can do."""

    model: str
    nbytes: int
    tokens_per_s: float
    fits: bool


@dataclass(frozen=True)
class Diagnosis:
    """features: what the processor has of interest. isa: the kernels Kumquant uses, of isa_available (best
    last).

    threads: those the expectation is for. notes: what is worth changing.
    """

    cpu: str
    features: tuple[str, ...]
    isa: str
    isa_available: tuple[str, ...]
    processors: int
    physical_cores: int
    threads: int
    memory_bytes: int
    available_bytes: int
    bandwidth: tuple[Bandwidth, ...]
    expected: tuple[ExpectedSpeed, ...]
    notes: tuple[str, ...]


def diagnose(threads: int | None = None) -> Diagnosis:
    """Look at the machine and measure its memory bandwidth (about a second).

    threads: default the physical cores this process may use.
    """
    threads = threads or default_threads()
    isas = tuple(_native.isa_list())
    total, available = memory_bytes()
    bandwidth = tuple(
        Bandwidth(count, float(_native.read_bandwidth(BANDWIDTH_BUFFER, count)))
        for count in sorted({1, threads})
    )
    return Diagnosis(
        cpu=cpu_name(), features=cpu_features(), isa=os.environ.get(ISA_VARIABLE) or isas[-1],
        isa_available=isas,
        processors=len(available_processors()), physical_cores=default_threads(), threads=threads,
        memory_bytes=total, available_bytes=available, bandwidth=bandwidth,
        expected=tuple(_expected(bandwidth[-1].bytes_per_s, available)), notes=tuple(_notes(isas, threads)),
    )


def _expected(bytes_per_s: float, available: int) -> list[ExpectedSpeed]:
    sizes = {name: int(count * BITS_PER_PARAMETER / 8) for name, count in MODEL_SIZES.items()}
    return [
        ExpectedSpeed(name, nbytes, bytes_per_s / nbytes, fits=nbytes * MEMORY_HEADROOM <= available)
        for name, nbytes in sizes.items()
    ]


def _notes(isas: tuple[str, ...], threads: int) -> list[str]:
    notes = []
    if len(isas) == 1:
        notes.append("only portable kernels run here; AVX2 or AVX-512 VNNI would be several times faster")
    if threads > default_threads():
        notes.append(f"more threads than the {default_threads()} physical cores rarely help")
    return notes
