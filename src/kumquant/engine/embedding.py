"""Texts to vectors: batched runs of a model for its hidden states, pooled as its folder says."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import RequestError
from ..models import Pooling
from ..progress import NO_PROGRESS, Progress
from ..runtime import KvDtype, Model, StepInput
from ..tokenizer import Tokenizer
from .engine import check_prompt
from .memory import Activations
from .prompts import Prompt

# What runs in one step. More tokens only push each other out of the processor's caches; a sequence takes whole pages.
MAX_STEP_TOKENS = 1024
MAX_STEP_SEQUENCES = 64
_TINY = 1e-12  # what a zero vector is divided by, as in sentence-transformers


class Embedder:
    """Turns texts into vectors.

    pooling: from hidden states to a vector. tokenizer: None for token ids only. max_length: tokens of a text at
    most, special ones included. A text's vector does not depend on the other texts beside it.
    """

    def __init__(self, model: Model, pooling: Pooling, tokenizer: Tokenizer | None, *, max_length: int,
                 activations: Activations = "int8", kv_dtype: KvDtype = "auto") -> None:
        self.model, self.pooling, self.tokenizer = model, pooling, tokenizer
        self.max_length = min(max_length, pooling.max_length or max_length)
        # Only reserved: a page costs memory from its first use on.
        num_pages = max(model.pages_for(self.max_length), model.pages_for(MAX_STEP_TOKENS) + MAX_STEP_SEQUENCES)
        self._pool = model.new_pool(num_pages, activations, kv_dtype)

    @property
    def dimensions(self) -> int:
        """Length of a vector."""
        return self.model.spec.hidden_size * len(self.pooling.modes)

    def encode(self, text: Prompt, prompt_name: str | None = None) -> list[int]:
        """Token ids of a text with the model's special tokens, cut to ``max_length``; ids come back as they are.

        prompt_name: which of the model's prompts goes before the text; default: the one that the model's makers chose.
        Raises RequestError for an unknown prompt, and for ids that are too many or outside the vocabulary.
        """
        if isinstance(text, str):
            return self._cut(self._require_tokenizer().encode(self._prepared(text, prompt_name)))
        check_prompt(text, min(self.max_length, self.model.context_length), self.model.vocab_size)
        return list(text)

    def embed(self, token_ids: Sequence[Sequence[int]], normalize: bool | None = None,
              progress: Progress = NO_PROGRESS) -> np.ndarray:
        """One vector for each list of token ids: float32 (lists, ``dimensions``).

        normalize: to unit length; default: as the model's makers chose.
        """
        vectors = np.empty((len(token_ids), self.dimensions), np.float32)
        progress.start(sum(map(len, token_ids)), "embed")
        try:
            for batch in batches([len(ids) for ids in token_ids]):
                each = [token_ids[index] for index in batch]
                for index, states in zip(batch, self._hidden_states(each), strict=True):
                    vectors[index] = pool(states, self.pooling.modes)
                progress.advance(sum(map(len, each)), f"{len(token_ids):,} texts")
        finally:
            progress.finish()
        is_unit = self.pooling.normalize if normalize is None else normalize
        return unit_length(vectors) if is_unit else vectors

    def _hidden_states(self, token_ids: Sequence[Sequence[int]]) -> Iterator[np.ndarray]:
        """Hidden states of each sequence, (tokens, hidden) float32, from one step."""
        inputs = [StepInput(self.model.new_sequence(self._pool, None, ids), ids, "hidden") for ids in token_ids]
        try:
            for item in inputs:
                item.sequence.add_pages(self._pool.allocate(self.model.pages_for(len(item.token_ids))))
            outputs = self.model.step(self._pool, inputs)
        finally:
            for item in inputs:
                item.sequence.close()
        for output in outputs:
            assert output.logits is not None
            yield output.logits

    def _prepared(self, text: str, prompt_name: str | None) -> str:
        name = self.pooling.default_prompt if prompt_name is None else prompt_name
        if name is not None:
            if name not in self.pooling.prompts:
                raise RequestError("the model has no such prompt", where="prompt_name", found=repr(name),
                                   expected=", ".join(self.pooling.prompts) or "none: this model has no prompts")
            text = self.pooling.prompts[name] + text
        return text.lower() if self.pooling.lowercase else text

    def _cut(self, ids: list[int]) -> list[int]:
        """A text that is too long ends early; what the post-processor puts after it (as [SEP]) stays."""
        if len(ids) <= self.max_length:
            return ids
        ending = self._require_tokenizer().suffix_ids
        return [*ids[:max(self.max_length - len(ending), 0)], *ending][:self.max_length]

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError("text needs a tokenizer, and this folder has none", expected="tokenizer.json",
                               hint="Copy the model's tokenizer files there, or pass token ids.")
        return self.tokenizer


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of sequences to run in one step, the longest first: a step's sequences are about equally long."""
    batch: list[int] = []
    tokens = 0
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and (tokens + lengths[index] > MAX_STEP_TOKENS or len(batch) == MAX_STEP_SEQUENCES):
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += lengths[index]
    if batch:
        yield batch


def pool(states: np.ndarray, modes: Sequence[str]) -> np.ndarray:
    """Hidden states (tokens, hidden) as one vector, (hidden * modes,) float32. modes: see ``Pooling``."""
    return np.concatenate([_pool(states, mode) for mode in modes])


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Each row divided by its Euclidean length, float32."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), np.float32(_TINY))


def _pool(states: np.ndarray, mode: str) -> np.ndarray:
    count = np.float32(len(states))
    if mode == "cls":
        return states[0]
    if mode == "last":
        return states[-1]
    if mode == "max":
        return states.max(axis=0)
    if mode == "weightedmean":  # later tokens of a text count more: 1, 2, 3, …
        weights = np.arange(1, len(states) + 1, dtype=np.float32)
        return (states * weights[:, None]).sum(axis=0) / weights.sum()
    return states.sum(axis=0) / (np.sqrt(count) if mode == "mean_sqrt_len" else count)
