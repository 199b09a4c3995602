"""What the native sampler is told about one sequence. Values are taken as given: engine/ validates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class SamplerConfig:
    """How the next token of a sequence is chosen from its logits, in this order.

    repetition_penalty works on prompt and output (positive logits are divided, negative ones multiplied);
    presence_penalty and frequency_penalty on the output only (subtracted); then logit_bias is added and
    banned ids are removed. temperature 0 takes the largest logit (the lowest id among equals); otherwise
    logits / temperature, top_k (0: off), top_p, min_p (relative to the likeliest token), and one draw that
    depends on seed and position alone. logprobs: -1 none; n the chosen token's and the n likeliest, natural
    logarithms of the unmodified distribution.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    banned: Sequence[int] = ()
    seed: int = 0
    logprobs: int = -1

    def to_native(self) -> dict[str, Any]:
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": self.top_p,
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": sorted(self.logit_bias.items()),
            "banned": list(self.banned),
            "seed": self.seed & (2**64 - 1),
            "logprobs": self.logprobs,
        }
