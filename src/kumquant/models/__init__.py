"""Families as data: config keys, tensor names and forward pass of each model_type; the public TensorCache."""

from .config import ModelConfig
from .family import Family
from .plan import CacheTensor
from .registry import FAMILIES, family_of
from .rope import depends_on_length, inverse_frequencies
from .spec import DecoderSpec, RopeSpec

__all__ = [
    "FAMILIES",
    "CacheTensor",
    "DecoderSpec",
    "Family",
    "ModelConfig",
    "RopeSpec",
    "depends_on_length",
    "family_of",
    "inverse_frequencies",
]
