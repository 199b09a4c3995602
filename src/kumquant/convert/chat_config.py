"""Writes ``mlc-chat-config.json``, the file by which MLC-LLM and WebLLM accept a cache folder as it is.

Source: docs/format.md, "mlc-chat-config.json" (shared/conformance/FORMAT.md section 6).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..chat import ChatTemplate, stop_token_ids
from ..errors import CheckpointError, Error
from ..files import atomic_write
from ..json_files import read_json_object, read_optional_json_object
from ..models import Family, ModelConfig, Pooling, load_pooling
from ..schemes import Scheme
from ..tokenizer import TOKENIZER_FILES, Tokenizer, has_tokenizer
from .conv_template import translate

CHAT_CONFIG_NAME = "mlc-chat-config.json"
_MAX_PREFILL_CHUNK = 8192
_MAX_BATCH_SIZE = 128
_MLC_POOLING = {"cls", "mean", "last"}
# First non-null of generation_config.json and config.json, then these.
_SAMPLING_DEFAULTS = {"temperature": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
                      "repetition_penalty": 1.0, "top_p": 1.0}
_TOKEN_DEFAULTS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def write_chat_config(source: Path, out: Path, family: Family, model_config: ModelConfig, scheme: Scheme,
                      warnings: list[str]) -> None:
    """Write ``out/mlc-chat-config.json`` for the checkpoint folder ``source``.

    Appends to ``warnings`` one line for everything that MLC's file cannot say about this model, or that MLC's
    readers will do otherwise than the model's own template.
    Raises CheckpointError for a JSON file of the source that cannot be read, CapacityError for a full disk.
    """
    content = chat_config(source, family, model_config, scheme, warnings)
    atomic_write(out / CHAT_CONFIG_NAME, json.dumps(content, indent=2))


def chat_config(source: Path, family: Family, config: ModelConfig, scheme: Scheme, warnings: list[str],
                compat: bool = False) -> dict[str, Any]:
    """The content of the file, keys in MLC's order. See ``write_chat_config``.

    compat: what MLC's own tool writes, also where the source says otherwise.
    """
    sizes = _window_sizes(family, config, compat)
    generation = (read_optional_json_object(source / "generation_config.json", CheckpointError),
                  config.source)
    tokenizer = _open_tokenizer(source, warnings)
    warnings += _what_the_file_cannot_say(family, config, scheme)
    return {
        "version": "0.1.0",
        "model_type": family.model_type,
        "quantization": scheme.name,
        "model_config": _model_config(family, config, sizes),
        "vocab_size": config.vocab_size,
        **sizes,
        "tensor_parallel_shards": 1,
        "pipeline_parallel_stages": 1,
        "active_vocab_size": tokenizer.vocab_size if tokenizer else config.vocab_size,
        **_first_given(_SAMPLING_DEFAULTS, generation),
        "tokenizer_files": [name for name in TOKENIZER_FILES if (source / name).is_file()],
        "tokenizer_info": _tokenizer_info(source, warnings),
        "conv_template": _conv_template(source, tokenizer, warnings),
        **_first_given(_TOKEN_DEFAULTS, generation),
        "model_task": "embedding" if family.pooling else "chat",
        "embedding_metadata": _embedding_metadata(source, family, compat, warnings),
    }


def _embedding_metadata(source: Path, family: Family, compat: bool, warnings: list[str]) -> dict[str, Any] | None:
    """How vectors are made of hidden states: as the source says, else as MLC does it for the family."""
    if family.pooling is None:
        return None
    pooling = Pooling((family.pooling,), normalize=True)
    own = load_pooling(source)
    if own is not None and not compat:
        pooling = own
    elif own is not None and (own.modes, own.normalize) != (pooling.modes, pooling.normalize):
        warnings.append(f"MLC-LLM and WebLLM will pool by {family.pooling}, not by {' and '.join(own.modes)}.")
    if len(pooling.modes) > 1 or pooling.modes[0] not in _MLC_POOLING:
        warnings.append(f"MLC-LLM and WebLLM do not know pooling by {' and '.join(pooling.modes)}.")
    return {"model_type": "encoder" if family.is_encoder else "decoder", "pooling_strategy": pooling.modes[0],
            "normalize": pooling.normalize}


def _window_sizes(family: Family, config: ModelConfig, compat: bool) -> dict[str, int]:
    """Context, window, prefill chunk and sink, as the family has them in MLC's file (FORMAT.md 6).

    WebLLM wants exactly one of context and window to differ from -1; where MLC's own tool breaks that ("beside"),
    only compat does.
    """
    window = 0 if family.chat_window == "none" else max(config.sliding_window, default=0)
    given = config.source
    length = given.get("context_window_size") or config.max_position_embeddings
    if window and family.chat_window == "context":
        length, window = window, 0
    elif window and family.chat_window == "beside":
        length, window = (max(window, _MAX_PREFILL_CHUNK), window) if compat else (length, 0)
    context = -1 if window and family.chat_window == "instead" else length
    limit = min(window or length, _MAX_PREFILL_CHUNK)
    chunk = given.get("prefill_chunk_size") or limit
    return {
        "context_window_size": context,
        "sliding_window_size": window or -1,
        "prefill_chunk_size": chunk if chunk <= (window or length) else limit,
        "attention_sink_size": family.sink_size,
    }


def _model_config(family: Family, config: ModelConfig, sizes: Mapping[str, int]) -> dict[str, Any]:
    """The hyper-parameters as MLC's compiler needs them, under the family's keys (6.1)."""
    theta = _theta_as_written(config)
    values: dict[str, Any] = {
        "hidden_act": config.source.get("hidden_act", config.hidden_act), "hidden_size": config.hidden_size,
        "intermediate_size": config.source.get("intermediate_size", config.intermediate_size),
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers, "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps, "vocab_size": config.vocab_size, "head_dim": config.head_dim,
        "tie_word_embeddings": config.tie_word_embeddings, "attention_bias": config.qkv_bias,
        "position_embedding_base": theta, "rope_theta": theta, "rope_scaling": _rope_scaling(family, config),
        "rope_local_base_freq": config.local_rope.theta if config.local_rope else None,
        **sizes, "tensor_parallel_shards": 1, "pipeline_parallel_stages": 1,
        "max_batch_size": _MAX_BATCH_SIZE,
        "disaggregation": False, "dtype": config.source.get("dtype") or "float32", "weight_block_size": None,
    }
    text, own = ({key: values[key] if key in values else config.keys.values.get(key) for key in keys}
                 for keys in (family.format_text_config, family.format_config))
    if not text:
        return own
    text["sliding_window_size"] = max(config.sliding_window)  # the model's, whatever the engines are told
    return {"text_config": text, **own}


def _theta_as_written(config: ModelConfig) -> float | int:
    """rope_theta as the config spells it (an integer stays one)."""
    theta = config.rope.theta if config.rope else 10000
    for holder in (config.source.get("rope_scaling"), config.source.get("rope_parameters"), config.source):
        given = holder.get("rope_theta") if isinstance(holder, dict) else None
        if given is not None and given == theta:
            return given
    return int(theta) if theta == int(theta) else theta


def _rope_scaling(family: Family, config: ModelConfig) -> dict[str, Any] | None:
    if config.rope is None or config.rope.type not in family.format_ropes:
        return None
    return {"rope_type": config.rope.type, **config.rope.parameters}


def _what_the_file_cannot_say(family: Family, config: ModelConfig, scheme: Scheme) -> list[str]:
    """Where MLC's readers compute something else than the model. Kumquant reads config.json and is right."""
    problems = []
    rope_type = config.rope.type if config.rope else "default"
    can_scale = "rope_scaling" in (*family.format_config, *family.format_text_config)
    if rope_type != "default" and not (rope_type in family.format_ropes and can_scale):
        problems.append(f"rope scaling of type {rope_type}: they will use unscaled positions")
    if any(config.sliding_window) and "sliding_window_size" not in family.format_config:
        problems.append("a sliding window in this family: they will let every token see all earlier ones")
    if any(config.has(flag) for flag in family.not_in_format):
        problems.append("all of these tensors: they will leave out the biases")
    if config.tie_word_embeddings and not family.ties_head:
        problems.append("a tied head in this family: they look for lm_head.weight")
    if not scheme.in_format:
        problems.append(f"the mode {scheme.name}: Kumquant alone runs the cache")
    return [f"MLC-LLM and WebLLM do not know {problem}." for problem in problems]


def _first_given(defaults: Mapping[str, Any], files: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """For each key the first value of ``files`` that is not null, else the default."""
    found = dict(defaults)
    for key in defaults:
        found[key] = next((values[key] for values in files if values.get(key) is not None), defaults[key])
    return found


def _open_tokenizer(source: Path, warnings: list[str]) -> Tokenizer | None:
    if not has_tokenizer(source):
        return None
    try:
        return Tokenizer.open(source)
    except CheckpointError as reason:
        warnings.append(f"The tokenizer cannot be read, so the chat template is not checked: {reason.what}.")
        return None


def _tokenizer_info(source: Path, warnings: list[str]) -> dict[str, Any]:
    """How MLC handles bytes and spaces, read off tokenizer.json (6.2)."""
    info: dict[str, Any] = {"token_postproc_method": "byte_fallback", "prepend_space_in_encode": False,
                            "strip_space_in_decode": False}
    if not has_tokenizer(source):
        return info
    tokenizer = read_json_object(source / "tokenizer.json", CheckpointError)
    for member in _members(tokenizer.get("decoder"), "decoders"):
        if member.get("type") == "ByteLevel":
            info["token_postproc_method"] = "byte_level"
        elif member.get("type") == "ByteFallback":
            info["token_postproc_method"] = "byte_fallback"
        elif member.get("type") == "Strip":
            strips = (member.get("content"), member.get("start"), member.get("stop")) == (" ", 1, 0)
            info["strip_space_in_decode"] = info["strip_space_in_decode"] or strips
    info["prepend_space_in_encode"] = any(
        member.get("type") == "Prepend" and member.get("prepend") == "▁"
        for member in _members(tokenizer.get("normalizer"), "normalizers")
    )
    added = [token.get("content") for token in tokenizer.get("added_tokens") or [] if isinstance(token, dict)]
    repeated = sorted({str(content) for content in added if added.count(content) > 1})
    if repeated:
        warnings.append(f"tokenizer.json adds {', '.join(repeated)} twice; MLC's tools refuse such a file.")
    return info


def _members(part: Any, key: str) -> list[dict[str, Any]]:
    """A decoder or normalizer itself, or the members of a sequence."""
    if not isinstance(part, dict):
        return []
    if part.get("type") == "Sequence":
        return [member for member in part.get(key) or [] if isinstance(member, dict)]
    return [part]


def _conv_template(source: Path, tokenizer: Tokenizer | None, warnings: list[str]) -> dict[str, Any]:
    try:
        template = ChatTemplate.find(source)
    except Error as reason:
        warnings.append(f"The chat template cannot be used: {reason.what}.")
        template = None
    translation = translate(template, tokenizer, sorted(stop_token_ids(source, tokenizer)))
    warnings += translation.warnings
    return translation.template.to_json()
