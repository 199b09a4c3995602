"""The measures themselves, on rows of logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

ROWS_AT_ONCE = 32  # rows whose exponentials are held at a time: a vocabulary's row is large


@dataclass
class Scores:
    """Sums over scored positions. nll: of the tokens that came; kl: KL(reference || model); both in nats."""

    count: int = 0
    nll: float = 0.0
    reference_nll: float = 0.0
    kl: float = 0.0
    agreements: int = 0

    def add(self, logits: np.ndarray, targets: np.ndarray, reference: np.ndarray | None = None) -> None:
        """Score rows of logits.

        logits, reference: (rows, vocabulary) float32; targets: (rows,), the token that came after each row's.
        """
        for begin in range(0, len(targets), ROWS_AT_ONCE):
            rows = slice(begin, begin + ROWS_AT_ONCE)
            logprobs = log_softmax(logits[rows])
            self.count += len(logprobs)
            self.nll -= _sum_of_targets(logprobs, targets[rows])
            if reference is not None:
                expected = log_softmax(reference[rows])
                self.reference_nll -= _sum_of_targets(expected, targets[rows])
                self.kl += divergence(expected, logprobs)
                self.agreements += int((expected.argmax(axis=1) == logprobs.argmax(axis=1)).sum())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log probabilities, float32 (rows, vocabulary); the sum of exponentials is taken in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return shifted - np.log(total).astype(np.float32)


def divergence(expected: np.ndarray, logprobs: np.ndarray) -> float:
    """Sum over rows of KL(expected || logprobs) in nats, from log probabilities.

    In float64: the terms of both signs nearly cancel where the two are close.
    """
    wide = expected.astype(np.float64)
    return float((np.exp(wide) * (wide - logprobs)).sum())


def _sum_of_targets(logprobs: np.ndarray, targets: np.ndarray) -> float:
    return float(logprobs[np.arange(len(targets)), targets].sum(dtype=np.float64))
