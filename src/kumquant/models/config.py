"""ModelConfig: the hyper-parameters of a decoder, the same whichever file and spelling they came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import CheckpointError, UnsupportedError
from .keys import Keys
from .rope import extended_length, rope_from_config
from .spec import RopeSpec

Window = Literal["none", "all layers", "by layer"]

# Activations by Transformers' name -> the name in a DecoderSpec.
_ACTIVATIONS = {"silu": "silu", "swish": "silu"}

# Where a config says how long sequences may be, in MLC's order after its own key.
_LENGTH_KEYS = ("max_position_embeddings", "max_sequence_length", "context_window_size")

# Keys that change what a model computes in ways no supported family describes, with the values that do not.
_NEUTRAL_VALUES: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,),
    "num_experts": (None, 0), "num_local_experts": (None, 0), "n_routed_experts": (None, 0),
    "moe_intermediate_size": (None, 0), "num_experts_per_tok": (None, 0),
    "kv_lora_rank": (None, 0), "q_lora_rank": (None, 0),
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,),
    "embedding_multiplier": (None, 1), "residual_multiplier": (None, 1), "logits_scaling": (None, 1),
    "attention_multiplier": (None,), "query_pre_attn_scalar": (None,),
    "scale_emb": (None, 1), "scale_depth": (None,), "dim_model_base": (None,),
    "no_rope_layers": (None,), "no_rope_layer_interval": (None,),
    "clip_qkv": (None,), "alibi": (None, False), "attention_chunk_size": (None,),
    "use_qk_norm": (None, False), "qk_layernorm": (None, False), "use_bidirectional_attention": (None, False),
    "is_causal": (None, True), "is_encoder_decoder": (None, False), "add_cross_attention": (None, False),
    "per_layer_config": (None,), "vision_config": (None,), "audio_config": (None,),
}


@dataclass(frozen=True)
class ModelConfig:
    """Hyper-parameters by the names of ``config.json``, checked, defaults filled in.

    head_dim is even. context_length: positions the model is meant for. sliding_window: per layer, latest
    positions a token sees (itself included), 0 for all. qkv_bias, o_bias, mlp_bias: which linear layers have
    biases. source: the config as it was read.
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
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    sliding_window: tuple[int, ...]
    rope: RopeSpec
    source: Mapping[str, Any]

    def size(self, dimension: str) -> int:
        """The length of a named axis of a family's tensors: "vocab", "hidden", "ffn", "q", "kv", "head"."""
        return {
            "vocab": self.vocab_size, "hidden": self.hidden_size, "ffn": self.intermediate_size,
            "q": self.num_attention_heads * self.head_dim, "kv": self.num_key_value_heads * self.head_dim,
            "head": self.head_dim,
        }[dimension]


def read_config(source: Mapping[str, Any], where: str, *, model_type: str, biases: Mapping[str, str | bool],
                window: Window, defaults: Mapping[str, Any]) -> ModelConfig:
    """Check and normalize a ``config.json``.

    biases: "qkv_bias", "o_bias", "mlp_bias" -> True, or the config key that says so; absent means none.
    window: which layers obey ``sliding_window``. defaults: values of keys that the file may leave out.
    Raises CheckpointError for missing or contradicting keys, UnsupportedError for keys that change the
    computation in a way the family does not have.
    """
    _refuse_unknown_computations(source, where)
    keys = Keys({**defaults, **source}, where)
    hidden_size, num_heads = keys.count("hidden_size"), keys.count("num_attention_heads")
    num_kv_heads = keys.count("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise CheckpointError("query heads must divide evenly among key/value heads", where=where,
                              found=f"{num_heads} and {num_kv_heads}")
    length = next((keys.count(key) for key in _LENGTH_KEYS if keys.has(key)), 0)
    length = length or keys.count("max_position_embeddings")
    head_dim = _head_dim(keys, hidden_size, num_heads)
    rope = rope_from_config(keys, head_dim, length)
    num_layers = keys.count("num_hidden_layers")
    flags = {name: key if isinstance(key, bool) else keys.flag(key, False) for name, key in biases.items()}
    return ModelConfig(
        model_type=model_type, vocab_size=keys.count("vocab_size"), hidden_size=hidden_size,
        intermediate_size=keys.count("intermediate_size"), num_hidden_layers=num_layers,
        num_attention_heads=num_heads, num_key_value_heads=num_kv_heads, head_dim=head_dim,
        rms_norm_eps=keys.number("rms_norm_eps"), hidden_act=_activation(keys),
        max_position_embeddings=length,
        context_length=keys.count("context_window_size", extended_length(rope)),
        tie_word_embeddings=keys.flag("tie_word_embeddings", False),
        qkv_bias=flags.get("qkv_bias", False), o_bias=flags.get("o_bias", False),
        mlp_bias=flags.get("mlp_bias", False),
        sliding_window=_WINDOWS[window](keys, num_layers), rope=rope, source=dict(source),
    )


def _refuse_unknown_computations(source: Mapping[str, Any], where: str) -> None:
    for key, neutral in _NEUTRAL_VALUES.items():
        value = source.get(key)
        if value not in neutral:
            raise UnsupportedError(
                f'the key "{key}" asks for a computation that this family does not have', where=where,
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


_WINDOWS = {"none": _no_window, "all layers": _window_everywhere, "by layer": _window_by_layer}
