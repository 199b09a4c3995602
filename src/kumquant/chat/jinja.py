"""Jinja templates from model makers, run in a sandbox with the helpers that Transformers gives them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from ..errors import RequestError, UnsupportedError
from .sandbox import LimitedEnvironment, LimitError, counted, limited, to_json_limits


class _RaisedByTemplate(jinja2.TemplateError):
    """What ``raise_exception`` in a template raises: the maker's own words to the caller."""


class _GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's words for training; here it is its
    content."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class JinjaTemplate:
    """One compiled template. text: its source. where: the file it came from, for errors."""

    def __init__(self, text: str, where: object) -> None:
        """Raises UnsupportedError if the template does not compile."""
        self.text, self.where = text, where
        try:
            self._template = _environment().from_string(text)
        except (jinja2.TemplateError, RecursionError) as reason:
            line = getattr(reason, "lineno", None)
            raise UnsupportedError(
                f"the chat template does not compile ({reason})",
                where=where if line is None else f"{where}:{line}",
                hint="Fetch the file again, or pass the prompt without a template (--raw).",
            ) from reason

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text for ``variables``.

        Raises RequestError with the template's own message where it refuses the messages, UnsupportedError
        where it fails or takes more time or memory than any chat needs.
        """
        try:
            with limited():
                return self._template.render(**variables)
        except _RaisedByTemplate as reason:
            raise RequestError(f"the model's chat template refuses these messages: {reason}",
                               where="messages") from reason
        except LimitError as reason:
            raise UnsupportedError(
                f"the chat template exceeds the limits of templates ({reason})", where=self.where,
                hint="Pass the prompt without a template (--raw), or correct the template.",
            ) from reason
        except (RequestError, MemoryError):
            raise
        except Exception as reason:  # templates are foreign code: they fail in any way
            raise UnsupportedError(
                f"the chat template failed ({type(reason).__name__}: {reason})", where=self.where,
                hint="Pass the prompt without a template (--raw), or correct the template.",
            ) from reason


@lru_cache(maxsize=1)
def _environment() -> LimitedEnvironment:
    environment = LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols],
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None,
             separators: tuple[str, str] | None = None, sort_keys: bool = False) -> str:
    """Jinja's own filter escapes for HTML; chat templates mean plain JSON."""
    to_json_limits(value, indent)
    return str(counted(json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                                  sort_keys=sort_keys)))


def _raise(message: str) -> NoReturn:
    raise _RaisedByTemplate(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)
