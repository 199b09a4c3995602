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
            # The terms of a small divergence nearly cancel: it needs float64, a likelihood does not.
            dtype = np.float32 if reference is None else np.float64
            logprobs = log_softmax(logits[rows].astype(dtype, copy=False))
            self.count += len(logprobs)
            self.nll -= _sum_of_targets(logprobs, targets[rows])
            if reference is not None:
                expected = log_softmax(reference[rows].astype(dtype))
                self.reference_nll -= _sum_of_targets(expected, targets[rows])
                self.kl += divergence(expected, logprobs)
                self.agreements += int((expected.argmax(axis=1) == logprobs.argmax(axis=1)).sum())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Natural log probabilities (rows, vocabulary) in the dtype of ``logits``; sums are taken in float64."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    total = np.exp(shifted).sum(axis=1, keepdims=True, dtype=np.float64)
    return shifted - np.log(total).astype(logits.dtype)


def divergence(expected: np.ndarray, logprobs: np.ndarray) -> float:
    """Sum over rows of KL(expected || logprobs) in nats, from log probabilities."""
    return float((np.exp(expected) * (expected - logprobs)).sum(dtype=np.float64))


def _sum_of_targets(logprobs: np.ndarray, targets: np.ndarray) -> float:
    return float(logprobs[np.arange(len(targets)), targets].sum(dtype=np.float64))
