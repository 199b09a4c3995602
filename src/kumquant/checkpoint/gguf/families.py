"""llama.cpp's architectures in Hugging Face's words: names of tensors, and config.json from metadata."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from .family_configs import gemma, gemma2, gemma3, gpt2, granite, phi, phi3, smollm3, stablelm, starcoder2
from .metadata import Metadata
from .rope import rope_scaling

# Metadata that change what a model computes, with the values that do not. A family that knows one says so.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,), "attention.scale": (0.0,), "logit_scale": (0.0, 1.0), "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0), "attention.clamp_kqv": (0.0,), "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,), "final_logit_softcapping": (0.0,), "attention.sliding_window": (0,),
    "attention.causal": (True,), "use_parallel_residual": (False,), "attention.q_lora_rank": (0,),
    "attention.kv_lora_rank": (0,), "attention.output_scale": (0.0, 1.0), "attention.value_scale": (0.0, 1.0),
    "attention.temperature_scale": (0.0,), "attention.shared_kv_layers": (0,), "leading_dense_block_count": (0,),
    "nextn_predict_layers": (0,), "rope.scaling.alpha": (0.0,), "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.dimension_sections": ([],), "embedding_length_per_layer_input": (0,),
}

_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
_LLAMA_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class GgufFamily:
    """One architecture. model_type, class_name: Hugging Face's.

    top, block: GGUF's name of a module -> Hugging Face's ("blk.3.attn_q.weight" is block "attn_q" in layer 3).
    rotated_heads: modules whose rows llama.cpp keeps in pairs for its rope -> the metadata key of their head count.
    norms_plus_one: the norms' weights are stored with 1 added. transposed: modules whose matrices Hugging Face has the
    other way round. bias_keys: config key -> module whose bias it stands for. needs_head: llama.cpp does not take the
    embedding for the head. understands: keys of ``_NEUTRAL`` that ``refine`` turns into config keys. refine: the config
    as this family has it, from the one that all have in common.
    """

    model_type: str
    class_name: str
    top: Mapping[str, str] = field(default_factory=lambda: _LLAMA_TOP)
    block: Mapping[str, str] = field(default_factory=lambda: _LLAMA_BLOCK)
    layers: str = "model.layers"
    rotated_heads: Mapping[str, str] = field(default_factory=dict)
    norms_plus_one: bool = False
    transposed: frozenset[str] = frozenset()
    bias_keys: Mapping[str, str] = field(default_factory=dict)
    needs_head: bool = False
    understands: frozenset[str] = frozenset()
    refine: Callable[[Metadata, dict[str, Any]], dict[str, Any]] = lambda metadata, config: config

    def module(self, gguf_name: str) -> str | None:
        """The module of a tensor, as ``rotated_heads`` has it; None for one that is not the family's."""
        stem, _, kind = gguf_name.rpartition(".")
        if kind not in ("weight", "bias"):
            return None
        parts = stem.split(".")
        if parts[0] == "blk" and len(parts) == 3 and parts[1].isdecimal():
            return parts[2] if parts[2] in self.block else None
        return stem if stem in self.top else None

    def checkpoint_name(self, gguf_name: str) -> str | None:
        """Hugging Face's name of a tensor, None for one that is not the family's."""
        module = self.module(gguf_name)
        if module is None:
            return None
        kind = gguf_name.rpartition(".")[2]
        if gguf_name.startswith("blk."):
            return f"{self.layers}.{gguf_name.split('.')[1]}.{self.block[module]}.{kind}"
        return f"{self.top[module]}.{kind}"

    def gguf_name(self, checkpoint_name: str) -> str | None:
        """The other way round."""
        stem, _, kind = checkpoint_name.rpartition(".")
        if stem.startswith(f"{self.layers}."):
            layer, _, rest = stem.removeprefix(f"{self.layers}.").partition(".")
            module = _key_of(self.block, rest)
            return None if module is None else f"blk.{layer}.{module}.{kind}"
        module = _key_of(self.top, stem)
        return None if module is None else f"{module}.{kind}"

    def config(self, metadata: Metadata, names: Collection[str], vocab_size: int,
               divisors: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """config.json. names: of the file's tensors. vocab_size: embedding rows. divisors: see ``rope_scaling``."""
        for key, neutral in _NEUTRAL.items():
            value = metadata.values.get(f"{metadata.architecture}.{key}")
            if value is not None and value not in neutral and key not in self.understands:
                raise UnsupportedError(
                    f'the key "{metadata.architecture}.{key}" asks for a computation that is not known here',
                    where=metadata.where, found=repr(value)[:80],
                    hint="Convert the original checkpoint instead of its GGUF file.")
        heads = metadata.count("attention.head_count")
        hidden = metadata.count("embedding_length")
        head_dim = metadata.count("attention.key_length", hidden // heads or None)
        if metadata.count("attention.value_length", head_dim) != head_dim:
            raise UnsupportedError("keys and values of different width", where=metadata.where)
        theta = metadata.number("rope.freq_base", 10000.0)
        dim = metadata.count("rope.dimension_count", head_dim)
        config = {
            "architectures": [self.class_name], "model_type": self.model_type, "hidden_act": "silu",
            "hidden_size": hidden, "intermediate_size": metadata.count("feed_forward_length"),
            "num_hidden_layers": metadata.count("block_count"), "num_attention_heads": heads,
            "num_key_value_heads": metadata.count("attention.head_count_kv", heads), "head_dim": head_dim,
            "rms_norm_eps": metadata.number(_epsilon_key(metadata)),
            "max_position_embeddings": metadata.count("context_length"), "vocab_size": vocab_size,
            "rope_theta": int(theta) if theta == int(theta) else theta,
            "rope_scaling": rope_scaling(metadata, theta, dim, divisors),
            "tie_word_embeddings": "output.weight" not in names, "torch_dtype": "float16",
            **{key: f"blk.0.{module}.bias" in names for key, module in self.bias_keys.items()},
        }
        if dim != head_dim:
            config["partial_rotary_factor"] = dim / head_dim
        return self.refine(metadata, config)


def _epsilon_key(metadata: Metadata) -> str:
    kinds = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
    return kinds[1] if metadata.has(kinds[1]) and not metadata.has(kinds[0]) else kinds[0]


def _key_of(names: Mapping[str, str], value: str) -> str | None:
    return next((key for key, name in names.items() if name == value), None)


_GEMMA_BLOCK = {**_LLAMA_BLOCK, "post_attention_norm": "post_attention_layernorm",
                "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_OLMO2_BLOCK = {
    **{key: name for key, name in _LLAMA_BLOCK.items() if not key.endswith("norm")},
    "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA_KEYS = frozenset(("attn_logit_softcapping", "final_logit_softcapping", "attention.sliding_window"))
_GPT2_BLOCK = {"attn_norm": "ln_1", "attn_qkv": "attn.c_attn", "attn_output": "attn.c_proj", "ffn_norm": "ln_2",
               "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}
_PHI_BLOCK = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
              "attn_v": "self_attn.v_proj", "attn_output": "self_attn.dense", "ffn_up": "mlp.fc1",
              "ffn_down": "mlp.fc2"}
_ROTATED_HEADS = {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}
_LLAMA_BIASES = {"attention_bias": "attn_q", "mlp_bias": "ffn_gate"}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}

# llama.cpp's architecture -> family. Mistral's models call themselves "llama" there.
FAMILIES: dict[str, GgufFamily] = {
    "llama": GgufFamily("llama", "LlamaForCausalLM", rotated_heads=_ROTATED_HEADS, bias_keys=_LLAMA_BIASES),
    "qwen2": GgufFamily("qwen2", "Qwen2ForCausalLM"),
    "qwen3": GgufFamily("qwen3", "Qwen3ForCausalLM", block={**_LLAMA_BLOCK, **_QK_NORMS},
                        bias_keys={"attention_bias": "attn_q"}),
    "gemma": GgufFamily("gemma", "GemmaForCausalLM", norms_plus_one=True, refine=gemma),
    "gemma2": GgufFamily("gemma2", "Gemma2ForCausalLM", block=_GEMMA_BLOCK, norms_plus_one=True,
                         understands=_GEMMA_KEYS, refine=gemma2),
    "gemma3": GgufFamily("gemma3_text", "Gemma3ForCausalLM", block={**_GEMMA_BLOCK, **_QK_NORMS}, norms_plus_one=True,
                         understands=_GEMMA_KEYS, refine=gemma3),
    "phi3": GgufFamily(
        "phi3", "Phi3ForCausalLM", refine=phi3, understands=frozenset(("attention.sliding_window",)),
        block={"attn_norm": "input_layernorm", "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj",
               "ffn_norm": "post_attention_layernorm", "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"},
    ),
    "gpt2": GgufFamily(
        "gpt2", "GPT2LMHeadModel", block=_GPT2_BLOCK, layers="h", refine=gpt2,
        top={"token_embd": "wte", "position_embd": "wpe", "output_norm": "ln_f"},
        transposed=frozenset(("attn_qkv", "attn_output", "ffn_up", "ffn_down")),
    ),
    "granite": GgufFamily(
        "granite", "GraniteForCausalLM", rotated_heads=_ROTATED_HEADS, bias_keys=_LLAMA_BIASES, refine=granite,
        understands=frozenset(("attention.scale", "embedding_scale", "logit_scale", "residual_scale")),
    ),
    "smollm3": GgufFamily("smollm3", "SmolLM3ForCausalLM", rotated_heads=_ROTATED_HEADS, refine=smollm3),
    "olmo2": GgufFamily("olmo2", "Olmo2ForCausalLM", block=_OLMO2_BLOCK, needs_head=True),
    "starcoder2": GgufFamily(
        "starcoder2", "Starcoder2ForCausalLM", refine=starcoder2, bias_keys={"use_bias": "attn_q"},
        block={**{key: name for key, name in _LLAMA_BLOCK.items() if key != "ffn_gate"},
               "ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
    ),
    "stablelm": GgufFamily("stablelm", "StableLmForCausalLM", refine=stablelm, bias_keys={"use_qkv_bias": "attn_q"},
                           needs_head=True),
    "phi2": GgufFamily("phi", "PhiForCausalLM", block=_PHI_BLOCK, refine=phi, needs_head=True,
                       top={**_LLAMA_TOP, "output_norm": "model.final_layernorm"}),
}


def config_from_gguf(metadata: Mapping[str, Any], names: Collection[str], vocab_size: int,
                     divisors: Mapping[str, np.ndarray], where: Path) -> dict[str, Any]:
    """config.json of the model that ``metadata`` describe: ``GgufFamily.config`` of its architecture."""
    read = Metadata(metadata, where)
    return family_of(read).config(read, names, vocab_size, divisors)


def family_of(metadata: Metadata) -> GgufFamily:
    """Raises UnsupportedError for an architecture that is not known."""
    if metadata.architecture not in FAMILIES:
        raise UnsupportedError("an architecture that is not known here", where=metadata.where,
                               found=repr(metadata.architecture)[:80], expected=", ".join(FAMILIES),
                               hint="Convert the original checkpoint instead of its GGUF file.")
    return FAMILIES[metadata.architecture]
