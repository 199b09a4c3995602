"""ModelConfig: the hyper-parameters of a decoder, the same whichever file and spelling they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import CheckpointError, UnsupportedError
from .keys import Keys
from .rope import extended_length, rope_from_config
from .spec import ExpertSpec, RopeSpec

Window = Literal["none", "all layers", "by layer", "by type"]

# Activations by Transformers' name -> the name in a DecoderSpec.
_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu2",
}

# Far beyond any model, and few enough that listing them takes no time: whether the weights are there is asked later.
_MAX_LAYERS = 10_000
_MAX_EXPERTS = 65_536
_MAX_HEAD_DIM = 65_536
_MAX_CONTEXT = 2**31 - 1

# Where a config says how long sequences may be, in MLC's order after its own key.
_LENGTH_KEYS = ("max_position_embeddings", "max_sequence_length", "context_window_size")

# Keys that change what a model computes, with the values that do not. A family that describes what one of them
# says names it in ``ConfigRules.understands``.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "num_experts": (None, 0), "num_local_experts": (None, 0), "n_routed_experts": (None, 0),
    "moe_intermediate_size": (None, 0), "num_experts_per_tok": (None, 0),
    "decoder_sparse_step": (None, 1), "mlp_only_layers": (None, []),
    "kv_lora_rank": (None, 0), "q_lora_rank": (None, 0),
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,),
    "embedding_multiplier": (None, 1), "residual_multiplier": (None, 1), "logits_scaling": (None, 1),
    "attention_multiplier": (None,), "query_pre_attn_scalar": (None,), "logit_scale": (None, 1),
    "scale_emb": (None, 1), "scale_depth": (None,), "dim_model_base": (None,),
    "no_rope_layers": (None,), "no_rope_layer_interval": (None,), "sliding_window_pattern": (None,),
    "clip_qkv": (None,), "alibi": (None, False), "attention_chunk_size": (None,),
    "use_qk_norm": (None, False), "qk_layernorm": (None, False), "use_bidirectional_attention": (None, False),
    "use_parallel_residual": (None, False), "parallel_attn": (None, False),
    "is_causal": (None, True), "is_encoder_decoder": (None, False), "add_cross_attention": (None, False),
    "per_layer_config": (None,), "vision_config": (None,), "audio_config": (None,), "text_config": (None,),
}


@dataclass(frozen=True)
class ExpertKeys:
    """The config keys of a mixture of experts. A config that has no ``count``, or 0, has a plain MLP.

    inner_size, shared_size: the widths of an expert and of the shared one ("" for none). normalize: whether the
    chosen experts' probabilities are made to sum to 1, or the key that says so.
    """

    count: str
    inner_size: str
    normalize: bool | str
    shared_size: str = ""


@dataclass(frozen=True, kw_only=True)
class ConfigRules:
    """How a family's config.json is read.

    aliases: the usual key -> the family's own. defaults: keys that may be missing. prepare: turns what the family
    spells in a way of its own into the usual keys. flags: "qkv_bias", "o_bias", … -> True or the key that decides;
    TensorRule.when asks for them ("tied" and "experts" are always there).
    window: how ``sliding_window`` applies: to no layer, to all, as Qwen has it ("by layer": use_sliding_window,
    max_window_layers), or to those that layer_types names ("by type").
    partial_rotary: whether partial_rotary_factor is obeyed, not refused. learned_positions: a table instead of a
    rope. local_rope: the keys of the second rope. layer_rope: which layer has which; see DecoderSpec.
    understands: keys of _NEUTRAL_VALUES that the family describes. refuses: further keys and their neutral values.
    """

    model_type: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[dict[str, Any], str], dict[str, Any]] | None = None
    flags: Mapping[str, str | bool] = field(default_factory=dict)
    window: Window = "none"
    partial_rotary: bool = False
    learned_positions: bool = False
    local_rope: Callable[[Keys], Mapping[str, Any]] | None = None
    layer_rope: Callable[[Keys], tuple[int, ...]] | None = None
    experts: ExpertKeys | None = None
    understands: tuple[str, ...] = ()
    refuses: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters by the usual names of ``config.json``, checked, defaults filled in.

    head_dim is even. context_length: positions the model is meant for. sliding_window: per layer, latest
    positions a token sees (itself included), 0 for all. flags: what the family's rules ask for. rope: None where
    positions are learned. keys: everything under its usual name. source: the config as it was read.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    hidden_act: str
    max_position_embeddings: int
    context_length: int
    tie_word_embeddings: bool
    flags: Mapping[str, bool]
    sliding_window: tuple[int, ...]
    rope: RopeSpec | None
    local_rope: RopeSpec | None
    layer_rope: tuple[int, ...]
    experts: ExpertSpec | None
    keys: Keys = field(compare=False)
    source: Mapping[str, Any]

    @property
    def qkv_bias(self) -> bool:
        return self.has("qkv_bias")

    @property
    def o_bias(self) -> bool:
        return self.has("o_bias")

    @property
    def mlp_bias(self) -> bool:
        return self.has("mlp_bias")

    def has(self, flag: str) -> bool:
        """Whether a flag of the family is set ("not …": is not); "tied" and "experts" are flags of every family."""
        if flag.startswith("not "):
            return not self.has(flag.removeprefix("not "))
        if flag == "tied":
            return self.tie_word_embeddings
        if flag == "experts":
            return self.experts is not None
        return self.flags.get(flag, False)

    def sizes(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(map(self.size, axes))

    def size(self, axis: str) -> int:
        """The length of a named axis of a family's tensors. "ffn2" is gate and up in one matrix."""
        if axis == "token_types":
            return self.keys.count("type_vocab_size")
        q, kv = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        sizes = {
            "vocab": self.vocab_size, "hidden": self.hidden_size, "ffn": self.intermediate_size,
            "ffn2": 2 * self.intermediate_size, "q": q, "kv": kv, "qkv": q + 2 * kv, "head": self.head_dim,
            "positions": self.max_position_embeddings, "one": 1,
        }
        if self.experts is not None:
            sizes |= {"experts": self.experts.count, "expert_ffn": self.experts.inner_size,
                      "shared_ffn": self.experts.shared_size}
        return sizes[axis]


def read_config(source: Mapping[str, Any], where: str, rules: ConfigRules) -> ModelConfig:
    """Check and normalize a ``config.json``.

    Raises CheckpointError for missing or contradicting keys, UnsupportedError for keys that change the
    computation in a way the family does not have.
    """
    keys = _usual_keys(source, where, rules)
    _refuse_unknown_computations(keys, rules)
    num_layers = keys.count("num_hidden_layers", at_most=_MAX_LAYERS)  # before anything makes a list of them
    hidden_size, num_heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    num_kv_heads = keys.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError("query heads must divide evenly among key/value heads", where=where,
                              found=f"{num_heads} and {num_kv_heads}")
    length = next((keys.count(key) for key in _LENGTH_KEYS if keys.has(key)), 0)
    length = length or keys.count("max_position_embeddings")
    head_dim = _head_dim(keys, hidden_size, num_heads)
    rope = None if rules.learned_positions else rope_from_config(keys, head_dim, length, rules.partial_rotary)
    layer_rope = rules.layer_rope(keys) if rules.layer_rope else ()
    local_keys = Keys(rules.local_rope(keys), where) if rules.local_rope and 1 in layer_rope else None
    flags = {name: key if isinstance(key, bool) else keys.flag(key, False) for name, key in rules.flags.items()}
    context = keys.count("context_window_size", extended_length(rope) if rope else length)
    if context > _MAX_CONTEXT:
        raise CheckpointError("the context length is beyond any model", where=where, found=context,
                              expected=f"at most {_MAX_CONTEXT:,}")
    return ModelConfig(
        model_type=rules.model_type, vocab_size=keys.count("vocab_size"), hidden_size=hidden_size,
        intermediate_size=keys.count("intermediate_size"), num_hidden_layers=num_layers,
        num_attention_heads=num_heads, num_key_value_heads=num_kv_heads, head_dim=head_dim,
        rms_norm_eps=keys.number("rms_norm_eps"), hidden_act=_activation(keys),
        max_position_embeddings=length, context_length=context if rope else min(context, length),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False), flags=flags,
        sliding_window=_WINDOWS[rules.window](keys, num_layers), rope=rope,
        local_rope=rope_from_config(local_keys, head_dim, length) if local_keys else None,
        layer_rope=layer_rope, experts=_experts(keys, rules.experts),
        keys=keys, source=dict(source),
    )


def _usual_keys(source: Mapping[str, Any], where: str, rules: ConfigRules) -> Keys:
    values = rules.prepare(dict(source), where) if rules.prepare else dict(source)
    renamed = {usual: values[own] for usual, own in rules.aliases.items() if values.get(own) is not None}
    return Keys({**rules.defaults, **values, **renamed}, where)


def _experts(keys: Keys, names: ExpertKeys | None) -> ExpertSpec | None:
    if names is None or not keys.values.get(names.count):
        return None
    count, per_token = keys.count(names.count, at_most=_MAX_EXPERTS), keys.count("num_experts_per_tok")
    if per_token > count:
        raise CheckpointError("a token cannot visit more experts than there are", where=keys.where, found=per_token,
                              expected=f"at most {count}")
    normalize = names.normalize if isinstance(names.normalize, bool) else keys.flag(names.normalize, False)
    return ExpertSpec(count, per_token, keys.count(names.inner_size), normalize,
                      keys.count(names.shared_size) if names.shared_size else 0)


def _refuse_unknown_computations(keys: Keys, rules: ConfigRules) -> None:
    for key, neutral in {**_NEUTRAL_VALUES, **rules.refuses}.items():
        value = keys.values.get(key)
        if key not in rules.understands and value not in neutral:
            raise UnsupportedError(
                f'the key "{key}" asks for a computation that this family does not have', where=keys.where,
                found=repr(value)[:80],
                expected=" or ".join("no such key" if v is None else repr(v) for v in neutral),
                hint="Kumquant would compute something else than the model's authors; it refuses instead."
                if key != "quantization_config" else
                "The weights are quantized already. Use the original, unquantized checkpoint.",
            )


def _head_dim(keys: Keys, hidden_size: int, num_heads: int) -> int:
    if not keys.has("head_dim") and hidden_size % num_heads:
        raise CheckpointError(
            "hidden_size is not a multiple of num_attention_heads, and head_dim is not given",
            where=keys.where, found=f"{hidden_size} and {num_heads}",
        )
    head_dim = keys.count("head_dim", hidden_size // num_heads or None)
    if head_dim > _MAX_HEAD_DIM:
        raise CheckpointError("head_dim is beyond any model", where=keys.where, found=head_dim,
                              expected=f"at most {_MAX_HEAD_DIM:,}")
    if head_dim % 2:
        raise CheckpointError("head_dim must be even to be rotated", where=keys.where, found=head_dim)
    return head_dim


def _activation(keys: Keys) -> str:
    name = keys.text("hidden_act", "silu")
    if name not in _ACTIVATIONS:
        raise UnsupportedError("unknown activation", where=f"{keys.where}: hidden_act", found=repr(name),
                               expected=", ".join(_ACTIVATIONS))
    return _ACTIVATIONS[name]


def _layer_types(keys: Keys, num_layers: int) -> list[str] | None:
    types = keys.values.get("layer_types")
    if types is None:
        return None
    known = ("full_attention", "sliding_attention")
    if not isinstance(types, list) or len(types) != num_layers or any(kind not in known for kind in types):
        raise UnsupportedError(
            "layer_types cannot be followed", where=keys.where, found=repr(types)[:80],
            expected=f"{num_layers} entries, each of {', '.join(known)}",
        )
    return types


def _no_window(keys: Keys, num_layers: int) -> tuple[int, ...]:
    types = _layer_types(keys, num_layers)
    if types is not None and "sliding_attention" in types:
        raise UnsupportedError('this family has no sliding window, but "layer_types" asks for one',
                               where=keys.where)
    return (0,) * num_layers


def _window_everywhere(keys: Keys, num_layers: int) -> tuple[int, ...]:
    window = keys.count("sliding_window") if keys.has("sliding_window") else 0
    types = _layer_types(keys, num_layers)
    if types is not None and any((kind == "sliding_attention") != (window > 0) for kind in types):
        raise UnsupportedError(
            'this family has one sliding window for all layers, but "layer_types" says otherwise',
            where=keys.where, found=repr(types)[:80],
            expected="sliding_attention" if window else "full_attention",
        )
    return (window,) * num_layers


def _window_by_layer(keys: Keys, num_layers: int) -> tuple[int, ...]:
    """Qwen's rule: with use_sliding_window, layers from max_window_layers on, or those in layer_types."""
    uses_window = keys.flag("use_sliding_window", False) and keys.has("sliding_window")
    window = keys.count("sliding_window") if uses_window else 0
    types = _layer_types(keys, num_layers)
    if types is None:
        first = keys.values["max_window_layers"]
        if isinstance(first, bool) or not isinstance(first, int) or first < 0:
            raise CheckpointError('the key "max_window_layers" has a value that makes no sense',
                                  where=keys.where, found=repr(first)[:80], expected="a count of layers")
        return tuple(window if layer >= first else 0 for layer in range(num_layers))
    if window == 0 and "sliding_attention" in types:
        raise CheckpointError(
            '"layer_types" has sliding_attention, but no window is in use', where=keys.where,
            found=f'use_sliding_window {keys.values.get("use_sliding_window")}, '
                  f'sliding_window {keys.values.get("sliding_window")}',
        )
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


def _window_by_type(keys: Keys, num_layers: int) -> tuple[int, ...]:
    """The layers that layer_types calls sliding_attention."""
    types = _layer_types(keys, num_layers)
    if types is None or "sliding_attention" not in types:
        return (0,) * num_layers
    window = keys.count("sliding_window")
    return tuple(window if kind == "sliding_attention" else 0 for kind in types)


_WINDOWS: dict[Window, Callable[[Keys, int], tuple[int, ...]]] = {
    "none": _no_window, "all layers": _window_everywhere, "by layer": _window_by_layer, "by type": _window_by_type,
}
