"""convert: a checkpoint folder goes in, a tensor cache comes out."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint, open_checkpoint
from ..errors import RequestError
from ..files import atomic_write
from ..models import Family, family_of
from ..progress import NO_PROGRESS, Progress
from ..quant import COMPATIBLE_QUANTIZER, DEFAULT_QUANTIZER, QUANTIZERS
from ..schemes import Scheme, scheme_named
from ..tensor_cache import CacheWriter, Manifest, ShardPlan, plan_shards, shards_that_verify
from .chat_config import CHAT_CONFIG_NAME, chat_config
from .check import check_sources
from .journal import Journal, identity_of, locked
from .order import PlannedTensor, count_loaded_values, plan_tensors
from .output import check_output, clear, copy_small_files, made_folder
from .stream import Converter, write_tensors


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did.

    source_bytes: of the checkpoint tensors that were used. cache_bytes: of all shards. resumed_shards:
    taken over from an earlier, interrupted run. bits_per_parameter: as the manifest says it, where float32
    records count 32 bits; stored_bits_per_parameter: bits on disk.
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


@dataclass(frozen=True)
class _Job:
    """All that is decided before anything is written."""

    checkpoint: Checkpoint
    family: Family
    scheme: Scheme
    quantizer: str
    keep_codes: bool
    tensors: list[PlannedTensor]
    plan: ShardPlan
    num_values: int
    chat_config: dict[str, Any]
    warnings: list[str]


def convert(source: str | Path, out: str | Path, quantization: str = "q4f16_1", compat: bool = False,
            force: bool = False, threads: int | None = None, legacy_names: bool = False,
            progress: Progress = NO_PROGRESS) -> ConvertReport:
    """Convert the checkpoint folder ``source`` into a tensor cache in the folder ``out``.

    quantization: a mode of ``schemes.SCHEMES``. compat: MLC's bytes, also where Kumquant knows better (the
    same until another quantizer exists). force: replace a cache, or an unfinished conversion, in ``out``;
    files that a conversion does not write are left alone. threads: all cores by default; the bytes do not
    depend on it. legacy_names: also write the manifest as ndarray-cache.json.

    A conversion that was interrupted goes on from its finished shards when it is called again in the same
    way, and its result is the same. The manifest is written last. Memory does not grow with the model: on two
    threads it stays below 48 MiB and an eighth of the largest fused tensor (its scales), beside the program.

    Raises UnsupportedError (family, mode, dtype), CheckpointError (damaged, or tensors missing, misshapen
    or left over), RequestError (what ``out`` holds), CapacityError (disk full).
    """
    started = time.perf_counter()
    out = Path(out)
    if threads is not None and threads < 1:
        raise RequestError("must be at least 1", where="threads", found=threads)
    job = _plan(source, quantization, compat)
    with made_folder(out), locked(out):
        check_output(out, job.checkpoint.folder, force=force)
        threads = threads or _available_threads()
        manifest, resumed = _write(job, out, force, threads, legacy_names, progress)
    return _report(job, out, manifest, resumed, time.perf_counter() - started)


def _plan(source: str | Path, quantization: str, compat: bool) -> _Job:
    scheme = scheme_named(quantization)
    checkpoint = open_checkpoint(source)
    where = str(checkpoint.folder / "config.json")
    family = family_of(checkpoint.config, where=where)
    config = family.config(checkpoint.config, where)
    cache_tensors = family.plan(config, checkpoint.tensors, compat=compat)
    check_sources(cache_tensors, checkpoint, family)
    tensors = plan_tensors(cache_tensors, checkpoint, scheme)
    plan = plan_shards(record for planned in tensors for record in planned.records)
    num_values = count_loaded_values([planned.tensor for planned in tensors], checkpoint, family.uncounted)
    quantizer = COMPATIBLE_QUANTIZER if compat else DEFAULT_QUANTIZER
    # Written at the end, but made now: whatever is wrong with the source shows before the long work.
    warnings: list[str] = []
    chat = chat_config(checkpoint.folder, family, config, scheme, warnings)
    return _Job(checkpoint, family, scheme, quantizer, not compat, tensors, plan, num_values, chat, warnings)


def _write(job: _Job, out: Path, force: bool, threads: int, legacy_names: bool,
           progress: Progress) -> tuple[Manifest, int]:
    """Write the cache into the locked folder; returns its manifest and how many shards were there already."""
    options: dict[str, Any] = {"quantization": job.scheme.name, "quantizer": job.quantizer,
                               "keep_codes": job.keep_codes}
    journal = Journal(out, identity_of(job.checkpoint, job.plan, options))
    is_resumed = journal.exists() and not force
    keep = shards_that_verify(out, journal.load(), progress, threads) if is_resumed else []
    with CacheWriter(out, job.plan, keep=keep, legacy_names=legacy_names, on_shard=journal.add) as writer:
        if not is_resumed:
            clear(out)
        journal.start(keep)
        converter = Converter(job.checkpoint, job.scheme, QUANTIZERS[job.quantizer], job.keep_codes)
        write_tensors(job.tensors, job.checkpoint, converter, writer, threads, progress)
        job.checkpoint.check_unchanged()
        copy_small_files(job.checkpoint, out, job.warnings)
        atomic_write(out / CHAT_CONFIG_NAME, json.dumps(job.chat_config, indent=2))
        manifest = writer.finish(job.num_values)
    journal.remove()
    return manifest, len(keep)


def _available_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _report(job: _Job, out: Path, manifest: Manifest, resumed: int, seconds: float) -> ConvertReport:
    used = {name for planned in job.tensors for name in planned.tensor.sources}
    return ConvertReport(
        source=job.checkpoint.folder, out=out, model_type=job.family.model_type, quantization=job.scheme.name,
        records=manifest.num_records, shards=len(manifest.shards), resumed_shards=resumed,
        source_bytes=sum(job.checkpoint.tensors[name].nbytes for name in used), cache_bytes=manifest.nbytes,
        bits_per_parameter=float(manifest.metadata["BitsPerParam"]),
        stored_bits_per_parameter=manifest.nbytes * 8.0 / job.num_values, seconds=seconds,
        warnings=tuple(job.warnings),
    )
