"""Messages: plain dictionaries in OpenAI's shape, checked before a template sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ..errors import RequestError


class Message(TypedDict, total=False):
    """One turn of a dialog. role: "system", "user", "assistant" or "tool". content: its text, or text parts
    ({"type": "text", "text": …}). Further keys (name, tool_calls, reasoning_content, …) reach the model's
    template.
    """

    role: str
    content: Any


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A plain copy of ``messages`` in which every content is text or None.

    Raises RequestError naming the message that is not in the shape of ``Message``.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise RequestError(
            "a chat needs a list of messages", where="messages",
            found="an empty list" if isinstance(messages,
                                                Sequence) and not messages else type(messages).__name__,
            expected='[{"role": "user", "content": "…"}, …]',
        )
    return [_checked(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _checked(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError("a message is a dictionary", where=where, found=type(message).__name__,
                           expected='{"role": …, "content": …}')
    if not isinstance(message.get("role"), str):
        raise RequestError("a message needs a role", where=f"{where}.role", found=repr(message.get("role")),
                           expected='"system", "user", "assistant" or "tool"')
    copy = {str(key): plain_data(value) for key, value in message.items()}
    copy["content"] = _text(message.get("content"), f"{where}.content")
    if copy["content"] is None and not copy.get("tool_calls"):
        raise RequestError("a message needs a content", where=f"{where}.content", found="nothing",
                           expected="text")
    return copy


def _text(content: Any, where: str) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise RequestError("content is text", where=where, found=type(content).__name__, expected="a string")
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"),
                                                                                         str):
            raise RequestError("only text parts are understood", where=where, found=repr(part)[:80],
                               expected='{"type": "text", "text": …}')
    return "".join(part["text"] for part in content)


def plain_data(value: Any) -> Any:
    """``value`` rebuilt from plain JSON types, so that a template, which is foreign code, gets no live
    object.

    Raises RequestError for anything that is not JSON.
    """
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return value if type(value) is kind else kind(value)
    if isinstance(value, Mapping):
        return {str(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [plain_data(item) for item in value]
    raise RequestError("templates get plain data only", found=type(value).__name__,
                       expected="text, numbers, lists and dictionaries")
