"""Which token ids end an answer: the union of every file that says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..json_files import read_optional_json_object
from ..tokenizer import Tokenizer, has_tokenizer
from .conv_template import ConvTemplate
from .registry import is_known
from .template import CHAT_CONFIG_NAME, TOKENIZER_CONFIG_NAME, read_conv_template, special_tokens

_GENERATION_NAMES = ("generation_config.json", "config.json")
# What MLC writes where the model's own files name no end.
_MLC_DEFAULT_END = 2


def stop_token_ids(folder: Path | str, tokenizer: Tokenizer | None = None) -> set[int]:
    """Ids that end an answer of the model in ``folder``.

    The union of eos_token_id in generation_config.json and config.json, the tokenizer's eos_token, and what
    mlc-chat-config.json says: eos_token_id, its conv_template's ids, and those of its stop strings that are
    single tokens. An eos_token_id of 2 in that file counts only if nothing else names an end: MLC writes 2
    where the model does not say.
    tokenizer: the folder's, if it is open already. Raises CheckpointError for a file that cannot be read, and for an
    eos_token_id that is none. One beyond the vocabulary is legal, as in Transformers: it never comes.
    """
    folder = Path(folder)
    found: set[int] = set()
    for name in _GENERATION_NAMES:
        found |= _ends(read_optional_json_object(folder / name, CheckpointError), folder / name)
    tokens = [token for key, token in special_tokens(folder).items() if key == "eos_token"]
    path = folder / CHAT_CONFIG_NAME
    chat_config = read_optional_json_object(path, CheckpointError)
    template = _conv_template(chat_config, str(path))
    if template is not None:
        found |= set(template.stop_token_ids)
        tokens += template.stop_str
    found |= _ids_of_tokens(tokens, folder, tokenizer)
    ends = _ends(chat_config, path)
    return found if found and ends == {_MLC_DEFAULT_END} else found | ends


def _conv_template(chat_config: dict[str, Any], where: str) -> ConvTemplate | None:
    """The conv_template; None for a name nobody knows, which only matters to whoever wants to chat."""
    value = chat_config.get("conv_template")
    if isinstance(value, str) and value != "custom" and not is_known(value):
        return None
    return read_conv_template(chat_config, where)


def _ids_of_tokens(tokens: list[str], folder: Path, tokenizer: Tokenizer | None) -> set[int]:
    """Ids of those ``tokens`` that exist. tokenizer_config.json has most of them and is read much faster."""
    config = read_optional_json_object(folder / TOKENIZER_CONFIG_NAME, CheckpointError)
    added = config.get("added_tokens_decoder")
    known: dict[str, int] = {}
    for token_id, token in (added.items() if isinstance(added, dict) else ()):
        if isinstance(token, dict) and isinstance(token.get("content"), str) and token_id.isdecimal():
            known[token["content"]] = int(token_id)
    found = {known[token] for token in tokens if token in known}
    rest = [token for token in tokens if token not in known]
    if rest and tokenizer is None and has_tokenizer(folder):
        tokenizer = Tokenizer.open(folder)
    return found | set(tokenizer.tokens_to_ids(rest)) if rest and tokenizer else found


def _ends(config: dict[str, Any], where: Path) -> set[int]:
    """The eos_token_id of a file: an id, a list of ids, or null. Raises CheckpointError."""
    value = config.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for item in ids:
        if type(item) is not int or item < 0:
            raise CheckpointError('the key "eos_token_id" is no token id', where=where, found=repr(item)[:80],
                                  expected="an id, a list of ids, or null",
                                  hint="Compare the file with the model's original one.")
    return set(ids)
