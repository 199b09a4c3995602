"""MLC's ``conv_template``: a dialog's text from separators and role names, without a template language.

Source: docs/format.md, "conv_template" (shared/conformance/FORMAT.md 6.3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import RequestError, UnsupportedError

# How the separator after message i is chosen: WebLLM counts messages, MLC looks at who speaks.
SeparatorRule = Literal["mlc", "webllm"]

_PLACEHOLDER = {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"}
_SYSTEM_PLACEHOLDER = "{system_message}"


@dataclass(frozen=True)
class ConvTemplate:
    """The fields that make the prompt, by their names in mlc-chat-config.json.

    prefix_token_ids ("system_prefix_token_ids") stand before everything, as ids. seps: one or two. messages:
    turns that stand before the dialog's own, as (role, content). reasoning_end: what an assistant's thoughts
    end with, where earlier turns lose them.
    """

    name: str = "custom"
    system_template: str = _SYSTEM_PLACEHOLDER
    system_message: str = ""
    prefix_token_ids: tuple[int, ...] = ()
    add_role_after_system_message: bool = True
    roles: Mapping[str, str] = field(default_factory=lambda: {"user": "", "assistant": ""})
    role_templates: Mapping[str, str] = field(default_factory=lambda: dict(_PLACEHOLDER))
    messages: tuple[tuple[str, str], ...] = ()
    seps: tuple[str, ...] = ("",)
    role_content_sep: str = ""
    role_empty_sep: str = ""
    stop_str: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    strip_reasoning_in_history: bool = False

    def render(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True,
               rule: SeparatorRule = "mlc") -> str:
        """The prompt after ``prefix_token_ids``. Raises like ``pieces``."""
        return "".join(self.pieces(messages, add_generation_prompt, rule))

    def pieces(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True,
               rule: SeparatorRule = "mlc") -> list[str]:
        """The prompt in the parts that WebLLM tokenizes one by one: system text, messages, the answer's role.

        A system message replaces the template's own and must come first. Raises RequestError for a role that
        the template does not have.
        """
        system, turns = self._split(messages)
        system_text = self.system_template.replace(_SYSTEM_PLACEHOLDER, system)
        pieces = [system_text] if system_text else []
        for index, (role, content) in enumerate(turns):
            is_bare = index == 0 and system_text != "" and not self.add_role_after_system_message
            prefix = "" if is_bare else self.roles[role] + self.role_content_sep
            filled = self.role_templates[role].replace(_PLACEHOLDER[role], content)
            pieces.append(prefix + filled + self._separator(index, role, rule))
        if add_generation_prompt:
            pieces.append(self.roles["assistant"] + self.role_empty_sep)
        return pieces

    def to_json(self) -> dict[str, Any]:
        """The object as MLC writes it, every key, in order."""
        return {
            "name": self.name, "system_template": self.system_template, "system_message": self.system_message,
            "system_prefix_token_ids": list(self.prefix_token_ids) or None,
            "add_role_after_system_message": self.add_role_after_system_message, "roles": dict(self.roles),
            "role_templates": dict(self.role_templates), "messages": [list(pair) for pair in self.messages],
            "seps": list(self.seps), "role_content_sep": self.role_content_sep,
            "role_empty_sep": self.role_empty_sep, "stop_str": list(self.stop_str),
            "stop_token_ids": list(self.stop_token_ids),
            "strip_reasoning_in_history": self.strip_reasoning_in_history, "function_string": "",
            "use_function_calling": False,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> ConvTemplate:
        """Read the object of a mlc-chat-config.json. Raises UnsupportedError naming the key that is wrong."""
        read = _Reader(value, where)
        roles = read.texts("roles", {"user": "", "assistant": ""})
        for role in ("user", "assistant"):
            if role not in roles:
                raise UnsupportedError(f'the conv_template has no role "{role}"', where=f"{where}.roles",
                                       found=", ".join(roles) or "none")
        seps = read.text_list("seps", [""])
        if len(seps) not in (1, 2):
            raise UnsupportedError("a conv_template has one or two separators", where=f"{where}.seps",
                                   found=len(seps))
        return cls(
            name=read.text("name", "custom"),
            system_template=read.text("system_template", _SYSTEM_PLACEHOLDER),
            system_message=read.text("system_message", ""),
            prefix_token_ids=read.ids("system_prefix_token_ids"),
            add_role_after_system_message=read.flag("add_role_after_system_message", True),
            roles=roles, role_templates={**_PLACEHOLDER, **read.texts("role_templates", {})},
            messages=read.turns("messages", roles), seps=tuple(seps),
            role_content_sep=read.text("role_content_sep", ""),
            role_empty_sep=read.text("role_empty_sep", ""),
            stop_str=tuple(read.text_list("stop_str", [])), stop_token_ids=read.ids("stop_token_ids"),
            strip_reasoning_in_history=read.flag("strip_reasoning_in_history", False),
        )

    def _split(self, messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[str, str]]]:
        system = self.system_message
        turns = list(self.messages)
        last_user = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=-1)
        for index, message in enumerate(messages):
            role, content = message["role"], message["content"] or ""
            if role == "system" and index == 0:
                system = content
                continue
            if role not in self.roles or role not in _PLACEHOLDER:
                raise RequestError(
                    "the model's chat template has no such role here", where=f"messages[{index}].role",
                    found=repr(role), expected=", ".join(["system (first)", *self.roles]),
                )
            if self.strip_reasoning_in_history and role == "assistant" and index < last_user:
                content = content.split("</think>")[-1].lstrip("\n") if "</think>" in content else content
            turns.append((role, content))
        return system, turns

    def _separator(self, index: int, role: str, rule: SeparatorRule) -> str:
        number = index if rule == "webllm" else int(role == "assistant")
        return self.seps[number % len(self.seps)]


class _Reader:
    """Typed access to a foreign conv_template."""

    def __init__(self, value: Mapping[str, Any], where: str) -> None:
        self.value, self.where = value, where

    def text(self, key: str, default: str) -> str:
        value = self.value.get(key)
        return default if value is None else self._is(key, value, isinstance(value, str), "a string")

    def flag(self, key: str, default: bool) -> bool:
        value = self.value.get(key)
        return default if value is None else self._is(key, value, isinstance(value, bool), "true or false")

    def text_list(self, key: str, default: list[str]) -> list[str]:
        """A list of strings; a single string, as older files have, counts as a list of one."""
        value = self.value.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            return [value]
        fits = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return self._is(key, value, fits, "a list of strings")

    def ids(self, key: str) -> tuple[int, ...]:
        value = self.value.get(key)
        if value is None:
            return ()
        fits = isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)
        return tuple(self._is(key, value, fits, "a list of token ids"))

    def texts(self, key: str, default: dict[str, str]) -> dict[str, str]:
        value = self.value.get(key)
        if value is None:
            return default
        fits = isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
        return self._is(key, value, fits, "an object of strings")

    def turns(self, key: str, roles: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
        value = self.value.get(key) or []
        fits = isinstance(value, list) and all(
            isinstance(turn, list) and len(turn) == 2 and turn[0] in roles and isinstance(turn[1], str)
            for turn in value
        )
        return tuple((role, content) for role,
                     content in self._is(key, value, fits, "a list of [role, content]"))

    def _is(self, key: str, value: Any, fits: bool, expected: str) -> Any:
        if not fits:
            raise UnsupportedError("the conv_template cannot be read", where=f"{self.where}.{key}",
                                   found=repr(value)[:80], expected=expected)
        return value
