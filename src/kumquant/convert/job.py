"""What converting a source into a mode means, decided before anything is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import Checkpoint
from ..errors import RequestError, UnsupportedError
from ..models import Family, family_of
from ..progress import NO_PROGRESS, Progress
from ..quant import COMPATIBLE_QUANTIZER, DEFAULT_QUANTIZER
from ..schemes import SCHEMES, Scheme, UnknownModeError, scheme_named
from ..tensor_cache import ShardPlan, plan_shards
from .awq import parts_of
from .chat_config import chat_config
from .check import check_sources, check_spare_head
from .order import PlannedTensor, count_loaded_values, plan_tensors
from .output import SmallFiles, small_files_folder, small_files_of
from .source import Adapters, open_source


@dataclass(frozen=True)
class Job:
    """All that is decided about one cache before anything is written."""

    out: Path
    checkpoint: Checkpoint
    family: Family
    scheme: Scheme
    quantizer: str
    keep_codes: bool
    tensors: list[PlannedTensor]
    plan: ShardPlan
    num_values: int
    small_files: SmallFiles
    chat_config: dict[str, Any]
    warnings: list[str]


def plan_jobs(source: str | Path, folders: dict[str, Path], compat: bool, lora: Adapters = (),
              progress: Progress = NO_PROGRESS, *, model_type: str | None = None,
              headers_only: bool = False) -> list[Job]:
    """One job for each mode. folders: mode -> where its cache goes. model_type: the family, where config.json says
    another. headers_only: see ``open_checkpoint``.

    Raises UnsupportedError (family, mode, dtype), CheckpointError (damaged, tensors missing, misshapen or left over).
    """
    schemes = {mode: _writable_scheme(mode) for mode in folders}
    checkpoint = open_source(source, lora, progress, headers_only=headers_only)
    family = family_of(checkpoint.config, model_type, where=checkpoint.config_source)
    config = family.config(checkpoint.config, checkpoint.config_source)
    cache_tensors = family.plan(config, checkpoint.tensors, compat=compat)
    awq = next((scheme for scheme in schemes.values() if scheme.storage == "awq"), None)
    if awq is not None:
        if len(schemes) > 1:
            raise RequestError("takes over the source's own bytes, and goes with no other mode", where=awq.name,
                               found=", ".join(schemes), hint="Convert to the other modes in a run of their own.")
        cache_tensors = parts_of(cache_tensors, checkpoint, awq)
        checkpoint = checkpoint.parts()
    check_sources(cache_tensors, checkpoint, family)
    if not (compat or headers_only):
        check_spare_head(cache_tensors, checkpoint, family)
    quantizer = COMPATIBLE_QUANTIZER if compat else DEFAULT_QUANTIZER
    small_files = small_files_of(checkpoint)
    jobs = []
    for mode, scheme in schemes.items():
        tensors = plan_tensors(cache_tensors, checkpoint, scheme)
        plan = plan_shards(record for planned in tensors for record in planned.records)
        num_values = count_loaded_values([planned.tensor for planned in tensors], checkpoint, family.uncounted)
        # Written at the end, but made now: whatever is wrong with the source shows before the long work.
        warnings: list[str] = []
        with small_files_folder(checkpoint, small_files) as folder:
            chat = chat_config(folder, family, config, scheme, warnings, compat)
        jobs.append(Job(folders[mode], checkpoint, family, scheme, quantizer, not compat, tensors, plan, num_values,
                         small_files, chat, warnings))
    return jobs


def _writable_scheme(mode: str) -> Scheme:
    scheme = scheme_named(mode, UnknownModeError)
    if not scheme.can_convert:
        raise UnsupportedError("this mode can be read, but not written", where=mode,
                               expected=", ".join(name for name, other in SCHEMES.items() if other.can_convert),
                               hint="Choose one of the modes above (-q/--quantization).")
    return scheme
