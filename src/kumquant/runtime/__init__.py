"""Tokens → logits and sampled ids: a cache in the native core, one native call per step."""

from .model import Model, StepInput, StepOutput
from .pages import PagePool
from .sampler import SamplerConfig
from .sequence import Sequence

__all__ = ["Model", "PagePool", "SamplerConfig", "Sequence", "StepInput", "StepOutput"]
