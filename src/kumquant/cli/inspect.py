"""Show what is in a cache: its model, its size, its records.

A bare manifest is enough, without its shards: then the model is read off names and shapes, and what is a
guess is marked as inferred.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

from ..errors import CheckpointError, TensorCacheError, UnsupportedError
from ..models import Description, TensorCache, describe
from ..tensor_cache import Record
from .options import add_json
from .output import counted, format_bytes, print_facts, print_json, print_table, warn

DIMENSIONS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "tie_word_embeddings",
)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kumquant inspect DIR_OR_MANIFEST [options]"
    parser.add_argument("model", metavar="DIR_OR_MANIFEST", help="a cache folder, or a manifest on its own")
    parser.add_argument("--summary", action="store_true", help="leave out the table of records")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    cache = TensorCache.open(args.model, allow_missing_shards=True)
    model, remarks = _model_of(cache)
    warn(args, remarks)
    if args.json:
        print_json(_document(cache, model))
        return 0
    print_facts(_facts(cache, model))
    if not args.summary:
        print()
        _print_records(cache)
    return 0


def _model_of(cache: TensorCache) -> tuple[Description, list[str]]:
    """What is known about the model: from its config if there is one, else from names and shapes."""
    described = describe(cache.manifest)
    remarks = []
    try:
        if cache.scheme is not None:
            described = replace(described, quantization=cache.scheme.name)
    except (TensorCacheError, UnsupportedError) as error:
        remarks.append(str(error))
    try:
        config = cache.config
    except (CheckpointError, UnsupportedError) as error:
        if any((cache.folder / name).exists() for name in ("config.json", "mlc-chat-config.json")):
            remarks.append(str(error))
        return described, remarks
    known = {name: getattr(config, name) for name in DIMENSIONS}
    if cache.family.is_encoder:
        known["tie_word_embeddings"] = None  # there is no head at all
    return replace(described, families=(cache.family.model_type,), inferred=(), **known), remarks


def _facts(cache: TensorCache, model: Description) -> list[tuple[str, str]]:
    manifest, missing = cache.manifest, cache.missing_shards
    shards = f"{format_bytes(manifest.nbytes)} in {counted(len(manifest.shards), 'shard')}"
    return [
        ("manifest", str(manifest.path)),
        ("family", " or ".join(model.families) or "unknown"),
        ("quantization", model.quantization or "unknown"),
        ("dimensions", _dimensions(model)),
        ("heads", _heads(model)),
        ("parameters", "unknown" if model.num_values is None else f"{model.num_values:,}"),
        ("bits a parameter", _bits(model)),
        ("stored", f"{shards}, {counted(manifest.num_records, 'record')}"),
        ("missing shards", ", ".join(missing) or "none"),
    ]


def _dimensions(model: Description) -> str:
    named = (("layers", model.num_hidden_layers), ("hidden", model.hidden_size),
             ("FFN", model.intermediate_size), ("vocabulary", model.vocab_size))
    parts = [f"{name} {value:,}" for name, value in named if value is not None]
    if model.tie_word_embeddings is not None:
        parts.append("tied head" if model.tie_word_embeddings else "head of its own")
    return ", ".join(parts) or "unknown"


def _heads(model: Description) -> str:
    if model.num_attention_heads is None:
        return "unknown"
    counts = f"{model.num_attention_heads} query, {model.num_key_value_heads} key/value, of {model.head_dim}"
    return f"{counts} (inferred)" if "num_attention_heads" in model.inferred else counts


def _bits(model: Description) -> str:
    if model.bits_per_param is None or model.stored_bits_per_param is None:
        return "unknown"
    return f"{model.bits_per_param:.4f} logical, {model.stored_bits_per_param:.4f} stored"


def _print_records(cache: TensorCache) -> None:
    rows = [
        [record.name, "x".join(map(str, record.shape)), record.dtype,
         "" if record.stored_dtype == record.dtype else record.stored_dtype, f"{record.nbytes:,}",
         shard.data_path, f"{record.byte_offset:,}"]
        for shard in cache.manifest.shards for record in shard.records
    ]
    print_table(["record", "shape", "dtype", "stored as", "bytes", "shard", "offset"], rows, "<<<<><>")


def _document(cache: TensorCache, model: Description) -> dict[str, Any]:
    manifest, missing = cache.manifest, set(cache.missing_shards)
    return {
        "manifest": str(manifest.path), "family": model.family, "families": list(model.families),
        "quantization": model.quantization, "dimensions": {name: getattr(model, name) for name in DIMENSIONS},
        "inferred": list(model.inferred), "num_parameters": model.num_values,
        "bits_per_parameter": model.bits_per_param,
        "stored_bits_per_parameter": model.stored_bits_per_param,
        "nbytes": manifest.nbytes, "num_records": manifest.num_records, "metadata": dict(manifest.metadata),
        "missing_shards": sorted(missing),
        "shards": [
            {"data_path": shard.data_path, "nbytes": shard.nbytes, "md5sum": shard.md5sum,
             "missing": shard.data_path in missing, "records": [_record(record) for record in shard.records]}
            for shard in manifest.shards
        ],
    }


def _record(record: Record) -> dict[str, Any]:
    return {
        "name": record.name, "shape": list(record.shape), "dtype": record.dtype, "format": record.format,
        "stored_dtype": record.stored_dtype, "nbytes": record.nbytes, "byte_offset": record.byte_offset,
    }
