"""plan: what converting a source would do, from its headers and configs alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import Error
from ..hub import outline
from ..processors import default_threads
from ..quant import quantize
from ..schemes import SCHEMES, Scheme
from .job import Job, plan_jobs
from .order import PlannedTensor
from .routes import RouteUse, route_of, summarize
from .source import Adapters

# Memory, as measured by benchmarks/convert_speed.py: the program, then what each thread's blocks take.
PROGRAM_BYTES = 64 << 20
BYTES_PER_THREAD = 24 << 20
# Reading, casting, md5 and writing; a middling disk. Stated, not measured: the disk may be anywhere.
STREAM_BYTES_PER_S = 1.0e9
# Unpacking weights that others quantized, a thread; measured for GPTQ on a Zen 4 core (400 million).
UNPACKED_VALUES_PER_S = 0.3e9
_PROBE_SHAPE = (256, 2048)


@dataclass(frozen=True)
class ModePlan:
    """One mode. cache_bytes: of all shards. bits_per_parameter: on disk. peak_memory_bytes, seconds: expected.

    routes: as ``convert`` will report them. stopped_by: why this mode cannot be made; the numbers are then 0.
    """

    quantization: str
    cache_bytes: int
    bits_per_parameter: float
    peak_memory_bytes: int
    seconds: float
    routes: tuple[RouteUse, ...]
    stopped_by: str | None = None

    @property
    def lossy_bytes(self) -> int:
        """Source bytes of the tensors that lose something."""
        return sum(use.source_bytes for use in self.routes if not use.is_lossless)


@dataclass(frozen=True)
class TensorPlan:
    """One checkpoint tensor: where it goes, by which route in each mode that can be made."""

    name: str
    shape: tuple[int, ...]
    stored_as: str
    record: str
    routes: dict[str, str]


@dataclass(frozen=True)
class PlanReport:
    """What converting ``source`` would do. tensors: those that a cache takes from it, in its order."""

    source: str
    model_type: str
    num_values: int
    source_bytes: int
    threads: int
    modes: tuple[ModePlan, ...]
    tensors: tuple[TensorPlan, ...]
    warnings: tuple[str, ...]


def plan(source: str | Path, quantization: str | Sequence[str] = (), compat: bool = False, threads: int | None = None,
         *, lora: Adapters = (), model_type: str | None = None) -> PlanReport:
    """Say what ``convert`` would do with ``source``, reading headers and configs only.

    source: as for ``convert``; of a model on the hub only headers are fetched. quantization: modes; every mode that
    can be written by default. threads, lora, model_type: as for ``convert``. Times come from quantizing 1 MiB in every
    mode on this machine, and from a stated rate for the rest.

    Raises what ``convert`` would raise before its work, if no mode can be made.
    """
    modes = [quantization] if isinstance(quantization, str) else list(quantization)
    modes = modes or [name for name, scheme in SCHEMES.items() if scheme.can_convert and scheme.storage != "awq"]
    threads = threads or default_threads()
    planned: list[ModePlan] = []
    jobs: list[Job] = []
    with outline(source) as (folder, is_whole):
        for mode in modes:
            try:
                job = plan_jobs(folder, {mode: Path()}, compat, lora, model_type=model_type,
                                headers_only=not is_whole)[0]
            except Error as error:
                if mode == modes[-1] and not jobs:
                    raise
                planned.append(ModePlan(mode, 0, 0.0, 0, 0.0, (), stopped_by=str(error)))
                continue
            jobs.append(job)
            planned.append(_plan_of(job, threads))
    return _report(str(source), jobs, planned, threads)


def _plan_of(job: Job, threads: int) -> ModePlan:
    routes = summarize(job.tensors, job.checkpoint, job.scheme, quantizer=job.quantizer, keep_codes=job.keep_codes)
    return ModePlan(
        job.scheme.name, job.plan.nbytes, job.plan.nbytes * 8 / job.num_values,
        PROGRAM_BYTES + BYTES_PER_THREAD * threads + max(map(_bytes_kept, job.tensors)),
        _seconds(job, threads), routes)


def _bytes_kept(planned: PlannedTensor) -> int:
    """What of a tensor waits in memory: its scales until its codes are written; in layout KN its codes too."""
    if not planned.is_quantized:
        return 0
    sizes = [int(np.prod(shape)) * (4 if dtype in ("uint32", "float32") else 2) for _, shape, dtype in planned.records]
    return sum(sizes) if planned.is_transposed else sum(sizes[1:])


def _seconds(job: Job, threads: int) -> float:
    quantized = unpacked = 0
    for planned in job.tensors:
        for name in planned.tensor.sources:
            info = job.checkpoint.tensors[name]
            if planned.is_quantized and job.keep_codes and job.checkpoint.has_codes(name, planned.scheme):
                continue
            quantized += info.num_values if planned.is_quantized else 0
            unpacked += info.num_values if info.stored_as else 0
    quantizing = quantized / _values_per_second(job.scheme, threads) if quantized else 0.0
    streaming = (_source_bytes(job) + job.plan.nbytes) / STREAM_BYTES_PER_S
    return quantizing + unpacked / (UNPACKED_VALUES_PER_S * threads) + streaming


def _values_per_second(scheme: Scheme, threads: int) -> float:
    """Measured: 1 MiB of float16, twice, the second time counts."""
    weight = np.linspace(-1, 1, _PROBE_SHAPE[0] * _PROBE_SHAPE[1], dtype=np.float32).reshape(_PROBE_SHAPE)
    weight = weight.astype(np.float16)
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        quantize(weight, scheme, threads)
        seconds = time.perf_counter() - started
    return weight.size / seconds


def _source_bytes(job: Job) -> int:
    used = {name for planned in job.tensors for name in planned.tensor.sources}
    return sum(job.checkpoint.tensors[name].nbytes for name in used)


def _report(source: str, jobs: list[Job], planned: list[ModePlan], threads: int) -> PlanReport:
    first = jobs[0]
    routes: dict[str, dict[str, str]] = {}
    records: dict[str, str] = {}
    for job in jobs:
        for tensor in job.tensors:
            for name in tensor.tensor.sources:
                route = route_of(job.checkpoint.tensors[name], tensor, job.checkpoint, job.scheme,
                                 quantizer=job.quantizer, keep_codes=job.keep_codes)
                routes.setdefault(name, {})[job.scheme.name] = route.description
                records.setdefault(name, tensor.tensor.name)
    tensors = tuple(TensorPlan(name, info.shape, info.stored_as or info.dtype, records[name], routes[name])
                    for name, info in first.checkpoint.tensors.items() if name in records)
    num_values = sum(info.num_values for name, info in first.checkpoint.tensors.items() if name in records)
    warnings = dict.fromkeys(warning for job in jobs for warning in job.warnings)
    return PlanReport(source, first.family.model_type, num_values, _source_bytes(first), threads, tuple(planned),
                      tensors, tuple(warnings))
