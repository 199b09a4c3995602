"""Gemma 3, its text part: Gemma 2 with head norms instead of caps, and a second rope for the layers with a window.

"gemma3" is the model that also sees: its text part's keys are under text_config, its vision part is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..errors import CheckpointError
from .gemma import around_one
from .gemma2 import GEMMA2, capped, windows_by_pattern
from .keys import Keys
from .llama import LAYER
from .qwen3 import HEAD_NORMS
from .rules import same


def _prepare(source: dict[str, Any], where: str) -> dict[str, Any]:
    """text_config's keys, layer_types filled in, the two ropes one beside the other."""
    text = source.get("text_config", source)
    if not isinstance(text, dict):
        raise CheckpointError('the key "text_config" has a value that makes no sense', where=where,
                              found=repr(text)[:80], expected="an object")
    shared = {key: source[key] for key in ("vocab_size", "context_window_size") if source.get(key) is not None}
    text = {**shared, **text}
    period = Keys(text, where).count("sliding_window_pattern", Keys(text, where).count("_sliding_window_pattern", 6))
    text = windows_by_pattern(text, period)
    if text.get("rope_scaling") == 0:  # MLC's way to say that there is none
        text = text | {"rope_scaling": None}
    ropes = text.get("rope_parameters")
    if isinstance(ropes, dict) and "full_attention" in ropes:
        text |= {"rope_parameters": ropes["full_attention"], "local_rope": ropes.get("sliding_attention")}
    return text


def _local_rope(keys: Keys) -> Mapping[str, Any]:
    theta = keys.number("rope_local_base_freq", 10000.0)
    return {"rope_theta": theta, "rope_parameters": keys.table("local_rope")}


def _layer_rope(keys: Keys) -> tuple[int, ...]:
    return tuple(int(kind == "sliding_attention") for kind in keys.values.get("layer_types") or ())


GEMMA3_TEXT = GEMMA2.extend(
    "gemma3_text",
    without=("qkv", "qkv_bias"),
    add=(
        same("qkv", LAYER + "self_attn.q_proj.weight", "linear", "q", "hidden"),
        same("qkv", LAYER + "self_attn.k_proj.weight", "linear", "kv", "hidden"),
        same("qkv", LAYER + "self_attn.v_proj.weight", "linear", "kv", "hidden"),
        *around_one(HEAD_NORMS),
    ),
    prepare=_prepare,
    flags={},
    refuses={"attention_bias": (None, False)},
    understands=(*GEMMA2.understands, "text_config", "vision_config", "sliding_window_pattern"),
    # Transformers' defaults; the first checkpoints' configs say only what differs from them.
    defaults={
        **GEMMA2.defaults, "vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 131072, "rope_theta": 1e6,
        "is_text_model": True,
    },
    chat_window="beside",
    local_rope=_local_rope,
    layer_rope=_layer_rope,
    traits={**GEMMA2.traits, "attention_cap": capped("attn_logit_softcapping", 0.0),
            "final_cap": capped("final_logit_softcapping", 0.0)},
    prefixes=(("", ""), ("", "language_model."), ("model.", "model.language_model.")),
    ignored_names=(r"(model\.)?(vision_tower|multi_modal_projector|vision_model)\..*",),
    format_config=("vocab_size", "tensor_parallel_shards", "max_batch_size", "context_window_size",
                   "sliding_window_size", "prefill_chunk_size", "is_text_model"),
    format_text_config=(
        "hidden_size", "intermediate_size", "num_hidden_layers", "attention_bias", "num_attention_heads",
        "num_key_value_heads", "head_dim", "rms_norm_eps", "hidden_activation", "position_embedding_base",
        "rope_scaling", "context_window_size", "prefill_chunk_size", "query_pre_attn_scalar", "sliding_window_size",
        "rope_local_base_freq", "layer_types",  # these two are ours: MLC has them fixed
    ),
    format_ropes=("linear",),
)
GEMMA3_TEXT = replace(GEMMA3_TEXT, tensors=tuple(
    replace(rule, name=f"language_model.{rule.name}") for rule in GEMMA3_TEXT.tensors))
GEMMA3 = GEMMA3_TEXT.extend("gemma3", defaults={**GEMMA3_TEXT.defaults, "is_text_model": False})
