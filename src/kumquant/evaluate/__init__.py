"""Quality of a model on a text: perplexity, divergence from a reference, agreement with it."""

from .evaluation import DEFAULT_TOKENS, DEFAULT_WINDOW, Evaluation, evaluate

__all__ = ["DEFAULT_TOKENS", "DEFAULT_WINDOW", "Evaluation", "evaluate"]
