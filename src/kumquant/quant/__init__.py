"""Quantizers: pure functions from a weight to codes and scales in a scheme's layout."""

from .native import SOURCE_DTYPES, cast, round_to_nearest
from .quantizers import (
    COMPATIBLE_QUANTIZER,
    DEFAULT_QUANTIZER,
    QUANTIZERS,
    RowQuantizer,
    new_outputs,
    quantize,
)

__all__ = [
    "COMPATIBLE_QUANTIZER",
    "DEFAULT_QUANTIZER",
    "QUANTIZERS",
    "SOURCE_DTYPES",
    "RowQuantizer",
    "cast",
    "new_outputs",
    "quantize",
    "round_to_nearest",
]
