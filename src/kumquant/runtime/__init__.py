"""Tokens → logits and sampled ids: a cache in the native core, one native call per step."""

from .model import KV_DTYPES, KvDtype, Model, StepInput, StepOutput, check_kv_dtype
from .pace import MAX_CALL_S, Pace
from .pages import PagePool
from .panels import fetch_in_huge_pages, panels_paths, verify_panels
from .panels_writer import PackReport, pack, remove_panels
from .sampler import SamplerConfig
from .sequence import Sequence

__all__ = [
    "KV_DTYPES",
    "MAX_CALL_S",
    "KvDtype",
    "Model",
    "Pace",
    "PackReport",
    "PagePool",
    "SamplerConfig",
    "Sequence",
    "StepInput",
    "StepOutput",
    "check_kv_dtype",
    "fetch_in_huge_pages",
    "pack",
    "panels_paths",
    "remove_panels",
    "verify_panels",
]
