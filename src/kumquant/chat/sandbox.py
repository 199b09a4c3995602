"""A Jinja environment in which a template can neither reach out, nor run for ever, nor fill the memory.

Jinja's own sandbox guards what a template may touch. Here every turn of a loop and every call of a macro counts as a
step, and whatever makes a text or a list is asked how long it will be before it is made.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import update_wrapper
from string import Formatter
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter

# Far above what a template needs for the longest chat, and still done in seconds.
MAX_STEPS = 1_000_000
MAX_SECONDS = 10.0  # of the processor
MAX_RANGE = 10_000
MAX_LENGTH = 4 << 20  # characters of one text, or items of one list
MAX_OUTPUT = 16 << 20  # characters of what is rendered; of a macro or a block too
MAX_MADE = 1 << 30  # characters and items of all texts and lists together, also of those that are gone
MAX_WIDTH = 1000  # a padding, an indent
_MAX_BITS = 4096
_CLOCK_STEPS = 16
_LONG = 10_000

_WIDE = re.compile(r"\d{4}|\*")
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})


class LimitError(jinja2.TemplateError):
    """The template asks for more time or memory than any chat needs."""


class _Budget:
    """What one rendering has used."""

    def __init__(self) -> None:
        self.steps, self.made, self.started = 0, 0, time.thread_time()

    def step(self) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise LimitError(f"more than {MAX_STEPS:,} turns of loops")
        if self.steps % _CLOCK_STEPS == 0:
            self.check_clock()

    def check_clock(self) -> None:
        if time.thread_time() - self.started > MAX_SECONDS:
            raise LimitError(f"more than {MAX_SECONDS:g} seconds")

    def add(self, length: int) -> None:
        self.made += length
        if self.made > MAX_MADE:
            raise LimitError(f"more than {MAX_MADE:,} characters in all its texts")
        if length > _LONG:
            self.check_clock()


_budget: ContextVar[_Budget] = ContextVar("budget of a chat template")


@contextmanager
def limited() -> Iterator[None]:
    """Steps inside the block are counted from zero."""
    token = _budget.set(_Budget())
    try:
        yield
    finally:
        _budget.reset(token)


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Raises LimitError from rendering, which must happen inside ``limited``."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, finalize=_printable)
        self.globals["range"] = _short_range
        del self.globals["lipsum"]
        self.filters = {name: _guard(_GUARDS.get(name, _check_nothing))(function)
                        for name, function in self.filters.items()}

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Jinja joins with this whatever is rendered: the whole, a macro, a block."""
        return _join(pieces, MAX_OUTPUT)

    @staticmethod
    def count_step() -> None:
        _budget.get().step()

    @staticmethod
    def join_texts(*parts: Any) -> str:
        """The operator ``~``."""
        return _join((str(_printable(part)) for part in parts), MAX_LENGTH)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        return counted(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            _check_method(owner, name, (*args, *kwargs.values()))
            return counted(super().call(__context, __obj, *args, **kwargs))
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        text: str = value.__self__
        formatter = _NarrowFormatter(self)

        def formatted(*args: Any, **kwargs: Any) -> str:
            _check_fields(text, text.count("{"), (args, kwargs))
            if value.__name__ == "format_map":
                (mapping,) = args
                return counted(formatter.vformat(text, (), mapping))
            return counted(formatter.vformat(text, args, kwargs))

        return update_wrapper(formatted, value)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        for node in list(template.find_all((nodes.For, nodes.Macro, nodes.CallBlock))):
            step = nodes.Call(nodes.EnvironmentAttribute("count_step"), [], [], None, None, lineno=node.lineno)
            node.body.insert(0, nodes.ExprStmt(step, lineno=node.lineno))  # type: ignore[attr-defined]
        _replace_concatenations(template)
        return template


class _NarrowFormatter(SandboxedFormatter):
    """``str.format`` without wide fields; a field inside a width is filled in before it gets here."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        if _WIDE.search(format_spec):
            raise LimitError("a field too wide")
        return Formatter.format_field(self, _printable(value), format_spec)


def _replace_concatenations(node: nodes.Node) -> None:
    """``a ~ b`` becomes a call of ``join_texts``; Jinja's own has no length to watch."""
    for field, value in node.iter_fields():
        if isinstance(value, list):
            setattr(node, field, [_without_concatenation(item) for item in value])
        else:
            setattr(node, field, _without_concatenation(value))


def _without_concatenation(value: Any) -> Any:
    if not isinstance(value, nodes.Node):
        return value
    _replace_concatenations(value)
    if not isinstance(value, nodes.Concat):
        return value
    joined = nodes.EnvironmentAttribute("join_texts", lineno=value.lineno)
    call = nodes.Call(joined, value.nodes, [], None, None, lineno=value.lineno)
    call.environment = value.environment
    return call


def _join(pieces: Iterable[str], limit: int) -> str:
    kept, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > limit:
            raise LimitError(f"a text of more than {limit:,} characters")
        kept.append(piece)
    return counted("".join(kept))


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if operator == "%" and isinstance(left, str):
        if _WIDE.search(left):
            raise LimitError("a field too wide")
        _check_fields(left, left.count("%"), right)
    elif operator == "+":
        if _length(left) + _length(right) > MAX_LENGTH:
            raise LimitError(f"a text or list longer than {MAX_LENGTH:,}")
    elif isinstance(left, int) and isinstance(right, int):
        times = right if operator == "**" else 1
        if operator != "%" and left.bit_length() * max(times, 1) + right.bit_length() > _MAX_BITS:
            raise LimitError("a number too large")
    elif operator == "*":
        for sequence, times in ((left, right), (right, left)):
            if isinstance(times, int) and _length(sequence) * times > MAX_LENGTH:
                raise LimitError(f"a text or list longer than {MAX_LENGTH:,}")


def _check_method(owner: str, name: str, arguments: tuple[Any, ...]) -> None:
    """Refuse a call of a string's method that makes far more out of it."""
    if name in _PADDING:
        _check_widths(arguments)
    elif name == "replace" and len(arguments) >= 2:
        _check_replacement(owner, arguments[0], arguments[1])
    elif name == "join" and arguments:
        _check_joined(owner, arguments[0])
    elif name == "translate" and arguments and isinstance(arguments[0], Mapping):
        longest = max((len(value) for value in arguments[0].values() if isinstance(value, str)), default=1)
        if len(owner) * longest > MAX_LENGTH:
            raise LimitError(f"a text of more than {MAX_LENGTH:,} characters")


def _check_widths(arguments: Iterable[Any]) -> None:
    for width in arguments:
        if (isinstance(width, int) and width > MAX_WIDTH) or (isinstance(width, str) and len(width) > MAX_WIDTH):
            raise LimitError(f"a width above {MAX_WIDTH:,}")


def _check_replacement(text: str, old: Any, new: Any) -> None:
    growth = max(len(str(new)) - len(str(old)), 0)
    if len(text) + text.count(str(old)) * growth > MAX_LENGTH:
        raise LimitError(f"a text of more than {MAX_LENGTH:,} characters")


def _check_joined(separator: str, parts: Any) -> None:
    if not isinstance(parts, (list, tuple, str, dict, set, frozenset)):
        return
    if sum(_length(part) for part in parts) + len(separator) * len(parts) > MAX_LENGTH:
        raise LimitError(f"a text of more than {MAX_LENGTH:,} characters")


def _check_fields(text: str, fields: int, values: Any) -> None:
    if len(text) + fields * _size(values) > MAX_LENGTH:
        raise LimitError(f"a text of more than {MAX_LENGTH:,} characters")


def counted(value: Any) -> Any:
    """``value`` itself, which the budget pays for."""
    budget = _budget.get(None)
    if budget is not None:  # None: Jinja computes constants before anything is rendered
        budget.add(_length(value))
    return value


def _length(value: Any) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple)) else 0


def _printable(value: Any) -> Any:
    """``value`` itself, if it may be turned into text."""
    if not isinstance(value, str):
        _size(value)
    return value


def _size(value: Any) -> int:
    """Characters and values in ``value``, each as often as it is printed: a list may hold another one twice, and so on.

    Raises LimitError as soon as there are too many.
    """
    size, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        size += max(_length(item), 1)
        if size > MAX_LENGTH:
            raise LimitError(f"a value of more than {MAX_LENGTH:,} characters")
        if isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += item
    budget = _budget.get(None)
    if size > _LONG and budget is not None:
        budget.check_clock()
    return size


def _short_range(*bounds: int) -> range:
    numbers = range(*bounds)
    if numbers and (len(numbers) if abs(numbers[-1] - numbers[0]) < 2**62 else MAX_RANGE + 1) > MAX_RANGE:
        raise LimitError(f"a range of more than {MAX_RANGE:,} numbers")
    return numbers


def to_json_limits(value: Any, indent: Any) -> None:
    """Raise LimitError for what ``tojson`` should not write."""
    _check_widths((indent,))
    _printable(value)


def _guard(check: Callable[..., None]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make of a filter one that calls ``check`` with its value and arguments first.

    Jinja marks filters that want the environment or the like as first argument; the mark is copied.
    """
    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        skipped = 1 if hasattr(function, "jinja_pass_arg") else 0

        def guarded(*args: Any, **kwargs: Any) -> Any:
            check(*args[skipped:], **kwargs)
            return counted(function(*args, **kwargs))

        return update_wrapper(guarded, function)

    return wrap


def _check_nothing(*args: Any, **kwargs: Any) -> None:
    """For filters that make little of what they get."""


def _check_arguments(value: Any, *args: Any, **kwargs: Any) -> None:
    _printable(value)
    _check_widths((*args, *kwargs.values()))


def _check_format(value: Any, *args: Any, **kwargs: Any) -> None:
    _check_operands("%", str(_printable(value)), args or kwargs)


def _check_replace(s: Any, old: Any, new: Any, count: Any = None) -> None:
    _check_replacement(str(_printable(s)), old, new)


def _check_join(value: Any, d: Any = "", attribute: Any = None) -> None:
    _check_joined(str(d), _printable(value))


def _check_sum(iterable: Any, attribute: Any = None, start: Any = 0) -> None:
    if not isinstance(start, (int, float)):
        raise LimitError("a sum of something else than numbers")


_GUARDS: dict[str, Callable[..., None]] = {
    **dict.fromkeys(("batch", "center", "indent", "pprint", "slice", "string", "urlize", "wordwrap", "xmlattr"),
                    _check_arguments),
    "format": _check_format, "replace": _check_replace, "join": _check_join, "sum": _check_sum,
}
