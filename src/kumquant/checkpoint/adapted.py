"""A checkpoint with adapters merged into it, in float32, while its weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..dtypes import dtype_name
from ..errors import CheckpointError, UnsupportedError
from ..schemes import Scheme
from .adapter import Adapter, Delta
from .checkpoint import Checkpoint, PackedRows
from .rows import covering_rows, cut

_EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "wte.weight", "gpt_neox.embed_in.weight")
_HEADS = ("lm_head.weight", "embed_out.weight")


class AdaptedCheckpoint(Checkpoint):
    """``base`` with ``adapters`` merged: tensors that one of them changes read as float32.

    Every product is added in float32 to the base's value in float32, adapter after adapter; only the conversion
    rounds the sum, once. Raises CheckpointError for an adapter of another model, UnsupportedError where merging
    would change more than the adapter does.
    """

    def __init__(self, base: Checkpoint, adapters: Sequence[Adapter]) -> None:
        files = (*base.files, *(adapter.file for adapter in adapters))
        super().__init__(base.folder, base.config, base.has_index, files, dict(base.tensors), base.small_files,
                         base.has_loose_files, base.config_source, base.tokenizer_metadata)
        self._base = base
        self._deltas: dict[str, list[Delta]] = {}
        self._replacements: dict[str, np.ndarray] = {}
        for adapter in adapters:
            self._refuse_half_of_tied_weights(adapter)
            self._add(adapter)
        for name in self._deltas.keys() | self._replacements.keys():
            self._describe(name)

    def _add(self, adapter: Adapter) -> None:
        for name, values in adapter.replacements.items():
            own_name = self._name_of(name, adapter, tuple(values.shape))
            if own_name in self._replacements:
                raise UnsupportedError(f"two adapters replace {own_name}", where=adapter.folder,
                                       hint="Merge one adapter at most that has this module in modules_to_save.")
            self._replacements[own_name] = values
        for name, delta in adapter.deltas.items():
            self._deltas.setdefault(self._name_of(name, adapter, delta.shape), []).append(delta)

    def _name_of(self, name: str, adapter: Adapter, shape: tuple[int, ...]) -> str:
        """The checkpoint's name of the adapter's ``name``: with or without the model's own prefix."""
        candidates = (name, name.partition(".")[2])
        found = next((candidate for candidate in candidates if candidate in self._base.tensors), None)
        if found is None:
            raise CheckpointError(f"the adapter changes {name}, which the model does not have", where=adapter.folder,
                                  hint=f"Was the adapter made for the model in {self.folder}?")
        expected = self._base.tensors[found].shape
        if shape != expected:
            raise CheckpointError(f"the adapter's {name} has another shape than the model's", where=adapter.folder,
                                  found=list(shape), expected=list(expected),
                                  hint=f"Was the adapter made for the model in {self.folder}? Adapters with a longer "
                                       "vocabulary must be merged with PEFT.")
        return found

    def _refuse_half_of_tied_weights(self, adapter: Adapter) -> None:
        """An adapter sees a tied embedding and its head as two modules; changing the one weight changes both."""
        if not self.config.get("tie_word_embeddings") and not self._base.tensors.keys().isdisjoint(_HEADS):
            return
        changed = adapter.deltas.keys() | {name for name, values in adapter.replacements.items()
                                           if not self._is_unchanged(name, values)}
        touched = sorted(changed.intersection((*_EMBEDDINGS, *_HEADS)))
        if touched:
            raise UnsupportedError(
                "the adapter changes the embedding or the head, which are one weight in this model",
                where=adapter.folder, found=", ".join(touched),
                expected="tie_word_embeddings false, or neither of them changed",
                hint="Merge it with PEFT (merge_and_unload) and save the model with both weights.")

    def _is_unchanged(self, name: str, values: np.ndarray) -> bool:
        """Whether a replacement only repeats the base's tensor, as PEFT saves it beside an embedding's factors."""
        info = self._base.tensors.get(name)
        return info is not None and info.shape == values.shape and np.array_equal(self._base.read(name), values)

    def _describe(self, name: str) -> None:
        info = self.tensors[name]
        kept = self._replacements.get(name)
        origin = "the adapter's own weight" if kept is not None else info.stored_as or info.dtype
        deltas = self._deltas.get(name, [])
        if not deltas and kept is not None:
            self.tensors[name] = replace(info, dtype=dtype_name(kept.dtype), nbytes=kept.nbytes, stored_as="",
                                         scale_dtype="")
            return
        ranks = " and ".join(str(delta.rank) for delta in deltas)
        self.tensors[name] = replace(info, dtype="float32", scale_dtype="",
                                     stored_as=f"{origin} with LoRA of rank {ranks} added in float32")

    def read_rows(self, name: str, width: int, begin: int, end: int) -> np.ndarray:
        deltas = self._deltas.get(name)
        kept = self._replacements.get(name)
        if deltas is None:
            if kept is None:
                return self._base.read_rows(name, width, begin, end)
            return kept.reshape(-1, width)[begin:end]
        columns = deltas[0].shape[1]
        first, last = covering_rows(width, begin, end, columns)
        source = kept[first:last] if kept is not None else self._base.read_rows(name, columns, first, last)
        values = source.astype(np.float32)
        for delta in deltas:
            values += delta.rows(first, last)
        return cut(values, first, width, begin, end)

    def has_codes(self, name: str, scheme: Scheme) -> bool:
        return not self._is_changed(name) and self._base.has_codes(name, scheme)

    def has_transposed_codes(self, name: str) -> bool:
        return self._base.has_transposed_codes(name)

    def read_codes(self, name: str, scheme: Scheme, begin: int, end: int) -> PackedRows:
        return self._base.read_codes(name, scheme, begin, end)

    def has_exact_scales(self, name: str, dtype: str) -> bool:
        return self._base.has_exact_scales(name, dtype)

    def prefetch(self, name: str, begin: int = 0, end: int | None = None) -> None:
        if name not in self._replacements:
            self._base.prefetch(name, begin, end)

    def release(self, name: str, begin: int = 0, end: int | None = None) -> None:
        if name not in self._replacements:
            self._base.release(name, begin, end)

    def _is_changed(self, name: str) -> bool:
        return name in self._deltas or name in self._replacements
