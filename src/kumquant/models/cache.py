"""TensorCache, the public class: stored arrays, dequantized weights, and the model they belong to."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np

from ..errors import RequestError, TensorCacheError, UnsupportedError
from ..hub import local_folder
from ..schemes import Scheme
from ..tensor_cache import StoredTensors, dequantize_record
from .config import ModelConfig
from .family import Family
from .folder import CHAT_CONFIG_NAME, CONFIG_NAME, has_model_config, load_block_size, load_model_config, load_scheme
from .plan import CacheTensor
from .records import packed_records
from .spec import DecoderSpec

_MAX_NAMED = 5


class TensorCache(StoredTensors):
    """A tensor cache: a mapping from record name to a read-only array as stored, and the model it holds.

    Family, dimensions and mode come from config.json and mlc-chat-config.json. They are read when asked for:
    a cache of any model opens and verifies; what needs to understand the model says so if it does not.
    """

    def __init__(self, path: Path | str, quantization: str | None = None, *,
                 allow_missing_shards: bool = False) -> None:
        """path: the folder, a manifest in it, or ``org/model[@revision]`` on the hub. quantization: the mode, where
        mlc-chat-config.json does not say.

        Raises TensorCacheError, or UnsupportedError for an unknown ``quantization``.
        """
        super().__init__(local_folder(path, "cache"), allow_missing_shards=allow_missing_shards)
        self._quantization = quantization
        if quantization is not None:
            if not isinstance(quantization, str):
                raise RequestError("not the name of a mode", where="quantization", found=repr(quantization)[:80])
            load_scheme(self.folder, quantization)

    @classmethod
    def open(cls, path: Path | str, quantization: str | None = None, *,
             allow_missing_shards: bool = False) -> Self:
        """As the constructor."""
        return cls(path, quantization, allow_missing_shards=allow_missing_shards)

    @cached_property
    def scheme(self) -> Scheme | None:
        """The mode; None where neither the caller nor mlc-chat-config.json says it.

        Raises UnsupportedError for a mode Kumquant does not have, TensorCacheError for one the scales
        contradict.
        """
        scheme = load_scheme(self.folder, self._quantization)
        if scheme is not None:
            self._check_scales(scheme)
        return scheme

    @property
    def family(self) -> Family:
        """The model's family. Raises CheckpointError or UnsupportedError."""
        return self._model[0]

    @property
    def config(self) -> ModelConfig:
        """The model's hyper-parameters. Raises CheckpointError or UnsupportedError."""
        return self._model[1]

    @cached_property
    def plan(self) -> tuple[CacheTensor, ...]:
        """Every parameter that the family puts into a cache. Raises like ``config``."""
        return tuple(self.family.plan(self.config, self))

    @cached_property
    def spec(self) -> DecoderSpec:
        """The forward pass. Raises like ``config``, and TensorCacheError if the records are not the
        model's."""
        self._check_records()
        return self.family.spec(self.config, self)

    def dequantize(self, name: str) -> np.ndarray:
        """The parameter ``name`` ("model.embed_tokens.weight") as float32 in its logical shape.

        Quantized ones are the exact product (code - zero point) * scale, not rounded to the model dtype.
        Without a model config the width is that of the stored groups, filling included.
        Raises RequestError if the mode is not known, TensorCacheError for a name that is not there.
        """
        if not isinstance(name, str):
            raise RequestError("not the name of a parameter", where="name", found=repr(name)[:80], expected="a string")
        if name not in self and f"{name}.weight" in self:
            name = f"{name}.weight"
        stem = name.removesuffix(".weight")
        if f"{stem}.q_scale" not in self or name in self:  # no groups: nothing has to be known
            return dequantize_record(self, name if name in self else f"{stem}.weight", None,
                                     block_size=load_block_size(self.folder))
        name = f"{stem}.weight"
        planned = self._planned.get(name) if self._knows_family else None
        width = None if planned is None else planned.shape[-1]
        return dequantize_record(self, name, self.scheme, width)

    @cached_property
    def _knows_family(self) -> bool:
        """Whether the folder says which model it is, and Kumquant knows the family: then widths are known."""
        if not has_model_config(self.folder):
            return False
        try:
            return bool(self.family)
        except UnsupportedError:
            return False

    @cached_property
    def _planned(self) -> dict[str, CacheTensor]:
        return {tensor.name: tensor for tensor in self.plan}

    @cached_property
    def _model(self) -> tuple[Family, ModelConfig]:
        family, config = load_model_config(self.folder, self)
        if not (self.folder / CONFIG_NAME).is_file():
            config = replace(config, vocab_size=self._vocab_rows(family) or config.vocab_size)
        return family, config

    def _vocab_rows(self, family: Family) -> int | None:
        """Rows of the embedding. MLC does not compare them with vocab_size and lets the table be longer."""
        name = next(rule.name for rule in family.tensors if rule.role == "embed")
        stored = name if name in self else f'{name.removesuffix(".weight")}.q_weight'
        return self.record(stored).shape[0] if stored in self else None

    def _check_scales(self, scheme: Scheme) -> None:
        """A float32 mode may show bfloat16 scales: that is how they are stored and what a -b16 twin says."""
        if scheme.storage == "float8":
            return
        possible = {scheme.model_dtype} | ({"bfloat16"} if scheme.model_dtype == "float32" else set())
        for record in self.manifest.records():
            if record.name.endswith(".q_scale") and (not scheme.has_groups or record.dtype not in possible):
                raise TensorCacheError(
                    f"the records contradict the mode {scheme.name}", where=record.name,
                    found=f"scales in {record.dtype}",
                    expected=f"scales in {scheme.model_dtype}" if scheme.has_groups else "no scales",
                    hint=f'Correct "quantization" in {self.folder / CHAT_CONFIG_NAME}.',
                )

    def _check_records(self) -> None:
        """The records are exactly the tensors of the model, each in the shape its config says."""
        if "param_0" in self:
            raise UnsupportedError("the tensors have numbers, not names", where=self.manifest.path,
                                   found="param_0", hint="The cache is from before the format had names. "
                                                         "Convert the model again.")
        if self.scheme is not None and not self.scheme.can_run:
            raise UnsupportedError("this mode can be read, but not run", where=self.scheme.name,
                                   hint="Convert the original model to another mode, q4f16_1 for instance.")
        expected: dict[str, tuple[int, ...]] = {}
        for tensor in self.plan:
            stem = tensor.stem
            if tensor.name in self or not {f"{stem}.q_weight", f"{stem}.qweight"} & self.keys():
                expected[tensor.name] = tensor.shape
                continue
            if self.scheme is None:
                raise RequestError("quantized, and the mode is not known", where=f"{stem}.q_weight",
                                   hint='Say which it is: TensorCache.open(folder, quantization="q4f16_1").')
            expected |= {name: shape for name, shape, _ in packed_records(tensor, self.scheme)}
        self._compare(expected)

    def _compare(self, expected: dict[str, tuple[int, ...]]) -> None:
        missing = [name for name in expected if name not in self]
        unused = [name for name in self if name not in expected and not self.family.ignored(name)]
        hint = (f"Do config and cache belong together? The model is a {self.config.model_type} of "
                f"{self.config.num_hidden_layers} layers.")
        if missing:
            raise TensorCacheError(f"{len(missing)} tensors of the model are missing",
                                   where=self.manifest.path, expected=_some(missing), hint=hint)
        if unused:
            raise TensorCacheError(f"{len(unused)} tensors are there that the model has no use for",
                                   where=self.manifest.path, found=_some(unused), hint=hint)
        for name, shape in expected.items():
            if self.record(name).shape != shape:
                raise TensorCacheError("the shape contradicts the model's config", where=name,
                                       found=self.record(name).shape, expected=shape, hint=hint)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
