"""A cache as a GGUF file: groups of 32 four-bit codes become Q4_0, everything else float."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..checkpoint import GGUF_ROPE_DIVISORS, GgufFamily, halves_order, q4_0_blocks
from ..errors import TensorCacheError, UnsupportedError
from ..files import fsync_dir, temporary_name, translated_os_errors
from ..models import TensorCache
from ..progress import Progress
from ..tokenizer import has_tokenizer
from .gguf_metadata import architecture_of, check_reads_back, model_metadata, rope_divisors
from .gguf_tokenizer import template_text, tokenizer_metadata
from .gguf_writer import PlannedTensor, write_gguf
from .routes import ExportRoute, summarize
from .sources import SourceTensor, float_blocks, is_quantized, packed, sources_of, stored_dtype

_MOSTLY_F16, _MOSTLY_Q4_0, _MOSTLY_BF16 = 1, 2, 32
_ROWS_AT_A_TIME = 256
_FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16),
}


def write_gguf_model(cache: TensorCache, path: Path, warnings: list[str], progress: Progress) -> list[ExportRoute]:
    """Write ``path``. Appends to ``warnings`` what llama.cpp will not know. Raises like ``export``."""
    architecture, family = architecture_of(cache.family.model_type)
    sources = sources_of(cache)
    planned = [_planned(cache, source, family) for source in sources]
    if family.needs_head and all(tensor.name != "output.weight" for tensor in planned):
        raise UnsupportedError("llama.cpp wants a head of its own for this family, and the model has none",
                               where=cache.family.model_type, hint="Export it to safetensors.")
    divisors = rope_divisors(architecture, cache.spec.rope)
    extra = [PlannedTensor(GGUF_ROPE_DIVISORS[key], "F32", row.shape) for key, row in divisors.items()]
    metadata = model_metadata(architecture, cache.config, cache.spec, cache.folder.resolve().name,
                              _file_type(planned))
    warnings += check_reads_back(metadata, divisors, [tensor.name for tensor in planned], cache.spec, path)
    metadata |= _tokenizer(cache, warnings)
    writer = _TensorWriter(cache, family)
    data = _reporting([writer.pieces(*pair) for pair in zip(sources, planned, strict=True)], planned, progress)
    partial = temporary_name(path)
    try:
        write_gguf(partial, metadata, [*planned, *extra], [*data, *([row] for row in divisors.values())])
        with translated_os_errors("rename the file", path):
            os.replace(partial, path)
        fsync_dir(path.parent)
    finally:
        partial.unlink(missing_ok=True)
        progress.finish()
    return summarize(writer.taken)


def _planned(cache: TensorCache, source: SourceTensor, family: GgufFamily) -> PlannedTensor:
    name = family.gguf_name(source.name)
    if name is None:
        raise UnsupportedError("llama.cpp has no place for a tensor", where=source.name,
                               found=cache.family.model_type, hint="Export it to safetensors.")
    shape = source.shape[::-1] if source.tensor.transposed else source.shape
    return PlannedTensor(name, _type_name(cache, source), shape)


def _type_name(cache: TensorCache, source: SourceTensor) -> str:
    """llama.cpp computes norms and biases in float32 only."""
    if len(source.shape) == 1:
        return "F32"
    scheme = cache.scheme
    if is_quantized(cache, source.tensor):
        fits = scheme is not None and scheme.has_groups and (scheme.bits, scheme.group_size) == (4, 32)
        return "Q4_0" if fits and source.width % 32 == 0 else "F16"
    return {"bfloat16": "BF16", "float32": "F32"}.get(stored_dtype(cache, source.tensor), "F16")


def _file_type(planned: list[PlannedTensor]) -> int:
    names = {tensor.type_name for tensor in planned}
    return _MOSTLY_Q4_0 if "Q4_0" in names else _MOSTLY_BF16 if "BF16" in names else _MOSTLY_F16


def _tokenizer(cache: TensorCache, warnings: list[str]) -> dict[str, Any]:
    if not has_tokenizer(cache.folder):
        warnings.append("The cache has no tokenizer.json: the file takes token ids, not text.")
        return {"tokenizer.ggml.model": "no_vocab"}
    try:
        return tokenizer_metadata(cache.folder, cache.config.vocab_size, template_text(cache.folder))
    except UnsupportedError as reason:
        warnings.append(f"The tokenizer cannot be exported, so the file takes token ids: {reason.what}.")
        return {"tokenizer.ggml.model": "no_vocab"}


class _TensorWriter:
    """Makes the bytes of each tensor when they are asked for. taken: (route, is_lossless, nbytes) of those made."""

    def __init__(self, cache: TensorCache, family: GgufFamily) -> None:
        self._cache, self._family = cache, family
        self.taken: list[tuple[str, bool, int]] = []

    def pieces(self, source: SourceTensor, planned: PlannedTensor) -> Iterator[np.ndarray]:
        order = self._order(source, planned.name)
        if planned.type_name == "Q4_0":
            yield from self._q4_0(source, planned, order)
        else:
            yield from self._floats(source, planned, order)
        for record in (source.tensor.name, f"{source.tensor.stem}.q_weight", f"{source.tensor.stem}.q_scale"):
            if record in self._cache:
                self._cache.release(record)

    def _order(self, source: SourceTensor, gguf_name: str) -> np.ndarray | None:
        """For each row of the file the cache's: llama.cpp keeps the rows of queries and keys in pairs."""
        module = self._family.module(gguf_name) or ""
        if module not in self._family.rotated_heads:
            return None
        config = self._cache.config
        is_keys = self._family.rotated_heads[module].endswith("_kv")
        num_heads = config.num_key_value_heads if is_keys else config.num_attention_heads
        return np.argsort(halves_order(source.end - source.begin, num_heads))

    def _q4_0(self, source: SourceTensor, planned: PlannedTensor, order: np.ndarray | None) -> Iterator[np.ndarray]:
        codes, scales = packed(self._cache, source.tensor)
        rows = np.arange(source.begin, source.end) if order is None else source.begin + order
        is_lossless = True
        for begin in range(0, len(rows), _ROWS_AT_A_TIME):
            chosen = rows[begin : begin + _ROWS_AT_A_TIME]
            exact = scales[chosen]
            with np.errstate(over="ignore"):
                halves = exact if exact.dtype == np.float16 else exact.astype(np.float32).astype(np.float16)
            if not np.isfinite(halves).all():
                raise TensorCacheError("a scale is too large for float16, which Q4_0 has", where=source.name,
                                       hint="Export the model to safetensors.")
            is_lossless &= bool((halves.astype(np.float32) == exact.astype(np.float32)).all())
            yield q4_0_blocks(codes[chosen], halves)
        how = "codes kept" if is_lossless else "codes kept, scales rounded to float16"
        self.taken.append((f"to Q4_0: {how}", is_lossless, planned.nbytes))

    def _floats(self, source: SourceTensor, planned: PlannedTensor, order: np.ndarray | None) -> Iterator[np.ndarray]:
        dtype = _FLOATS[planned.type_name]
        is_lossless = True
        for block in float_blocks(self._cache, source, order, keeps_one=self._family.norms_plus_one):
            values = block.astype(dtype)
            is_lossless &= bool(np.array_equal(values.astype(np.float32), block, equal_nan=True))
            yield values
        origin = "dequantized" if is_quantized(self._cache, source.tensor) else "kept"
        how = "" if is_lossless else ", rounded"
        self.taken.append((f"to {planned.type_name}: {origin}{how}", is_lossless, planned.nbytes))


def _reporting(data: list[Iterator[np.ndarray]], planned: list[PlannedTensor],
               progress: Progress) -> Iterator[Iterator[np.ndarray]]:
    progress.start(sum(tensor.nbytes for tensor in planned), "export")
    for pieces, tensor in zip(data, planned, strict=True):
        yield pieces
        progress.advance(tensor.nbytes, tensor.name)
