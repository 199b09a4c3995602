"""Family: one architecture as data. A family's file says what differs; nothing here knows a family's name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import UnsupportedError
from .config import ModelConfig, Window, read_config
from .plan import CacheTensor, Kind
from .spec import DecoderSpec

# What a checkpoint may hold although nothing uses it (5.5): tables that can be computed.
_ROTARY_TABLES = r".*\brotary_emb\.(inv_freq|cos_cached|sin_cached)"


@dataclass(frozen=True)
class Source:
    """One checkpoint tensor: its name ("{i}" is the layer) and its axes by name (see ModelConfig.size)."""

    name: str
    axes: tuple[str, ...]


@dataclass(frozen=True)
class TensorRule:
    """One line of a family's table: a cache tensor, its part in the forward pass, and where it comes from.

    role: what DecoderSpec.tensors calls it. sources: stacked along axis 0. when: the ModelConfig flag without
    which the tensor does not exist.
    """

    role: str
    name: str
    kind: Kind
    sources: tuple[Source, ...]
    when: str | None = None

    @property
    def is_per_layer(self) -> bool:
        return "{i}" in self.name

    def exists(self, config: ModelConfig) -> bool:
        return self.when is None or bool(getattr(config, self.when))

    def tensor(self, config: ModelConfig, layer: int) -> CacheTensor:
        shapes = tuple(tuple(config.size(axis) for axis in source.axes) for source in self.sources)
        rows = sum(shape[0] for shape in shapes)
        return CacheTensor(
            name=self.name.replace("{i}", str(layer)), kind=self.kind, shape=(rows, *shapes[0][1:]),
            sources=tuple(source.name.replace("{i}", str(layer)) for source in self.sources),
            source_shapes=shapes, is_head=self.role == "head",
        )


@dataclass(frozen=True)
class Family:
    """A model_type: its config keys, its tensors, its forward pass.

    tensors: the table, in no particular order. biases: "qkv_bias", "o_bias", "mlp_bias" -> True or a config
    key. window: how sliding_window applies. qk_norm: an RMS norm on each query and key head.
    ties_head: whether tie_word_embeddings removes the head from the cache, as the format has it (5.3); where
    it does not, a checkpoint that brings a head keeps it. format_has_biases: whether the format has a place
    for the biases (5.2: llama's have none).
    defaults: config keys that may be missing. uncounted_names: patterns of checkpoint names outside
    BitsPerParam (5.4). format_config: the keys of "model_config" in mlc-chat-config.json, in order (6.1).
    """

    model_type: str
    tensors: tuple[TensorRule, ...]
    biases: Mapping[str, str | bool] = field(default_factory=dict)
    window: Window = "none"
    qk_norm: bool = False
    ties_head: bool = True
    format_has_biases: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    uncounted_names: tuple[str, ...] = ()
    format_config: tuple[str, ...] = ()

    def extend(self, model_type: str, *, rename: Mapping[str, str] | None = None,
               add: tuple[TensorRule, ...] = (), **changes: Any) -> Family:
        """A family like this one. rename: parts of cache names to replace. add: further tensors."""
        tensors = self.tensors
        for old, new in (rename or {}).items():
            tensors = tuple(replace(rule, name=rule.name.replace(old, new)) for rule in tensors)
        return replace(self, model_type=model_type, tensors=tensors + add, **changes)

    def config(self, config_json: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """The hyper-parameters in ``config_json`` (either spelling), checked. where: the file, for errors."""
        return read_config(config_json, where, model_type=self.model_type, biases=self.biases,
                           window=self.window,
                           defaults=self.defaults)

    def plan(self, config: ModelConfig, names: Collection[str] | None = None, *,
             compat: bool = False) -> list[CacheTensor]:
        """Every tensor of the cache, in no particular order.

        names: what the checkpoint (or the cache) holds; it decides about a tied head in families that keep
        one. compat: only what the format's own converter writes. Raises UnsupportedError where that would
        lose weights.
        """
        if compat and not self.format_has_biases and (config.qkv_bias or config.o_bias or config.mlp_bias):
            raise UnsupportedError(
                "the model has biases, which have no place in MLC's layout of this family",
                where=f"config.json: {', '.join(sorted(map(str, set(self.biases.values()))))}", found="true",
                hint="MLC would drop them and answer wrongly. Convert without --compat to keep them.",
            )
        has_head = self.has_head(config, names, compat=compat)
        rules = [rule for rule in self.tensors if rule.exists(config) and (has_head or rule.role != "head")]
        return [
            rule.tensor(config, layer)
            for rule in rules for layer in range(config.num_hidden_layers if rule.is_per_layer else 1)
        ]

    def has_head(self, config: ModelConfig, names: Collection[str] | None = None, *,
                 compat: bool = False) -> bool:
        """Whether the cache has a head of its own (otherwise the embedding serves as the head)."""
        if not config.tie_word_embeddings:
            return True
        if self.ties_head:
            return False
        return compat or names is None or self.names_hold_head(names)

    def names_hold_head(self, names: Collection[str]) -> bool:
        """Whether a head is among the tensors of a checkpoint or the records of a cache."""
        head = next(rule for rule in self.tensors if rule.role == "head")
        stem = head.name.removesuffix(".weight")
        return not {head.name, f"{stem}.q_weight"}.isdisjoint(names)

    def spec(self, config: ModelConfig, names: Collection[str] | None = None) -> DecoderSpec:
        """The forward pass. names: what the cache holds; see ``plan``."""
        has_head = self.has_head(config, names)
        tensors: dict[str, str | tuple[str, ...]] = {
            rule.role: rule.name for rule in self.tensors
            if rule.exists(config) and (has_head or rule.role != "head")
        }
        return DecoderSpec(
            model_type=self.model_type, vocab_size=config.vocab_size, hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size, num_layers=config.num_hidden_layers,
            num_heads=config.num_attention_heads, num_kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim, norm_eps=config.rms_norm_eps, activation=config.hidden_act,
            rope=config.rope, attention_scale=config.head_dim**-0.5,
            context_length=config.context_length, sliding_window=config.sliding_window, qk_norm=self.qk_norm,
            tensors=tensors,
        )

    def ignored(self, name: str) -> bool:
        """Whether a checkpoint tensor that no cache tensor uses may be left out in silence (5.5).

        The head counts as such: it is unused only where it is tied to the embedding.
        """
        heads = [source.name for rule in self.tensors if rule.role == "head" for source in rule.sources]
        return name in heads or re.fullmatch(_ROTARY_TABLES, name) is not None

    def uncounted(self, name: str) -> bool:
        """Whether a checkpoint tensor is left out of the count behind BitsPerParam (5.4)."""
        return any(re.fullmatch(pattern, name) for pattern in self.uncounted_names)
