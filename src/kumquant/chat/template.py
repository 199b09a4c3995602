"""ChatTemplate: messages to the text of a prompt, by the model's own Jinja template or by MLC's
conv_template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, RequestError, UnsupportedError
from ..json_files import read_json_object, read_optional_json_object
from ..tokenizer import Tokenizer, has_tokenizer
from .conv_template import ConvTemplate
from .jinja import JinjaTemplate
from .message import Message, checked_messages, plain_data
from .registry import named_template

TEMPLATE_NAME = "chat_template.jinja"
# Files that hold a model's template, all of which a converter copies.
TEMPLATE_FILES = (TEMPLATE_NAME, "chat_template.json")
TOKENIZER_CONFIG_NAME = "tokenizer_config.json"
CHAT_CONFIG_NAME = "mlc-chat-config.json"

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """The chat template of a model. where: the file it comes from."""

    def __init__(self, source: JinjaTemplate | ConvTemplate, variables: Mapping[str, Any] | None = None,
                 prefix: str = "", where: object = None) -> None:
        """variables: what a Jinja template sees beside the messages. prefix: text before a
        conv_template's."""
        self._source, self._variables, self._prefix, self.where = source, dict(variables or {}), prefix, where

    @classmethod
    def open(cls, folder: Path | str, name: str = "default") -> ChatTemplate:
        """The template of a model folder; ``find`` says where it is looked for.

        Raises CheckpointError if there is none, UnsupportedError if it cannot be used.
        """
        template = cls.find(folder, name)
        if template is None:
            raise CheckpointError(
                "the model has no chat template", where=folder,
                expected=f"{TEMPLATE_NAME}, or chat_template in {TOKENIZER_CONFIG_NAME}",
                hint="It may be a base model: give it text to continue (generate --raw) instead of a chat.",
            )
        return template

    @classmethod
    def find(cls, folder: Path | str, name: str = "default") -> ChatTemplate | None:
        """The template of a model folder, None if it has none.

        Looked for in Transformers' order: chat_template.jinja, tokenizer_config.json (``name`` chooses where
        it has several), chat_template.json; then in mlc-chat-config.json, as an object or as one of MLC's
        names. Raises UnsupportedError for a template that cannot be used.
        """
        folder = Path(folder)
        text, where = _jinja_text(folder, name)
        if text is not None:
            return cls(JinjaTemplate(text, where), special_tokens(folder), where=where)
        template = _conv_template(folder)
        if template is None:
            return None
        prefix = _spelled(template.prefix_token_ids, folder)
        return cls(template, prefix=prefix, where=folder / CHAT_CONFIG_NAME)

    @property
    def source(self) -> JinjaTemplate | ConvTemplate:
        """What renders: the model's own template, or MLC's conv_template."""
        return self._source

    @property
    def variables(self) -> Mapping[str, Any]:
        """What a Jinja template sees beside the messages: bos_token, eos_token, …"""
        return self._variables

    @property
    def is_jinja(self) -> bool:
        """Whether the template is the model's own; MLC's conv_template can say less."""
        return isinstance(self._source, JinjaTemplate)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Texts that end an answer; only conv_templates have them."""
        if isinstance(self._source, JinjaTemplate):
            return ()
        return tuple(text for text in self._source.stop_str if text)

    def render(self, messages: Sequence[Message] | Sequence[Mapping[str, Any]],
               add_generation_prompt: bool = True, **variables: Any) -> str:
        """The text of the prompt, special tokens spelled out.

        variables: what else the template may look at (tools, enable_thinking, …).
        Raises RequestError for messages that are malformed or that the template refuses, UnsupportedError
        where the template fails or cannot use ``variables``.
        """
        checked = checked_messages(messages)
        if isinstance(self._source, ConvTemplate):
            given = [key for key, value in variables.items() if value is not None]
            if given:
                raise UnsupportedError("the model's chat template takes no variables", where=self.where,
                                       found=", ".join(given))
            return self._prefix + self._source.render(checked, add_generation_prompt)
        seen = {"tools": None, "documents": None, **self._variables, **plain_data(variables)}
        return self._source.render(
            {**seen, "messages": _with_reasoning_names(checked),
             "add_generation_prompt": add_generation_prompt})

    def encode(self, messages: Sequence[Message] | Sequence[Mapping[str, Any]], tokenizer: Tokenizer,
               add_generation_prompt: bool = True, **variables: Any) -> list[int]:
        """The token ids of the prompt.

        What the tokenizer's post-processor puts before a text (BOS) is there once, whether a Jinja template
        writes it or not; a conv_template says itself what comes first. Raises like ``render``.
        """
        text = self.render(messages, add_generation_prompt, **variables)
        if isinstance(self._source, ConvTemplate):
            plain = tokenizer.encode(text.removeprefix(self._prefix), add_special_tokens=False)
            return [*self._source.prefix_token_ids, *plain]
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        prefix = list(tokenizer.prefix_ids)
        return token_ids if token_ids[:len(prefix)] == prefix else prefix + token_ids


def special_tokens(folder: Path) -> dict[str, str]:
    """bos_token, eos_token, … as a template sees them, from tokenizer_config.json or
    special_tokens_map.json."""
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", TOKENIZER_CONFIG_NAME):
        values = read_optional_json_object(folder / name, CheckpointError)
        for key in _SPECIAL_TOKENS:
            token = values.get(key)
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                found[key] = content
    return found


def read_conv_template(chat_config: Mapping[str, Any], where: str) -> ConvTemplate | None:
    """The conv_template of a mlc-chat-config.json: an object, or a name with "conv_config" over it.

    None where the file has none. Raises UnsupportedError for one that cannot be read, or an unknown name.
    """
    value = chat_config.get("conv_template")
    if value is None:
        return None
    if isinstance(value, dict):
        return ConvTemplate.from_json({**value, **_overrides(chat_config)}, f"{where}: conv_template")
    if not isinstance(value, str):
        raise UnsupportedError("a conv_template is an object or a name", where=f"{where}: conv_template",
                               found=type(value).__name__)
    overrides = _overrides(chat_config)
    if value == "custom" and overrides:
        return ConvTemplate.from_json(overrides, f"{where}: conv_config")
    template = named_template(value, f"{where}: conv_template")
    if not overrides:
        return template
    return replace(ConvTemplate.from_json({**template.to_json(), **overrides}, f"{where}: conv_config"),
                   name=value)


def _overrides(chat_config: Mapping[str, Any]) -> dict[str, Any]:
    """The conv_config of 2023 in today's keys."""
    old: Any = chat_config.get("conv_config")
    if not isinstance(old, dict):
        return {}
    renamed = {"system": "system_message", "stop_tokens": "stop_token_ids",
               "role_msg_sep": "role_content_sep"}
    new: dict[str, Any] = {renamed.get(str(key), str(key)): value for key, value in old.items()}
    if isinstance(new.get("roles"), list) and len(new["roles"]) == 2:
        names = new["roles"]
        new["roles"] = dict(zip(("user", "assistant"), names))
        speakers = dict(zip(names, ("user", "assistant")))
        new["messages"] = [[speakers.get(role, role), text] for role, text in new.get("messages", [])]
    if new.pop("add_bos", False):
        new["system_prefix_token_ids"] = [chat_config.get("bos_token_id", 1)]
    return new


def _conv_template(folder: Path) -> ConvTemplate | None:
    path = folder / CHAT_CONFIG_NAME
    if not path.is_file():
        return None
    return read_conv_template(read_json_object(path, CheckpointError), str(path))


def _spelled(token_ids: Sequence[int], folder: Path) -> str:
    """``token_ids`` as text, for ``render``; "" where the folder has no tokenizer."""
    if not token_ids or not has_tokenizer(folder):
        return ""
    tokenizer = Tokenizer.open(folder)
    tokens = [tokenizer.id_to_token(token_id) for token_id in token_ids]
    if None in tokens:
        raise UnsupportedError("the conv_template starts with ids that the tokenizer does not have",
                               where=f"{folder / CHAT_CONFIG_NAME}: system_prefix_token_ids",
                               found=list(token_ids))
    return "".join(token for token in tokens if token is not None)


def _jinja_text(folder: Path, name: str) -> tuple[str | None, object]:
    path = folder / TEMPLATE_NAME
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8"), path
        except (OSError, UnicodeDecodeError) as reason:
            raise CheckpointError(f"cannot read the file ({reason})", where=path) from reason
    for file_name in (TOKENIZER_CONFIG_NAME, "chat_template.json"):
        path = folder / file_name
        value = read_optional_json_object(path, CheckpointError).get("chat_template")
        if value is not None:
            return _choose(value, name, path), f"{path} (chat_template)"
    return None, None


def _choose(value: Any, name: str, path: Path) -> str:
    """One template out of a string, a list of {"name", "template"} or a dictionary."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        value = {item.get("name"): item.get("template") for item in value}
    if not isinstance(value, dict):
        raise CheckpointError("chat_template is neither text nor a list of templates", where=path,
                              found=type(value).__name__)
    chosen = value.get(name, next(iter(value.values())) if len(value) == 1 else None)
    if not isinstance(chosen, str):
        raise RequestError(f'no chat template is called "{name}"', where=path,
                           found=", ".join(map(str, value)) or "none")
    return chosen


def _with_reasoning_names(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An assistant's thoughts under every name that templates read (as Transformers does)."""
    names = ("reasoning_content", "thinking", "reasoning")
    result = []
    for message in messages:
        thoughts = next((message[name] for name in names if message.get(name) is not None), None)
        if thoughts is not None:
            message = {"thinking": thoughts, **message, "reasoning_content": thoughts}
        result.append(message)
    return result
