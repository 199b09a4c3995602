"""A tokenizer.json rebuilt from a GGUF file's metadata: what llama.cpp does, in the ``tokenizers`` library's words.

Source: llama.cpp, src/llama-vocab.cpp; tests/conformance/compare_gguf_tokenizers.py and test_gguf_llama_cpp.py compare
the two.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError, UnsupportedError
from .gguf_pre_tokenizers import DEFAULT, PRE_TOKENIZERS, PreTokenizer

_PREFIX = "tokenizer.ggml."
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
# Token types (llama.cpp's enum): what they are for.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown", "sep": "seperator", "cls": "cls",
          "mask": "mask"}  # "seperator" is how GGUF spells it
# Tokens of these texts end an answer and count as control tokens, whatever type the file gives them (llama.cpp).
_END_MARKS = frozenset((
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|endoftext|>", "</s>",
    "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>", "<end_of_utterance>", "<eos>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
))
_MAX_WORD_CHARACTERS = 100  # of WordPiece; a longer word is unknown


@dataclass(frozen=True)
class _Vocabulary:
    """The metadata of a tokenizer, checked. special: role -> token."""

    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]
    special: dict[str, str]
    values: Mapping[str, Any]
    where: str

    def option(self, key: str, default: bool) -> bool:
        value = self.values.get(_PREFIX + key, default)
        return value if isinstance(value, bool) else default

    @property
    def ids(self) -> dict[str, int]:
        """Token -> id; of a token that is there twice the last, as llama.cpp has it."""
        return {token: number for number, token in enumerate(self.tokens)}


def tokenizer_files_from_gguf(metadata: Mapping[str, Any], where: str) -> dict[str, str]:
    """Name -> text of tokenizer.json and tokenizer_config.json; none if the metadata describe no tokenizer.

    metadata: GGUF's keys ("tokenizer.ggml.model", …). where: the file, for errors.
    Raises UnsupportedError for a kind or a way of cutting words that is not known, CheckpointError for metadata that
    contradict themselves.
    """
    kind = metadata.get(f"{_PREFIX}model")
    if kind in (None, "no_vocab", "none"):
        return {}
    if not isinstance(kind, str) or kind not in _BUILDERS:
        raise UnsupportedError("a kind of tokenizer that is not known", where=f"{where}: {_PREFIX}model",
                               found=repr(kind)[:80], expected=", ".join(_BUILDERS))
    vocabulary = _read(metadata, where)
    tokenizer = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": _added_tokens(vocabulary),
                 **_BUILDERS[kind](vocabulary)}
    return {"tokenizer.json": json.dumps(tokenizer, ensure_ascii=False),
            "tokenizer_config.json": json.dumps(_tokenizer_config(vocabulary), indent=2, ensure_ascii=False)}


def _read(metadata: Mapping[str, Any], where: str) -> _Vocabulary:
    tokens = _strings(metadata, "tokens", where)
    if not tokens:
        raise CheckpointError("the tokenizer has no tokens", where=where, expected=f"{_PREFIX}tokens")
    types = metadata.get(f"{_PREFIX}token_type") or [_NORMAL] * len(tokens)
    scores = metadata.get(f"{_PREFIX}scores") or [0.0] * len(tokens)
    for key, values in (("token_type", types), ("scores", scores)):
        if not isinstance(values, list) or len(values) != len(tokens) or not _are_numbers(values):
            raise CheckpointError(f'"{_PREFIX}{key}" does not fit the tokens', where=where,
                                  expected=f"{len(tokens)} numbers", hint="The file is damaged. Fetch it again.")
    special = {}
    for role, key in _ROLES.items():
        number = metadata.get(f"{_PREFIX}{key}_token_id")
        if number is None:
            continue
        if type(number) is not int or not 0 <= number < len(tokens):
            raise CheckpointError(f'"{_PREFIX}{key}_token_id" names no token', where=where, found=repr(number)[:40],
                                  expected=f"0 to {len(tokens) - 1}")
        special[role] = tokens[number]
    types = [_CONTROL if token in _END_MARKS else kind for token, kind in zip(tokens, types, strict=True)]
    return _Vocabulary(tokens, types, scores, _strings(metadata, "merges", where), special, metadata, where)


def _are_numbers(values: list[Any]) -> bool:
    return set(map(type, values)) <= {int, float}


def _strings(metadata: Mapping[str, Any], key: str, where: str) -> list[str]:
    values = metadata.get(_PREFIX + key, [])
    if not isinstance(values, list) or not set(map(type, values)) <= {str}:
        raise CheckpointError(f'"{_PREFIX}{key}" is no list of strings', where=where,
                              hint="The file is damaged. Fetch it again.")
    return values


def _added_tokens(vocabulary: _Vocabulary) -> list[dict[str, Any]]:
    """Tokens that are cut out of a text before anything else; control tokens give no text."""
    strips = _strips_right(vocabulary)
    ids = vocabulary.ids
    return [
        {"id": number, "content": token, "single_word": False, "lstrip": False, "rstrip": token in strips,
         "normalized": False, "special": kind in (_CONTROL, _UNKNOWN)}
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED) and token and ids[token] == number
    ]


def _strips_right(vocabulary: _Vocabulary) -> set[str]:
    """Special tokens that swallow the spaces behind them. llama.cpp knows Phi-3 by its name, and so do we."""
    name = str(vocabulary.values.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return set()
    kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
    special = {token for token, kind in kinds if kind in (_CONTROL, _UNKNOWN, _USER_DEFINED)}
    return (special | {"</s>"}) - {"<unk>", "<s>", "<|endoftext|>"}


def _byte_level(vocabulary: _Vocabulary) -> dict[str, Any]:
    """Byte-level BPE (GPT-2, Llama 3, Qwen, …)."""
    pre = _pre_tokenizer(vocabulary)
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in pre.patterns
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    model = _bpe(vocabulary.ids, _given_merges(vocabulary), ignore_merges=pre.ignore_merges)
    return {"normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*steps, byte_level]},
            "post_processor": _template(vocabulary, adds_bos=pre.adds_bos), "decoder": byte_level, "model": model}


def _pre_tokenizer(vocabulary: _Vocabulary) -> PreTokenizer:
    name = vocabulary.values.get(f"{_PREFIX}pre") or "default"
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        raise UnsupportedError("a way of cutting words that is not known", where=f"{vocabulary.where}: {_PREFIX}pre",
                               found=repr(name)[:80], expected=", ".join(PRE_TOKENIZERS))
    return PRE_TOKENIZERS.get(name, DEFAULT)


def _given_merges(vocabulary: _Vocabulary) -> list[list[str]]:
    ids = vocabulary.ids
    merges = []
    for merge in vocabulary.merges:
        cut = merge.find(" ", 1)  # a token may itself begin with a space
        left, right = merge[:cut], merge[cut + 1 :]
        if cut < 0 or left not in ids or right not in ids or left + right not in ids:
            raise CheckpointError(f'"{_PREFIX}merges" has a pair that is no token', where=vocabulary.where,
                                  found=repr(merge)[:80], hint="The file is damaged. Fetch it again.")
        merges.append([left, right])
    return merges


def _sentencepiece(vocabulary: _Vocabulary) -> dict[str, Any]:
    """SentencePiece BPE (Llama 2, Mistral, Gemma): no words, characters without a token in bytes."""
    has_prefix = vocabulary.option("add_space_prefix", True)
    to_block = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    normalizers = [{"type": "Prepend", "prepend": _SPACE}, to_block] if has_prefix else [to_block]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
    ]
    if has_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = vocabulary.special.get("unk")
    return {"normalizer": {"type": "Sequence", "normalizers": normalizers}, "pre_tokenizer": None,
            "post_processor": _template(vocabulary, adds_bos=True),
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": _bpe(vocabulary.ids, _derived_merges(vocabulary), unk_token=unknown, byte_fallback=True,
                          fuse_unk=True)}


def _derived_merges(vocabulary: _Vocabulary) -> list[list[str]]:
    """SentencePiece merges whatever makes the token with the best score, so every way to cut a token is a merge.

    Of equal scores the leftmost pair goes first there; merges of one token here in the order of their left part's
    length, which is the same for all but pairs that overlap.
    """
    ids = vocabulary.ids
    mergeable = [(-score, number, token) for number, (token, kind, score)
                 in enumerate(zip(vocabulary.tokens, vocabulary.types, vocabulary.scores, strict=True))
                 if kind in (_NORMAL, _UNUSED) and len(token) > 1 and ids[token] == number]
    return [[token[:cut], token[cut:]] for _, _, token in sorted(mergeable) for cut in range(1, len(token))
            if token[:cut] in ids and token[cut:] in ids]


def _bpe(ids: dict[str, int], merges: list[list[str]], *, ignore_merges: bool = False, unk_token: str | None = None,
         byte_fallback: bool = False, fuse_unk: bool = False) -> dict[str, Any]:
    return {"type": "BPE", "dropout": None, "unk_token": unk_token, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": fuse_unk, "byte_fallback": byte_fallback,
            "ignore_merges": ignore_merges, "vocab": ids, "merges": merges}


def _wordpiece(vocabulary: _Vocabulary) -> dict[str, Any]:
    """WordPiece (BERT). GGUF marks beginnings of words with "▁", the library the other pieces with "##"."""
    special = set(vocabulary.special.values())
    ids = {}
    for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if token.startswith(_SPACE):
            token = token.removeprefix(_SPACE)
        elif kind == _NORMAL and token not in special:
            token = f"##{token}"
        ids[token] = number
    normalizer = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                  "strip_accents": vocabulary.option("normalizer.strip_accents", True),
                  "lowercase": vocabulary.option("normalizer.lowercase", True)}
    return {"normalizer": normalizer, "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": _template(vocabulary, adds_bos=True, adds_sep=True),
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": vocabulary.special.get("unk", "[UNK]"), "vocab": ids,
                      "continuing_subword_prefix": "##", "max_input_chars_per_word": _MAX_WORD_CHARACTERS}}


def _template(vocabulary: _Vocabulary, *, adds_bos: bool, adds_sep: bool = False) -> dict[str, Any] | None:
    """What stands before and behind a text; None if nothing does."""
    special = vocabulary.special
    before = special.get("bos", special.get("cls")) if vocabulary.option("add_bos_token", adds_bos) else None
    after = special.get("eos") if vocabulary.option("add_eos_token", False) else None
    if vocabulary.option("add_sep_token", adds_sep):
        after = special.get("sep", after)
    if before is None and after is None:
        return None
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    single = [*_special_item(before), *text, *_special_item(after)]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}, *_special_item(after, 1)]
    ids = vocabulary.ids
    used = {token: {"id": token, "ids": [ids[token]], "tokens": [token]} for token in (before, after) if token}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": used}


def _special_item(token: str | None, type_id: int = 0) -> list[dict[str, Any]]:
    return [] if token is None else [{"SpecialToken": {"id": token, "type_id": type_id}}]


def _tokenizer_config(vocabulary: _Vocabulary) -> dict[str, Any]:
    config: dict[str, Any] = {f"{role}_token": token for role, token in vocabulary.special.items()}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["clean_up_tokenization_spaces"] = False
    architecture = vocabulary.values.get("general.architecture")
    length = vocabulary.values.get(f"{architecture}.context_length")
    if isinstance(length, int):
        config["model_max_length"] = length
    template = vocabulary.values.get("tokenizer.chat_template")
    if isinstance(template, str):
        config["chat_template"] = template
    added = _added_tokens(vocabulary)
    config["added_tokens_decoder"] = {
        str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
    }
    return config


_BUILDERS: dict[str, Callable[[_Vocabulary], dict[str, Any]]] = {
    "gpt2": _byte_level, "llama": _sentencepiece, "bert": _wordpiece,
}
