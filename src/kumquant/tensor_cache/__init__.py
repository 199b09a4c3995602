"""The tensor cache: the format itself, and nothing else. No family, no quantizer.

Reading: ``StoredTensors`` (mapped arrays), ``read_manifest``/``validate`` (the one door), ``verify``.
Writing: ``plan_shards`` decides where every record goes before data exists; ``CacheWriter`` fills the plan.
Decoding: ``decode_groups``, ``dequantize_record``. The format in words: docs/format.md.
"""

from __future__ import annotations

from .decode import DEFAULT_BLOCK, PART_SUFFIXES, decode_awq, decode_blocks, decode_groups, dequantize_record
from .folder import find_manifest, read_manifest
from .manifest import MANIFEST_NAME, MANIFEST_NAMES, TWIN_NAME, Manifest, Record, Shard
from .plan import SHARD_CAP, FinishedShard, ShardPlan, plan_shards
from .stored import NoSuchRecordError, StoredTensors
from .validate import validate
from .verify import VerifyError, VerifyReport, shards_that_verify, verify
from .writer import CacheWriter, write_cache

__all__ = [
    "DEFAULT_BLOCK",
    "MANIFEST_NAME",
    "MANIFEST_NAMES",
    "PART_SUFFIXES",
    "SHARD_CAP",
    "TWIN_NAME",
    "CacheWriter",
    "FinishedShard",
    "Manifest",
    "NoSuchRecordError",
    "Record",
    "Shard",
    "ShardPlan",
    "StoredTensors",
    "VerifyError",
    "VerifyReport",
    "decode_awq",
    "decode_blocks",
    "decode_groups",
    "dequantize_record",
    "find_manifest",
    "plan_shards",
    "read_manifest",
    "shards_that_verify",
    "validate",
    "verify",
    "write_cache",
]
