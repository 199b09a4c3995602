"""Families as data: config keys, tensor names and forward pass of each model_type; the public TensorCache."""

from .cache import TensorCache
from .config import ModelConfig
from .describe import Description, describe
from .family import Family
from .folder import load_model_config, load_scheme
from .plan import CacheTensor
from .pooling import Pooling, load_pooling, pooling_files
from .records import RecordShape, is_quantized, records_of, scheme_of
from .registry import FAMILIES, family_of
from .rope import depends_on_length, inverse_frequencies
from .spec import DecoderSpec, ExpertSpec, RopeSpec
from .support import FamilySupport, ModeSupport, Support, support

__all__ = [
    "FAMILIES",
    "CacheTensor",
    "DecoderSpec",
    "Description",
    "ExpertSpec",
    "Family",
    "FamilySupport",
    "ModeSupport",
    "ModelConfig",
    "Pooling",
    "RecordShape",
    "RopeSpec",
    "Support",
    "TensorCache",
    "depends_on_length",
    "describe",
    "family_of",
    "inverse_frequencies",
    "is_quantized",
    "load_model_config",
    "load_pooling",
    "load_scheme",
    "pooling_files",
    "records_of",
    "scheme_of",
    "support",
]
