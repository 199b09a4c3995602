"""Tokens → logits and sampled ids: loads a cache into the native core and runs it, one native call per step."""

from .model import Model, StepInput, StepOutput
from .pages import PagePool
from .sampler import SamplerConfig
from .sequence import Sequence

__all__ = ["Model", "PagePool", "SamplerConfig", "Sequence", "StepInput", "StepOutput"]
