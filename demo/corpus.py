"""From conversations to training batches: the tokenizer, the chat format, packing into rows.

Uses `tokenizers` and numpy. The chat format is ChatML, as in the template that `train.py` writes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from generate_text import ME, SYSTEM_PROMPTS, Conversation, generate, train_conversation
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
END_OF_TEXT_ID, IM_START_ID, IM_END_ID = 0, 1, 2
DEFAULT_SYSTEM = f"You are {ME}."  # what the chat template says first if the chat does not
SHORT_REPLY = 48  # replies up to this many tokens are answers rather than stories
ANSWER_WEIGHT = 2.0  # loss weight of their tokens: they are few, and each one can be right or wrong


def train_tokenizer(path: Path, vocab_size: int, seed: int) -> None:
    """Train a byte-level BPE tokenizer on 30 000 conversations and write `tokenizer.json`.

    Digits are always single tokens, so that the model sees a number's places.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT, IM_START, IM_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    texts = [ME, *SYSTEM_PROMPTS]
    for conversation in generate("train", seed, 30_000):
        texts += [conversation.text] + [f"{m['role']}\n{m['content']}" for m in conversation.messages]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def prompt_ids(tokenizer: Tokenizer, messages: list[dict[str, str]]) -> list[int]:
    """The chat so far, as the chat template writes it, and the opening of the reply."""
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
    text = "".join(f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages)
    return tokenizer.encode(f"{text}{IM_START}assistant\n").ids


def encode(tokenizer: Tokenizer, conversation: Conversation, rng: random.Random) -> tuple[list[int], list[float]]:
    """Token ids of a document and the loss weight of predicting each of them (0 for what the user says)."""
    ids: list[int] = []
    weights: list[float] = []
    if rng.random() < 0.3:  # some readers put the beginning-of-sequence token first, some do not
        ids, weights = [END_OF_TEXT_ID], [0.0]
    if not conversation.messages:
        body = [*tokenizer.encode(conversation.text).ids, END_OF_TEXT_ID]
        return ids + body, weights + [1.0] * len(body)
    newline = tokenizer.encode("\n").ids
    for message in conversation.messages:
        opening = [IM_START_ID, *tokenizer.encode(message["role"] + "\n").ids]
        body = [*tokenizer.encode(message["content"]).ids, IM_END_ID]
        weight = 0.0
        if message["role"] == "assistant":
            weight = ANSWER_WEIGHT if len(body) <= SHORT_REPLY else 1.0
        ids += opening + body + newline
        weights += [0.0] * len(opening) + [weight] * len(body) + [0.0] * len(newline)
    return ids, weights


@dataclass
class Batch:
    """Packed rows, all (rows, length): a document never spans rows and sees only itself."""

    tokens: np.ndarray  # int64
    labels: np.ndarray  # int64, the next token of the same document
    weights: np.ndarray  # float32, loss weight of each label
    positions: np.ndarray  # int64, from 0 in each document
    documents: np.ndarray  # int64, number of the document within the row


def pack(tokenizer: Tokenizer, seed: int, step: int, rows: int, length: int, max_turns: int) -> Batch:
    """The batch of one training step; a pure function of its arguments, so a run can be resumed anywhere."""
    rng = random.Random(f"{seed} {step}")
    documents = []
    total = 0
    while total < 0.97 * rows * length:
        ids, weights = encode(tokenizer, train_conversation(rng, max_turns), rng)
        documents.append((ids[:length], weights[:length]))
        total += len(documents[-1][0])
    documents.sort(key=lambda document: -len(document[0]))  # first fit, longest first: hardly any padding
    shape = (rows, length)
    batch = Batch(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.float32),
                  np.zeros(shape, np.int64), np.full(shape, -1, np.int64))  # fmt: skip
    used, count = [0] * rows, [0] * rows
    for ids, weights in documents:
        row = next((r for r in range(rows) if used[r] + len(ids) <= length), None)
        if row is None:
            continue
        start, end = used[row], used[row] + len(ids)
        batch.tokens[row, start:end] = ids
        batch.labels[row, start : end - 1] = ids[1:]
        batch.weights[row, start : end - 1] = weights[1:]
        batch.positions[row, start:end] = np.arange(len(ids))
        batch.documents[row, start:end] = count[row]
        used[row], count[row] = end, count[row] + 1
    return batch
