"""Requests → tokens: continuous batching over paged KV memory, and ``LLM``, the model of a folder."""

from .engine import Engine
from .llm import LLM, TextStream
from .request import FinishReason, Generation, Request, TokenLogprob
from .sampling_params import DEFAULT_MAX_TOKENS, MAX_LOGPROBS, SamplingParams

__all__ = [
    "DEFAULT_MAX_TOKENS",
    "LLM",
    "MAX_LOGPROBS",
    "Engine",
    "FinishReason",
    "Generation",
    "Request",
    "SamplingParams",
    "TextStream",
    "TokenLogprob",
]
