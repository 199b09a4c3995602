"""convert: a checkpoint folder goes in, a tensor cache comes out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ..errors import RequestError
from ..files import atomic_write, checked_path
from ..processors import MAX_THREADS, default_threads
from ..progress import NO_PROGRESS, Progress
from ..quant import QUANTIZERS
from ..tensor_cache import CacheWriter, FinishedShard, Manifest, shards_that_verify
from .chat_config import CHAT_CONFIG_NAME
from .job import Job, plan_jobs
from .journal import Journal, identity_of, locked
from .loss import Loss, measure
from .output import check_output, clear, copy_small_files, made_folder
from .routes import RouteUse, summarize
from .source import Adapters
from .stream import Target, write_tensors


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    source_bytes: of the checkpoint tensors that were used. cache_bytes: of all shards. resumed_shards:
    taken over from an earlier, interrupted run. bits_per_parameter: as the manifest says it, where float32
    records count 32 bits; stored_bits_per_parameter: bits on disk. routes: by which ways the weights came in, and
    on which of them they lost something; most bytes first. losses: how much, by class of weights.
    """

    source: Path
    out: Path
    model_type: str
    quantization: str
    records: int
    shards: int
    resumed_shards: int
    source_bytes: int
    cache_bytes: int
    bits_per_parameter: float
    stored_bits_per_parameter: float
    seconds: float
    warnings: tuple[str, ...]
    routes: tuple[RouteUse, ...]
    losses: tuple[Loss, ...]


@overload
def convert(source: str | Path, out: str | Path, quantization: str = ..., compat: bool = ..., force: bool = ...,
            threads: int | None = ..., legacy_names: bool = ..., progress: Progress = ..., *,
            lora: Adapters = ..., model_type: str | None = ...) -> ConvertReport: ...
@overload
def convert(source: str | Path, out: str | Path, quantization: list[str] | tuple[str, ...], compat: bool = ...,
            force: bool = ..., threads: int | None = ..., legacy_names: bool = ..., progress: Progress = ..., *,
            lora: Adapters = ..., model_type: str | None = ...) -> list[ConvertReport]: ...
def convert(source: str | Path, out: str | Path, quantization: str | list[str] | tuple[str, ...] = "q4f16_1",
            compat: bool = False, force: bool = False, threads: int | None = None, legacy_names: bool = False,
            progress: Progress = NO_PROGRESS, *, lora: Adapters = (),
            model_type: str | None = None) -> ConvertReport | list[ConvertReport]:
    """Convert the checkpoint ``source``, a folder or ``org/model[@revision]``, into a tensor cache in ``out``.

    quantization: a mode of ``schemes.SCHEMES``, or several: each then goes into ``out/<mode>/``, from one pass
    over the source, and there is a report for each. compat: MLC's bytes, also where Kumquant knows better (the
    same until another quantizer exists). force: replace a cache, or an unfinished conversion, in ``out``;
    files that a conversion does not write are left alone. threads: default: the physical cores this process may
    use; the bytes do not depend on it. legacy_names: also write the manifest as ndarray-cache.json. lora: the folder
    of a LoRA adapter in PEFT's format, or several, merged into the weights in float32. model_type: the family, where
    config.json says another or none ("bert-bge" and "qwen3-embedding" are in no config).

    A source that others quantized goes over without loss where the number systems agree (docs/sources.md); the
    report's routes say what took which way.

    A conversion that was interrupted goes on from its finished shards when it is called again in the same
    way, and its result is the same. The manifest is written last. Memory does not grow with the model: on two
    threads it stays below 48 MiB and an eighth of the largest fused tensor (its scales), beside the program; in
    the modes of layout KN (_0) two sevenths of the largest fused linear (its codes too).

    Raises UnsupportedError (family, mode, dtype), CheckpointError (damaged, or tensors missing, misshapen
    or left over), RequestError (what ``out`` holds), CapacityError (disk full).
    """
    started = time.perf_counter()
    out = checked_path(out, "out")
    _check_arguments(quantization, threads)
    if isinstance(quantization, str):
        jobs = plan_jobs(source, {quantization: out}, compat, lora, progress, model_type=model_type)
    else:
        jobs = plan_jobs(source, _folders(out, quantization), compat, lora, progress, model_type=model_type)
    with _held(out, jobs, force):
        written = _write(jobs, force, threads or default_threads(), legacy_names, progress)
    seconds = time.perf_counter() - started
    reports = [_report(job, manifest, resumed, seconds) for job, (manifest, resumed) in zip(jobs, written, strict=True)]
    return reports[0] if isinstance(quantization, str) else reports


def _check_arguments(quantization: Any, threads: Any) -> None:
    modes = quantization if isinstance(quantization, (list, tuple)) else [quantization]
    if not all(isinstance(mode, str) for mode in modes):
        raise RequestError("not the name of a mode, or a list of names", where="quantization",
                           found=repr(quantization)[:80])
    if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
        raise RequestError("value out of range", where="threads", found=repr(threads)[:80],
                           expected=f"an integer, 1 to {MAX_THREADS}")


def _folders(out: Path, modes: Sequence[str]) -> dict[str, Path]:
    """Where each of several modes goes. Raises RequestError for none, or for one that is given twice."""
    if not modes or len(set(modes)) != len(modes):
        raise RequestError("give every mode once", where="quantization", found=", ".join(modes) or "none")
    return {mode: out / mode for mode in modes}


@contextmanager
def _held(out: Path, jobs: list[Job], force: bool) -> Iterator[None]:
    """Make, lock and check every output folder; those left empty by a failure are removed again."""
    with ExitStack() as held:
        for folder in dict.fromkeys([out, *(job.out for job in jobs)]):
            held.enter_context(made_folder(folder))
        for job in jobs:
            held.enter_context(locked(job.out))
            check_output(job.out, job.checkpoint.folder, force=force)
        yield


def _write(jobs: list[Job], force: bool, threads: int, legacy_names: bool,
           progress: Progress) -> list[tuple[Manifest, int]]:
    """Write the caches into their locked folders; for each its manifest and how many shards were there already.

    Journals go when every cache is whole: until then the same call may be made again.
    """
    written: list[tuple[Manifest, int]] = []
    journals: list[Journal] = []
    with ExitStack() as open_writers:
        targets = []
        for job in jobs:
            journal, keep = _resume(job, force, threads, progress)
            writer = open_writers.enter_context(
                CacheWriter(job.out, job.plan, keep=keep, legacy_names=legacy_names, on_shard=journal.add))
            if not journal.exists() or force:
                clear(job.out)
            journal.start(keep)
            journals.append(journal)
            targets.append((Target(job.tensors, QUANTIZERS[job.quantizer], job.keep_codes, writer), len(keep)))
        checkpoint = jobs[0].checkpoint
        write_tensors([target for target, _ in targets], checkpoint, threads, progress)
        checkpoint.check_unchanged()
        for job, (target, kept) in zip(jobs, targets, strict=True):
            job.warnings.extend(_about_not_finite(target))
            copy_small_files(job.small_files, job.out, job.warnings)
            atomic_write(job.out / CHAT_CONFIG_NAME, json.dumps(job.chat_config, indent=2))
            written.append((target.writer.finish(job.num_values), kept))
    for journal in journals:
        journal.remove()
    return written


def _about_not_finite(target: Target) -> list[str]:
    if not target.not_finite:
        return []
    first, count = next(iter(target.not_finite)), len(target.not_finite)
    others = f" and {count - 1} more" if count > 1 else ""
    return [f"Infinities or NaN in the weights of {first}{others}: they are written as they are, and the model may "
            "answer nonsense. Is the source whole?"]


def _resume(job: Job, force: bool, threads: int, progress: Progress) -> tuple[Journal, list[FinishedShard]]:
    """The job's journal, and the shards of an earlier run that can be kept."""
    options: dict[str, Any] = {"quantization": job.scheme.name, "quantizer": job.quantizer,
                               "keep_codes": job.keep_codes}
    journal = Journal(job.out, identity_of(job.checkpoint, job.plan, options))
    if force or not journal.exists():
        return journal, []
    return journal, shards_that_verify(job.out, journal.load(), progress, threads)


def _report(job: Job, manifest: Manifest, resumed: int, seconds: float) -> ConvertReport:
    used = {name for planned in job.tensors for name in planned.tensor.sources}
    return ConvertReport(
        source=job.checkpoint.folder, out=job.out, model_type=job.family.model_type, quantization=job.scheme.name,
        records=manifest.num_records, shards=len(manifest.shards), resumed_shards=resumed,
        source_bytes=sum(job.checkpoint.tensors[name].nbytes for name in used), cache_bytes=manifest.nbytes,
        bits_per_parameter=float(manifest.metadata["BitsPerParam"]),
        stored_bits_per_parameter=manifest.nbytes * 8.0 / job.num_values, seconds=seconds,
        warnings=tuple(job.warnings),
        routes=summarize(job.tensors, job.checkpoint, job.scheme, quantizer=job.quantizer, keep_codes=job.keep_codes),
        losses=measure(job.tensors, job.checkpoint, job.out),
    )
