"""Family: one architecture as data. A family's file says what differs; nothing here knows a family's name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ..errors import UnsupportedError
from .config import ConfigRules, ModelConfig, read_config
from .plan import CacheTensor
from .rules import TensorRule
from .spec import DecoderSpec

# What a checkpoint may hold although nothing uses it (5.5): tables that can be computed.
_COMPUTED = r".*\b(rotary_emb\.(inv_freq|cos_cached|sin_cached)|rotary_pos_emb\.inv_freq|position_ids)"
ChatWindow = Literal["none", "instead", "beside", "context"]
_HEAD = r"(.*\.)?lm_head\.weight"


@dataclass(frozen=True, kw_only=True)
class Family(ConfigRules):
    """A model_type: its config keys (ConfigRules), its tensors, its forward pass.

    tensors: the table, in no particular order. traits: DecoderSpec fields -> the value, or what gives it from the
    config's keys; fields that are not there follow from the config.
    ties_head: whether tie_word_embeddings removes the head from the cache, as the format has it (5.3); where
    it does not, a checkpoint that brings a head keeps it. A family without a head in its table never has one.
    not_in_format: flags that the format has no place for (5.2: llama's biases); compat refuses such models.
    prefixes: (as in the table, as in a checkpoint): the ways in which the start of source names may differ; the first
    whose embedding is there holds.
    ignored_names: patterns of checkpoint names that nothing uses (5.5). uncounted_names: those outside
    BitsPerParam (5.4). format_config: the keys of "model_config" in mlc-chat-config.json, in order (6.1);
    format_text_config: those of a "text_config" in front of them. format_ropes: scaled ropes that it can say.
    chat_window: what a sliding window is in mlc-chat-config.json: "none" (not said), "instead" (of the context),
    "beside" (the context) or "context" (it is the context). sink_size: of attention sinks, there.
    not_in_chat_config: keys that the model needs and that file never has. in_format: whether MLC has the family.
    pooling: how MLC makes embeddings with it, "cls" or "last"; None for models that write text.
    """

    tensors: tuple[TensorRule, ...]
    traits: Mapping[str, Any] = field(default_factory=dict)
    ties_head: bool = True
    not_in_format: tuple[str, ...] = ()
    prefixes: tuple[tuple[str, str], ...] = (("", ""),)
    ignored_names: tuple[str, ...] = ()
    uncounted_names: tuple[str, ...] = ()
    format_config: tuple[str, ...] = ()
    format_text_config: tuple[str, ...] = ()
    format_ropes: tuple[str, ...] = ()
    chat_window: ChatWindow = "none"
    sink_size: int = -1
    not_in_chat_config: tuple[str, ...] = ()
    in_format: bool = True
    pooling: str | None = None

    @property
    def is_encoder(self) -> bool:
        """Whether the family gives hidden states instead of logits."""
        return not self.traits.get("causal", True)

    def extend(self, model_type: str, *, rename: Mapping[str, str] | None = None, without: Collection[str] = (),
               add: tuple[TensorRule, ...] = (), **changes: Any) -> Family:
        """A family like this one. rename: parts of cache names to replace. without: roles to drop. add: further
        tensors. Mappings among the changes replace the old ones."""
        tensors = tuple(rule for rule in self.tensors if rule.role not in without)
        for old, new in (rename or {}).items():
            tensors = tuple(replace(rule, name=rule.name.replace(old, new)) for rule in tensors)
        return replace(self, model_type=model_type, tensors=tensors + add, **changes)

    def config(self, config_json: Mapping[str, Any], where: str = "config.json") -> ModelConfig:
        """The hyper-parameters in ``config_json`` (either spelling), checked. where: the file, for errors."""
        return read_config(config_json, where, self)

    def plan(self, config: ModelConfig, names: Collection[str] | None = None, *,
             compat: bool = False) -> list[CacheTensor]:
        """Every tensor of the cache, in no particular order.

        names: what the checkpoint (or the cache) holds; it decides about a tied head in families that keep
        one, and about prefixes. compat: only what the format's own converter writes. Raises UnsupportedError where
        that would lose weights.
        """
        if compat:
            self._check_format(config)
        source_name = self._source_name(names)
        return [
            rule.tensor(config, layer, source_name)
            for rule in self.rules(config, names, compat=compat)
            for layer in range(config.num_hidden_layers if rule.is_per_layer else 1)
        ]

    def rules(self, config: ModelConfig, names: Collection[str] | None = None, *,
              compat: bool = False) -> list[TensorRule]:
        """The rules of the table that hold for a model. names, compat: see ``plan``."""
        has_head = self.has_head(config, names, compat=compat)
        return [rule for rule in self.tensors
                if rule.exists(config) and (has_head or rule.role not in ("head", "head_bias"))]

    def has_head(self, config: ModelConfig, names: Collection[str] | None = None, *,
                 compat: bool = False) -> bool:
        """Whether the cache has a head of its own (otherwise the embedding serves as the head)."""
        head, embed = self._rule("head", config), self._rule("embed", config)
        if head is None or embed is None:
            return False
        if not config.tie_word_embeddings or head.sources == embed.sources:
            return True
        if self.ties_head:
            return False
        return compat or names is None or self.names_hold_head(names)

    def names_hold_head(self, names: Collection[str]) -> bool:
        """Whether a head is among the tensors of a checkpoint or the records of a cache."""
        heads = {name for rule in self.tensors if rule.role == "head"
                 for name in (rule.name, rule.name.removesuffix(".weight") + ".q_weight",
                              *(source.name for source in rule.sources))}
        return not heads.isdisjoint(names)

    def spec(self, config: ModelConfig, names: Collection[str] | None = None) -> DecoderSpec:
        """The forward pass. names: what the cache holds; see ``plan``. Raises UnsupportedError for models that
        convert but do not run."""
        stacked: dict[str, tuple[str, ...]] = {}
        for rule in self.rules(config, names):
            stacked[rule.role] = (*stacked.get(rule.role, ()), rule.name)
        tensors = {role: parts[0] if len(parts) == 1 else parts for role, parts in stacked.items()}
        fields: dict[str, Any] = {
            "model_type": self.model_type, "vocab_size": config.vocab_size, "hidden_size": config.hidden_size,
            "intermediate_size": config.intermediate_size, "num_layers": config.num_hidden_layers,
            "num_heads": config.num_attention_heads, "num_kv_heads": config.num_key_value_heads,
            "head_dim": config.head_dim, "norm_eps": config.rms_norm_eps, "activation": config.hidden_act,
            "rope": config.rope, "local_rope": config.local_rope, "layer_rope": config.layer_rope,
            "attention_scale": config.head_dim**-0.5, "context_length": config.context_length,
            "sliding_window": config.sliding_window, "experts": config.experts, "qk_norm": "q_norm" in tensors,
            "tensors": tensors,
        }
        for name, value in self.traits.items():
            fields[name] = value(config.keys) if callable(value) else value
        return DecoderSpec(**fields)

    def ignored(self, name: str) -> bool:
        """Whether a checkpoint tensor that no cache tensor uses may be left out in silence (5.5).

        A head counts as such: it is unused only where it is tied to the embedding.
        """
        return self.is_head_name(name) or re.fullmatch(_COMPUTED, name) is not None or any(
            re.fullmatch(pattern, name) for pattern in self.ignored_names)

    def is_head_name(self, name: str) -> bool:
        """Whether a checkpoint calls its head ``name``."""
        heads = {source.name for rule in self.tensors if rule.role == "head" for source in rule.sources}
        embeddings = {source.name for rule in self.tensors if rule.role == "embed" for source in rule.sources}
        return name in heads - embeddings or re.fullmatch(_HEAD, name) is not None

    def embedding_source(self, names: Collection[str]) -> str:
        """What the checkpoint with these tensors calls its embedding."""
        embed = next(rule for rule in self.tensors if rule.role == "embed")
        return self._source_name(names)(embed.sources[0].name)

    def uncounted(self, name: str) -> bool:
        """Whether a checkpoint tensor is left out of the count behind BitsPerParam (5.4)."""
        return any(re.fullmatch(pattern, name) for pattern in self.uncounted_names)

    def _rule(self, role: str, config: ModelConfig) -> TensorRule | None:
        return next((rule for rule in self.tensors if rule.role == role and rule.exists(config)), None)

    def _check_format(self, config: ModelConfig) -> None:
        lost = [flag for flag in self.not_in_format if config.has(flag)]
        if lost:
            keys = sorted({"tie_word_embeddings" if flag == "not tied" else str(self.flags[flag]) for flag in lost})
            what = "biases" if all(flag.endswith("bias") for flag in lost) else "tensors (a head of its own)"
            raise UnsupportedError(
                f"the model has {what}, which have no place in MLC's layout of this family",
                where=f"config.json: {', '.join(keys)}",
                hint="MLC would drop them and answer wrongly. Convert without --compat to keep them.",
            )

    def _source_name(self, names: Collection[str] | None) -> Callable[[str], str]:
        """From source names of the table to those of a checkpoint."""
        embed = next(rule for rule in self.tensors if rule.role == "embed").sources[0].name

        def renaming(old: str, new: str) -> Callable[[str], str]:
            return lambda name: new + name.removeprefix(old) if name.startswith(old) else name

        choices = [renaming(old, new) for old, new in self.prefixes]
        return next((choice for choice in choices if choice(embed) in (names or ())), choices[0])
