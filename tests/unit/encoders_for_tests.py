"""A small sentence encoder made on the spot: random BERT, WordPiece tokenizer, sentence-transformers modules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints_for_tests import random_tensors, write_checkpoint
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "dog", "sat", "ran", "on", "mat", "##s", ":", "query"]
CLS, SEP = 2, 3
TINY_BERT: dict[str, Any] = {
    "model_type": "bert", "vocab_size": len(WORDS), "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 96, "type_vocab_size": 2, "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
}


def bert_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Checkpoint names and shapes of a BERT without prefix, pooler included."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]

    def linear(name: str, rows: int, width: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (rows, width), f"{name}.bias": (rows,)}

    def norm(name: str) -> dict[str, tuple[int, ...]]:
        return {f"{name}.LayerNorm.weight": (hidden,), f"{name}.LayerNorm.bias": (hidden,)}

    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], hidden),
        **norm("embeddings"), **linear("pooler.dense", hidden, hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        prefix = f"encoder.layer.{layer}."
        for part in ("query", "key", "value"):
            shapes |= linear(f"{prefix}attention.self.{part}", hidden, hidden)
        shapes |= linear(f"{prefix}attention.output.dense", hidden, hidden) | norm(f"{prefix}attention.output")
        shapes |= linear(f"{prefix}intermediate.dense", inner, hidden)
        shapes |= linear(f"{prefix}output.dense", hidden, inner) | norm(f"{prefix}output")
    return shapes


def word_piece() -> Tokenizer:
    """BERT's kind. It asks for padding and truncation, as all-MiniLM-L6-v2's file does."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)])
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.enable_padding(length=16)
    tokenizer.enable_truncation(16)
    return tokenizer


def write_modules(folder: Path, *kinds: str, pooling: dict[str, Any] | None = None, **sizes: Any) -> None:
    """modules.json and what goes with it. kinds: names of modules. sizes: keys of sentence_bert_config.json."""
    places = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"idx": i, "name": str(i), "path": places.get(kind, f"{i}_{kind}"),
                "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling or {"pooling_mode_mean_tokens": True}))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12, **sizes}))


def sentence_encoder(folder: Path) -> Path:
    """A checkpoint folder: mean pooling, unit length, at most 12 tokens."""
    tensors = random_tensors(bert_shapes(TINY_BERT), np.float32)
    tensors = {name: tensor * 10 for name, tensor in tensors.items()}
    write_checkpoint(folder, tensors, TINY_BERT)
    word_piece().save(str(folder / "tokenizer.json"))
    write_modules(folder, "Transformer", "Pooling", "Normalize")
    return folder
