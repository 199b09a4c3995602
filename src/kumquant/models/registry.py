"""The table of families. Adding one is a file beside this one and a line here (docs/adding-a-family.md)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError, UnsupportedError
from .baichuan import BAICHUAN
from .bert import BERT, BERT_BGE
from .chatglm import CHATGLM
from .cohere import COHERE
from .family import Family
from .gemma import GEMMA
from .gemma2 import GEMMA2
from .gemma3 import GEMMA3, GEMMA3_TEXT
from .gpt2 import GPT2
from .gpt_bigcode import GPT_BIGCODE
from .gpt_neox import GPT_NEOX
from .granite import GRANITE
from .internlm import INTERNLM
from .internlm2 import INTERNLM2
from .llama import LLAMA
from .minicpm import MINICPM
from .ministral3 import MINISTRAL3
from .mistral import MISTRAL
from .mixtral import MIXTRAL
from .nemotron import NEMOTRON
from .olmo import OLMO
from .olmo2 import OLMO2
from .orion import ORION
from .phi import PHI
from .phi3 import PHI3
from .qwen import QWEN
from .qwen2 import QWEN2
from .qwen2_moe import QWEN2_MOE
from .qwen3 import QWEN3
from .qwen3_embedding import QWEN3_EMBEDDING
from .qwen3_moe import QWEN3_MOE
from .smollm3 import SMOLLM3
from .stablelm import STABLELM
from .starcoder2 import STARCODER2

FAMILIES: dict[str, Family] = {family.model_type: family for family in (
    LLAMA, MISTRAL, MIXTRAL, MINISTRAL3, QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, QWEN3_EMBEDDING, GEMMA, GEMMA2,
    GEMMA3_TEXT, GEMMA3, PHI, PHI3, GPT2, GPT_BIGCODE, GPT_NEOX, STARCODER2, STABLELM, OLMO, OLMO2, COHERE, NEMOTRON,
    INTERNLM2, MINICPM, GRANITE, SMOLLM3, INTERNLM, BAICHUAN, CHATGLM, ORION, QWEN,
    BERT, BERT_BGE,
)}

# MLC has these and Kumquant does not run them. Their caches open, inspect, verify and dequantize all the same.
ELSEWHERE = (
    "deepseek", "deepseek_v2", "deepseek_v3", "eagle", "gptj", "llama4", "llava", "medusa", "mixformer-sequential",
    "phi-msft", "phi3_v", "qwen2_5_vl", "qwen3_5", "rwkv5", "rwkv6",
)


def family_of(config: Mapping[str, Any], model_type: str | None = None, where: str = "config.json") -> Family:
    """The family of a config: ``model_type``, or what the config says. where: the file, for errors.

    Raises CheckpointError if the config has no model_type, UnsupportedError if the family is not known.
    """
    name = model_type if model_type is not None else config.get("model_type")
    if not isinstance(name, str):
        raise CheckpointError('the key "model_type" is missing or not a string', where=where,
                              found=None if name is None else repr(name),
                              expected=f"one of {', '.join(FAMILIES)}",
                              hint="Is this the config.json of a language model?")
    if name in ELSEWHERE:
        raise UnsupportedError("MLC-LLM has this model family, Kumquant does not", where=f"{where}: model_type",
                               found=repr(name), expected=", ".join(FAMILIES),
                               hint="A cache of it can still be opened, inspected, verified and dequantized.")
    if name not in FAMILIES:
        raise UnsupportedError("unknown model family", where=f"{where}: model_type", found=repr(name),
                               expected=", ".join(FAMILIES),
                               hint="docs/adding-a-family.md says how to add a family.")
    return FAMILIES[name]
