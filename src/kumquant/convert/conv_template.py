"""Translates a model's Jinja chat template into MLC's conv_template, and checks the result by rendering both.

A template is a program and a conv_template is a handful of strings, so the translation is by experiment: the
template renders dialogs made of marked messages, and what stands between the marks are the strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..chat import ChatTemplate, ConvTemplate, JinjaTemplate, Message
from ..errors import Error
from ..tokenizer import Tokenizer

Render = Callable[[Sequence[Message], bool], str]

# Marks stand for the messages in probes. Templates strip white space around contents, so there is none in
# them.
_SYSTEM, _USER, _ANSWER = "Qsysq", "Quser{}q", "Qbotq{}q"
_SPECIAL = re.compile(r"<[^<>\s]+>|\[[A-Z_/]+\]")
_MAX_SHOWN = 60

_SAID: list[Message] = [
    {"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And twice that?\nPlease explain."},
    {"role": "assistant", "content": "8, since 4 + 4 = 8."},
    {"role": "user", "content": "Thanks!"},
]
_ORDER: Message = {"role": "system", "content": "Answer in one sentence."}
_TEST_DIALOGS: dict[str, list[Message]] = {
    "user": _SAID[:1],
    "system, user": [_ORDER, *_SAID[:1]],
    "user, assistant, user": _SAID[:3],
    "system, user, assistant, user": [_ORDER, *_SAID[:3]],
    "three questions": _SAID,
}


@dataclass(frozen=True)
class Translation:
    """warnings: one line for each way in which MLC's prompts will differ from the model's own."""

    template: ConvTemplate
    warnings: tuple[str, ...] = ()


class _Untranslatable(Exception):
    """The template has a structure that a conv_template cannot have. The text says which."""


def translate(template: ChatTemplate | None, tokenizer: Tokenizer | None,
              stop_token_ids: Sequence[int]) -> Translation:
    """MLC's conv_template for a model.

    template: the model's own, None for a base model, which gets MLC's "LM": plain text without roles.
    tokenizer: where there is one, prompts are compared as token ids, otherwise as text.
    """
    stop = tuple(sorted(stop_token_ids))
    bare = ConvTemplate(name="LM", stop_token_ids=stop,
                        prefix_token_ids=tokenizer.prefix_ids if tokenizer else ())
    if template is None:
        return Translation(bare)
    if isinstance(template.source, ConvTemplate):
        return Translation(template.source)
    probe = _Probe(template, tokenizer)
    try:
        translated = replace(probe.translate(), stop_token_ids=stop)
    except _Untranslatable as reason:
        return Translation(bare, (
            f"The chat template cannot be said as MLC's conv_template ({reason}). MLC-LLM and WebLLM see "
            "plain text without roles; Kumquant uses the template itself.",
        ))
    warnings = compare(template, translated, tokenizer)
    if isinstance(template.source, JinjaTemplate) and "strftime_now" in template.source.text:
        warnings.append("The chat template writes the current date; MLC's conv_template keeps today's.")
    return Translation(translated, tuple(warnings))


class _Probe:
    """Renders marked dialogs and takes the strings between the marks."""

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer | None) -> None:
        self._template, self._tokenizer = template, tokenizer

    def translate(self) -> ConvTemplate:
        """Raises _Untranslatable.

        With U and A what stands before a user's and an assistant's message, E what asks for an answer, and
        s0, s1 what follows a user's and an assistant's message, a conv_template says:
        start + U u1 s0 + A a1 s1 + U u2 s0 + E.
        """
        before, after_user, after_answer, tail = self._gaps(2)
        user_sep = _common_start(self._end(1), after_user, tail)
        answer_sep = _common_start(self._end(2), after_answer)
        user = after_answer[len(answer_sep):]
        answer, asking = after_user[len(user_sep):], tail[len(user_sep):]
        if not before.endswith(user):  # the first turn starts in another way than the later ones
            shared = _common_end(before, user)
            answer_sep, user = answer_sep + user[:len(user) - len(shared)], shared
        bos, prefix = self._bos()
        if bos and user.startswith(bos):  # a BOS before each turn: it closes the one before
            answer_sep, user = answer_sep + bos, user.removeprefix(bos)
        start = before[:len(before) - len(user)].removeprefix(bos)
        role_content_sep = _role_separator(user, answer, asking)
        assistant = answer[:len(answer) - len(role_content_sep)]
        template = ConvTemplate(
            name="custom", system_template="{system_message}", prefix_token_ids=prefix,
            roles={"user": user[:len(user) - len(role_content_sep)], "assistant": assistant},
            seps=(user_sep,) if user_sep == answer_sep else (user_sep, answer_sep),
            role_content_sep=role_content_sep, role_empty_sep=asking[len(assistant):],
            strip_reasoning_in_history=self._strips_reasoning(),
        )
        return self._with_system(template, start, user, bos)

    def _with_system(self, template: ConvTemplate, start: str, user: str, bos: str) -> ConvTemplate:
        """Adds what stands around a system message. start: what a dialog without one begins with."""
        messages: list[Message] = [{"role": "system", "content": _SYSTEM}, *_dialog(1)]
        try:
            text = self._render(messages, True)
        except _Untranslatable:
            text = ""
        if text.count(_SYSTEM) != 1 or text.index(_SYSTEM) > text.find(_USER.format(1)):
            if not start:
                return template  # the model takes no system message; MLC's placeholder stays bare
            return replace(template,
                           system_template=start.replace("{system_message}", "") + "{system_message}")
        opening = text[:text.index(_USER.format(1))].removeprefix(bos)
        left, right = opening.split(_SYSTEM)
        has_role = right.endswith(user)
        right = right[:len(right) - len(user)] if has_role else right
        message = ""
        if start.startswith(left) and start.endswith(right) and len(start) >= len(left) + len(right):
            message = start[len(left):len(start) - len(right)]
        return replace(template, system_template=f"{left}{{system_message}}{right}", system_message=message,
                       add_role_after_system_message=has_role)

    def _gaps(self, num_users: int) -> list[str]:
        """The texts around the marks of a dialog of ``num_users`` questions that asks for an answer."""
        return self._between(_dialog(num_users), True)

    def _end(self, num_messages: int) -> str:
        """What stands after the last of ``num_messages`` messages when no answer is asked for."""
        return self._between(_dialog(2)[:num_messages], False)[-1]

    def _between(self, messages: Sequence[Message], asks: bool) -> list[str]:
        text = self._render(messages, asks)
        gaps = []
        for message in messages:
            mark = message["content"]
            if text.count(mark) != 1:
                raise _Untranslatable(f"it does not write every {message['role']} message once, in order")
            gap, text = text.split(mark)
            gaps.append(gap)
        return [*gaps, text]

    def _render(self, messages: Sequence[Message], asks: bool) -> str:
        try:
            return self._template.render(messages, add_generation_prompt=asks)
        except Error as reason:
            raise _Untranslatable(f"it refuses plain dialogs: {reason.what}") from reason

    def _bos(self) -> tuple[str, tuple[int, ...]]:
        """The BOS that a prompt begins with, as text and ids: what the tokenizer's post-processor adds, else
        a bos_token that the template writes once, at the very beginning (some write it before every message,
        where it is no BOS but a mark like others)."""
        if self._tokenizer is None:
            return "", ()
        prefix = self._tokenizer.prefix_ids
        if prefix:
            return "".join(self._tokenizer.id_to_token(token_id) or "" for token_id in prefix), prefix
        token = str(self._template.variables.get("bos_token", ""))
        text = self._render(_dialog(2), True)
        token_id = self._tokenizer.token_to_id(token)
        if token and token_id is not None and text.startswith(token) and text.count(token) == 1:
            return token, (token_id,)
        return "", ()

    def _strips_reasoning(self) -> bool:
        first, answer, second = _dialog(2)
        thoughtful: Message = {"role": "assistant",
                               "content": f"<think>\nQthinkq\n</think>\n\n{answer['content']}"}
        try:
            text = self._render([first, thoughtful, second], True)
        except _Untranslatable:
            return False
        return "Qthinkq" not in text and answer["content"] in text


def compare(template: ChatTemplate, translated: ConvTemplate, tokenizer: Tokenizer | None) -> list[str]:
    """How MLC's prompts differ from the model's own on test dialogs: one line per reader and for refusals."""
    dialogs: dict[str, list[str]] = {}
    first: dict[str, str] = {}
    for name, messages in _TEST_DIALOGS.items():
        try:
            expected = template.encode(messages, tokenizer) if tokenizer else template.render(messages)
        except Error as reason:
            problem = "MLC's conv_template gives a prompt where the model's own template refuses"
            dialogs.setdefault(problem, []).append(name)
            first.setdefault(problem, reason.what)
            continue
        for reader, prompt in _prompts(translated, messages, tokenizer).items():
            if prompt != expected:
                problem = f"{reader} differs from the model's own"
                dialogs.setdefault(problem, []).append(name)
                first.setdefault(problem, _difference(prompt, expected, tokenizer))
    return [
        f"{problem}, in dialogs of {'; '.join(map(repr, names))}. In the first: {first[problem]}."
        for problem, names in dialogs.items()
    ]


def _prompts(translated: ConvTemplate, messages: Sequence[Message],
             tokenizer: Tokenizer | None) -> dict[str, str | list[int]]:
    """The prompt of each reader; one entry where they agree."""
    if tokenizer is None:
        return {"MLC's prompt": translated.render(messages)}
    prefix = list(translated.prefix_token_ids)
    mlc = prefix + tokenizer.encode(translated.render(messages, rule="mlc"), add_special_tokens=False)
    webllm = list(prefix)
    for piece in translated.pieces(messages, rule="webllm"):
        webllm += tokenizer.encode(piece, add_special_tokens=False)
    if mlc == webllm:
        return {"MLC's prompt": mlc}
    return {"MLC-LLM's prompt": mlc, "WebLLM's prompt": webllm}


def _difference(found: Sequence[object], expected: Sequence[object], tokenizer: Tokenizer | None) -> str:
    """The stretch in which two prompts differ, in tokens or characters."""
    start = _num_equal(found, expected)
    rest = min(len(found), len(expected)) - start
    end = min(rest, _num_equal(found[::-1], expected[::-1]))
    sides = [_shown(side[start:len(side) - end], tokenizer) for side in (found, expected)]
    return f"at {'token' if tokenizer else 'character'} {start} {sides[0]} instead of {sides[1]}"


def _shown(side: Sequence[object], tokenizer: Tokenizer | None) -> str:
    if not side:
        return "nothing"
    token_ids = [item for item in side if isinstance(item, int)]
    text = tokenizer.decode(token_ids, skip_special_tokens=False) if tokenizer else "".join(map(str, side))
    if tokenizer and not text.strip():  # decoding hides some spaces
        text = " ".join(tokenizer.id_to_token(token_id) or "?" for token_id in token_ids)
    return repr(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…")


def _num_equal(a: Sequence[object], b: Sequence[object]) -> int:
    """How many elements at the beginning are the same."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def _common_start(*texts: str) -> str:
    shortest = min(texts, key=len)
    return shortest[:min(_num_equal(shortest, text) for text in texts)]


def _common_end(a: str, b: str) -> str:
    return a[len(a) - _num_equal(a[::-1], b[::-1]):]


def _role_separator(user: str, answer: str, asking: str) -> str:
    """What stands between a role and its message: the longest common end that cuts no special token in
    two."""
    common = _common_end(user, answer)
    inside = {i for match in _SPECIAL.finditer(user) for i in range(match.start() + 1, match.end())}
    for length in range(len(common), -1, -1):
        if len(user) - length not in inside and asking.startswith(answer[:len(answer) - length]):
            return common[len(common) - length:]
    raise _Untranslatable("what asks for an answer is not what an answer begins with")


def _dialog(num_users: int) -> list[Message]:
    """A marked dialog that ends with a user's message."""
    messages: list[Message] = []
    for number in range(1, num_users + 1):
        messages.append({"role": "user", "content": _USER.format(number)})
        if number < num_users:
            messages.append({"role": "assistant", "content": _ANSWER.format(number)})
    return messages
