"""config.json where an architecture's metadata say more, or less, than those of a llama."""

from __future__ import annotations

from typing import Any

from ...errors import UnsupportedError
from .metadata import Metadata

Config = dict[str, Any]

# llama.cpp knows the scale of the largest model's queries by its number of layers.
_LARGEST_GEMMA = {"gemma2": 46, "gemma3": 62}


def gemma(metadata: Metadata, config: Config) -> Config:
    del config["hidden_act"]
    return config | {"hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True}


def gemma2(metadata: Metadata, config: Config) -> Config:
    base = metadata.number("rope.freq_base", 10000.0)
    if metadata.number("rope.freq_base_swa", base) != base:
        raise UnsupportedError("this family has one rope for all layers", where=metadata.where,
                               found=f"bases {base} and {metadata.number('rope.freq_base_swa')}")
    return _scaled_gemma(metadata, config) | _windows(metadata, config, 2) | {
        "sliding_window": metadata.count("attention.sliding_window", 4096),
        "attn_logit_softcapping": metadata.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": metadata.number("final_logit_softcapping", 30.0)}


def gemma3(metadata: Metadata, config: Config) -> Config:
    """A file without a window has no layers with one, and so no second rope."""
    cap = {"final_logit_softcapping": metadata.number("final_logit_softcapping")} if metadata.has(
        "final_logit_softcapping") else {}
    if metadata.values.get(f"{metadata.architecture}.attention.sliding_window"):
        windows = _windows(metadata, config, 6) | {"sliding_window": metadata.count("attention.sliding_window")}
    else:
        windows = {"layer_types": ["full_attention"] * config["num_hidden_layers"]}
    return _scaled_gemma(metadata, config) | cap | windows | {
        "rope_local_base_freq": metadata.number("rope.freq_base_swa", 10000.0)}


def _scaled_gemma(metadata: Metadata, config: Config) -> Config:
    is_largest = config["num_hidden_layers"] == _LARGEST_GEMMA[metadata.architecture]
    scale = config["hidden_size"] // config["num_attention_heads"] if is_largest else config["head_dim"]
    return gemma(metadata, config) | {"query_pre_attn_scalar": scale}


def _windows(metadata: Metadata, config: Config, period: int) -> Config:
    """Which layers have a window: all but every ``period``-th, unless the file says otherwise."""
    return {"layer_types": ["sliding_attention" if has_window else "full_attention"
                            for has_window in metadata.pattern("attention.sliding_window_pattern", period,
                                                               config["num_hidden_layers"])]}


def phi3(metadata: Metadata, config: Config) -> Config:
    """Transformers takes id 32000 for padding where nothing is said, also in smaller vocabularies."""
    window = metadata.values.get(f"{metadata.architecture}.attention.sliding_window") or None
    original = metadata.count("rope.scaling.original_context_length", config["max_position_embeddings"])
    return config | {"pad_token_id": None, "sliding_window": window, "original_max_position_embeddings": original}


def gpt2(metadata: Metadata, config: Config) -> Config:
    return {"architectures": config["architectures"], "model_type": "gpt2", "activation_function": "gelu_new",
            "n_embd": config["hidden_size"], "n_layer": config["num_hidden_layers"],
            "n_head": config["num_attention_heads"], "n_inner": config["intermediate_size"],
            "n_positions": config["max_position_embeddings"], "layer_norm_epsilon": config["rms_norm_eps"],
            "vocab_size": config["vocab_size"], "tie_word_embeddings": True, "torch_dtype": config["torch_dtype"]}


def granite(metadata: Metadata, config: Config) -> Config:
    """llama.cpp turns the rope off with a key that says something else elsewhere."""
    if metadata.values.get(f"{metadata.architecture}.rope.scaling.finetuned", True) is not True:
        raise UnsupportedError("a Granite model without positions", where=metadata.where)

    def factor(key: str, default: float) -> float:
        return metadata.number(key, default) if metadata.values.get(f"{metadata.architecture}.{key}") else default

    return config | {
        "attention_multiplier": factor("attention.scale", config["head_dim"] ** -0.5),
        "embedding_multiplier": factor("embedding_scale", 1.0), "logits_scaling": factor("logit_scale", 1.0),
        "residual_multiplier": factor("residual_scale", 1.0)}


def smollm3(metadata: Metadata, config: Config) -> Config:
    return config | {"no_rope_layer_interval": 4, "pad_token_id": None}  # see phi3


def starcoder2(metadata: Metadata, config: Config) -> Config:
    return _with_layer_norms(config, "norm_epsilon") | {"hidden_act": "gelu_pytorch_tanh", "sliding_window": None}


def stablelm(metadata: Metadata, config: Config) -> Config:
    return {"partial_rotary_factor": 1.0} | _with_layer_norms(config, "layer_norm_eps")


def phi(metadata: Metadata, config: Config) -> Config:
    return {"partial_rotary_factor": 1.0} | _with_layer_norms(config, "layer_norm_eps") | {"hidden_act": "gelu_new"}


def _with_layer_norms(config: Config, key: str) -> Config:
    """The epsilon under the family's own key."""
    return {key if name == "rms_norm_eps" else name: value for name, value in config.items()}
