"""Evaluate a model on a text, window by window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ..errors import RequestError
from ..files import checked_path
from ..models import TensorCache
from ..processors import default_threads
from ..progress import NO_PROGRESS, Progress
from ..runtime import KvDtype, Model, StepInput, check_kv_dtype
from ..tokenizer import Tokenizer
from .measures import Scores
from .reference import open_reference

DEFAULT_TOKENS = 20_000
DEFAULT_WINDOW = 1024
CHUNK = 128  # positions whose logits are held at a time

Activations = Literal["int8", "float32"]


@dataclass(frozen=True)
class Evaluation:
    """How well a model predicts a text.

    perplexity: exp of mean_nll (nats), over scored_tokens: every token but the first of each window.
    Against a reference, else None: mean_kl, KL(reference || this model) in nats, and top1_agreement, the
    share of scored positions where both find the same token likeliest; against_perplexity is the reference's
    own.
    """

    perplexity: float
    mean_nll: float
    tokens: int
    scored_tokens: int
    windows: int
    window: int
    activations: str
    kv_dtype: str
    against: str | None = None
    against_perplexity: float | None = None
    mean_kl: float | None = None
    top1_agreement: float | None = None


def evaluate(model: str | Path, text: str | Path, against: str | Path | None = None, *,
             num_tokens: int = DEFAULT_TOKENS, window: int | None = None, activations: Activations = "int8",
             kv_dtype: KvDtype = "auto", threads: int | None = None, progress: Progress = NO_PROGRESS) -> Evaluation:
    """Perplexity of a text file under the model of a cache folder, and its divergence from another model.

    The text's first ``num_tokens`` tokens (no special ones added) are cut into windows that each stand alone
    from position 0; a window's first token is not scored. window: default 1024, or the model's context if
    that is less. kv_dtype: as LLM takes it.
    against: a cache of the same vocabulary or a checkpoint folder, computed with float32
    activations. Raises RequestError for a text too short, a window longer than the context, or another
    vocabulary.
    """
    for name, value in (("threads", threads), ("num_tokens", num_tokens), ("window", window)):
        if value is not None and (type(value) is not int or value < 1):
            raise RequestError("value out of range", where=name, found=repr(value)[:80],
                               expected="an integer, at least 1")
    check_kv_dtype(kv_dtype)
    reference_path = None if against is None else checked_path(against, "against")
    token_ids = _read_tokens(checked_path(model, "model"), checked_path(text, "text"), num_tokens)
    threads = threads or default_threads()
    subject = Model(TensorCache.open(model), threads=threads)
    reference = None if reference_path is None else open_reference(reference_path, threads)
    window = _checked_window(window, [subject] if reference is None else [subject, reference])
    scores, windows = Scores(), 0
    progress.start(len(token_ids), "evaluate")
    try:
        for begin in range(0, len(token_ids) - 1, window):
            ids = token_ids[begin:begin + window]
            _score_window(ids, scores, subject, activations, kv_dtype, reference)
            windows += 1
            progress.advance(len(ids), f"perplexity {math.exp(scores.nll / scores.count):.2f}")
    finally:
        progress.finish()
    return _summary(scores, len(token_ids), windows, window, activations, kv_dtype, against)


def _summary(scores: Scores, tokens: int, windows: int, window: int, activations: str, kv_dtype: str,
             against: str | Path | None) -> Evaluation:
    mean_nll = scores.nll / scores.count
    result = Evaluation(_perplexity(mean_nll), mean_nll, tokens, scores.count, windows, window, activations, kv_dtype)
    if against is None:
        return result
    return Evaluation(
        **{**vars(result), "against": str(against),
           "against_perplexity": _perplexity(scores.reference_nll / scores.count),
           "mean_kl": scores.kl / scores.count, "top1_agreement": scores.agreements / scores.count},
    )


def _perplexity(mean_nll: float) -> float:
    return math.exp(min(mean_nll, 700.0))  # beyond that a float64 has no room


def _score_window(token_ids: list[int], scores: Scores, subject: Model, activations: Activations,
                  kv_dtype: KvDtype, reference: Model | None) -> None:
    targets = np.asarray(token_ids[1:])
    rows = _logits(subject, token_ids, activations, kv_dtype)
    if reference is None:
        for begin, logits in rows:
            scores.add(logits, targets[begin:begin + len(logits)])
        return
    for (begin, logits), (_, expected) in zip(rows, _logits(reference, token_ids, "float32", "auto")):
        scores.add(logits, targets[begin:begin + len(logits)], expected)


def _logits(model: Model, token_ids: list[int], activations: Activations,
            kv_dtype: KvDtype) -> Iterator[tuple[int, np.ndarray]]:
    """First row and logits (rows, vocabulary) of every position that has a successor, a chunk at a time."""
    pool = model.new_pool(model.pages_for(len(token_ids)), activations, kv_dtype)
    sequence = model.new_sequence(pool, None, token_ids)
    sequence.add_pages(pool.allocate(pool.num_pages))
    for begin in range(0, len(token_ids) - 1, CHUNK):
        chunk = token_ids[begin:min(begin + CHUNK, len(token_ids) - 1)]
        (output,) = model.step(pool, [StepInput(sequence, chunk, "logits")])
        assert output.logits is not None
        yield begin, output.logits


def _read_tokens(model: Path, text: Path, num_tokens: int) -> list[int]:
    try:
        content = text.read_text(encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot be read: {error.strerror}", where=text, hint="Check the path.") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"is not UTF-8 text: {error.reason}", where=text, found=f"byte {error.start}") from error
    token_ids = Tokenizer.open(model).encode(content, add_special_tokens=False)[:num_tokens]
    if len(token_ids) < 2:
        raise RequestError("the text is too short", where=text, found=f"{len(token_ids)} tokens",
                           expected="at least 2")
    return token_ids


def _checked_window(window: int | None, models: list[Model]) -> int:
    context = min(model.context_length for model in models)
    if len({model.vocab_size for model in models}) > 1:
        raise RequestError("the two models have different vocabularies", where="against",
                           found=f"{models[1].vocab_size} tokens", expected=models[0].vocab_size)
    if window is None:
        return min(DEFAULT_WINDOW, context)
    if not 2 <= window <= context:
        raise RequestError("does not fit the context", where="window", found=window,
                           expected=f"2 to {context}")
    return window
