"""Which modes could have written a set of records, by their names, shapes and dtypes alone."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ..schemes import SCHEMES, Scheme
from ..tensor_cache import Record

_PARTS = re.compile(
    r"\.(q_weight|q_scale|q_calibration_scale|qweight|qzeros|scales|weight_scale_inv|activation_scale)$")
_PLAIN_EMBEDDING = re.compile(r"(embed_tokens|embed_in|wte|embd|word_embeddings|tok_embeddings|embedding)\.weight$")


def parameter_name(record_name: str) -> str:
    """A record's name as the parameter it belongs to: "….q_weight" and "….q_scale" are "….weight"."""
    return _PARTS.sub(".weight", record_name)


def possible_schemes(records: Mapping[str, Record]) -> list[Scheme]:
    """Every mode that the records fit, the likeliest first. Modes of three and four bits often both fit."""
    if any(record.dtype.startswith("float8") for record in records.values()):
        return _float8_schemes(records)
    if any(name.endswith(".qzeros") for name in records):
        return [SCHEMES["q4f16_autoawq"]]
    stems = [name.removesuffix(".q_scale") for name in records if name.endswith(".q_scale")]
    pairs = [(records.get(f"{stem}.q_weight"), records[f"{stem}.q_scale"]) for stem in stems]
    matrices = [record for record in records.values() if len(record.shape) > 1]  # biases may have a dtype of their own
    dtype = _model_dtype([scale for _, scale in pairs] or matrices or list(records.values()))
    if not pairs:
        return [scheme for scheme in SCHEMES.values() if scheme.storage == "plain" and scheme.model_dtype == dtype]
    has_plain_ends = any(_PLAIN_EMBEDDING.search(name) for name in records)
    fitting = [
        scheme for scheme in SCHEMES.values()
        if scheme.has_groups and scheme.model_dtype == dtype and scheme.quantize_ends != has_plain_ends
        and _fits_layout(pairs, scheme)
    ]
    return sorted(fitting, key=lambda scheme: scheme.bits != 4)


def _model_dtype(records: list[Record]) -> str | None:
    """The one dtype of scales or plain tensors; None if there is no such."""
    if len({record.dtype for record in records}) != 1:
        return None
    dtype = records[0].dtype
    if dtype == "bfloat16" and all(record.format == "raw" for record in records):
        return "float32"  # the -b16 twin of a float32 mode says so
    return dtype


def _float8_schemes(records: Mapping[str, Record]) -> list[Scheme]:
    def has(suffix: str) -> bool:
        return any(name.endswith(suffix) for name in records)

    if has(".weight_scale_inv"):
        name = "fp8_e4m3fn_bf16_block_scale" + ("_static_activation" if has(".activation_scale") else "")
    elif any(record.dtype == "float8_e5m2" for record in records.values()):
        name = "e5m2_e5m2_f16"
    else:
        name = "e4m3_e4m3_f16" + ("" if has(".q_calibration_scale") else "_max_calibrate")
    return [SCHEMES[name]]


def _fits_layout(pairs: list[tuple[Record | None, Record]], scheme: Scheme) -> bool:
    """Whether all are codes and scales of this mode, and in layout KN at least one is transposed."""
    if not all(codes is not None and codes.dtype == "uint32" for codes, _ in pairs):
        return False
    by_rows = [_are_packed(codes.shape, scales.shape, scheme) for codes, scales in pairs if codes]
    if scheme.layout == "NK":
        return all(by_rows)
    by_columns = [_are_packed(codes.shape[::-1], scales.shape[::-1], scheme) for codes, scales in pairs if codes]
    return any(by_columns) and all(map(max, by_rows, by_columns))


def _are_packed(codes: tuple[int, ...], scales: tuple[int, ...], scheme: Scheme) -> bool:
    """Whether shapes (…, rows, words) and (…, rows, groups) belong to one matrix in this mode."""
    if len(codes) < 2 or codes[:-1] != scales[:-1]:
        return False
    return codes[-1] * scheme.codes_per_word == scales[-1] * scheme.group_size
