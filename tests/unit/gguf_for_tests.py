"""Small GGUF files for tests: models with random weights, and a tokenizer of each kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kumquant.export.gguf_writer import PlannedTensor, write_gguf

HIDDEN, FFN, LAYERS, HEADS, KV_HEADS, VOCAB = 64, 96, 2, 4, 2, 48

LLAMA: dict[str, Any] = {
    "general.architecture": "llama", "general.name": "tiny", "llama.context_length": 128,
    "llama.embedding_length": HIDDEN, "llama.block_count": LAYERS, "llama.feed_forward_length": FFN,
    "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KV_HEADS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0,
    "llama.rope.dimension_count": HIDDEN // HEADS, "llama.vocab_size": VOCAB, "tokenizer.ggml.model": "no_vocab",
}


def metadata_of(architecture: str, **changes: Any) -> dict[str, Any]:
    """``LLAMA`` for another architecture. changes: keys without its prefix; "_" for "."; None removes one."""
    values = {key.replace("llama.", f"{architecture}.", 1): value for key, value in LLAMA.items()}
    values["general.architecture"] = architecture
    for key, value in changes.items():
        values[f"{architecture}.{key.replace('__', '.')}"] = value
    return {key: value for key, value in values.items() if value is not None}


def llama_shapes(tied: bool = False) -> dict[str, tuple[int, ...]]:
    """GGUF name -> shape, slowest axis first."""
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    if not tied:
        shapes["output.weight"] = (VOCAB, HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        shapes |= {
            f"{block}attn_norm.weight": (HIDDEN,), f"{block}ffn_norm.weight": (HIDDEN,),
            f"{block}attn_q.weight": (HIDDEN, HIDDEN), f"{block}attn_k.weight": (kv, HIDDEN),
            f"{block}attn_v.weight": (kv, HIDDEN), f"{block}attn_output.weight": (HIDDEN, HIDDEN),
            f"{block}ffn_gate.weight": (FFN, HIDDEN), f"{block}ffn_up.weight": (FFN, HIDDEN),
            f"{block}ffn_down.weight": (HIDDEN, FFN),
        }
    return shapes


def random_values(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """float16 values that float32 norms hold too."""
    rng = np.random.default_rng(seed)
    return {name: (rng.standard_normal(shape) * 0.2 + (len(shape) == 1)).astype(np.float16)
            for name, shape in shapes.items()}


def random_q4_0(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Blocks (rows, row bytes) uint8: any codes, scales of both signs, zero and subnormal ones among them."""
    rows, width = shape
    blocks = rng.integers(0, 256, (rows, width // 32, 18), np.uint8)
    scales = (rng.standard_normal((rows, width // 32)) * 0.02).astype(np.float16)
    special = np.array([0.0, -0.0, 6e-8, -6e-8, 3e-5], np.float16)
    scales.reshape(-1)[: len(special)] = special[: scales.size]
    blocks[:, :, :2] = scales[:, :, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def write(path: Path, metadata: Mapping[str, Any],
          tensors: Mapping[str, tuple[str, tuple[int, ...], np.ndarray]]) -> Path:
    """tensors: name -> (type, shape, the stored array)."""
    planned = [PlannedTensor(name, kind, shape) for name, (kind, shape, _) in tensors.items()]
    write_gguf(path, metadata, planned, ([data] for _, _, data in tensors.values()))
    return path


def write_floats(path: Path, metadata: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> Path:
    """A model in float16, its norms and biases in float32, as llama.cpp writes it."""
    return write(path, metadata, {
        name: ("F32", array.shape, array.astype(np.float32)) if array.ndim == 1 else ("F16", array.shape, array)
        for name, array in values.items()
    })


def write_q4_0(path: Path, metadata: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], seed: int = 0,
               plain: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """A model in Q4_0 but for norms, and matrices named in ``plain``. Returns what is stored, by name."""
    rng = np.random.default_rng(seed)
    values = random_values(shapes, seed)
    tensors: dict[str, tuple[str, tuple[int, ...], np.ndarray]] = {}
    for name, shape in shapes.items():
        if len(shape) == 1:
            tensors[name] = ("F32", shape, values[name].astype(np.float32))
        elif name in plain:
            tensors[name] = ("F16", shape, values[name])
        else:
            tensors[name] = ("Q4_0", shape, random_q4_0((shape[0], shape[1]), rng))
    write(path, metadata, tensors)
    return {name: data for name, (_, _, data) in tensors.items()}


def byte_characters() -> list[str]:
    """The characters that stand for the bytes 0 to 255 in byte-level BPE."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in shown]
    return [chr(byte if byte in shown else 256 + others.index(byte)) for byte in range(256)]


def bpe_metadata(pre: str) -> dict[str, Any]:
    """A byte-level BPE tokenizer with a few merges and three special tokens."""
    merges = ["h e", "l l", "he ll", "hell o", "\u0120 w", "o r", "\u0120w or", "l d", "\u0120wor ld", "1 2",
              "\u0120 \u0120", "\u010a \u010a", "' s"]
    tokens = [*byte_characters(), *(merge.replace(" ", "") for merge in merges), "<s>", "<end>", "<tool>"]
    count = len(tokens)
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (count - 3) + [3, 3, 4], "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": count - 3, "tokenizer.ggml.eos_token_id": count - 2,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}<end>{% endfor %}",
    }


_WORDS = ("\u2581hello", "\u2581world", "lo", "ld", "==", "===")


def sentencepiece_metadata(words: Iterable[str] = _WORDS) -> dict[str, Any]:
    """A SentencePiece tokenizer: bytes, characters, and every beginning of each word, scored by length."""
    pieces = dict.fromkeys(word[:end] for word in words for end in range(2, len(word) + 1))
    characters = dict.fromkeys("\u2581" + "".join(words) + "abcdefghijklmnopqrstuvwxyz0123456789.,'=<>")
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *characters]
    count = len(pieces)
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.pre": "default", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259),
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(rank) for rank in range(count)]
        + [-1000.0 - rank for rank in range(len(characters))],
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }
