"""Reads one JSON object key by key, and refuses by name what is missing or of the wrong kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import CheckpointError

_MAX_COUNT = 2**31 - 1
_MIN_NUMBER, _MAX_NUMBER = 1.2e-38, 3.4e38  # float32 ends here
_HINT = "Compare the file with the model's original config.json."


class Keys:
    """Typed access to ``values``. A key that is null counts as missing, as Transformers has it.

    where: the file (and the object in it) that errors name.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def count(self, key: str, default: int | None = None, *, at_most: int = _MAX_COUNT) -> int:
        """A positive integer up to ``at_most``. Raises CheckpointError; without a default the key is required."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self._missing(key)
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= at_most:
            raise self._wrong(key, "a positive integer" if at_most == _MAX_COUNT else f"1 to {at_most:,}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number that float32 has. Raises CheckpointError; without a default the key is required."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self._missing(key)
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not _MIN_NUMBER <= value <= _MAX_NUMBER:
            raise self._wrong(key, f"a positive number, at most {_MAX_NUMBER:g}")
        return float(value)

    def numbers(self, key: str, length: int) -> list[float]:
        """A required list of ``length`` positive numbers that float32 has. Raises CheckpointError."""
        value = self.values.get(key)
        if value is None:
            raise self._missing(key)
        expected = f"a list of {length} positive numbers"
        if not isinstance(value, list) or len(value) != length:
            raise self._wrong(key, expected)
        for item in value:
            if isinstance(item, bool) or not isinstance(item, (int, float)) or not _MIN_NUMBER <= item <= _MAX_NUMBER:
                raise self._wrong(key, expected)
        return [float(item) for item in value]

    def flag(self, key: str, default: bool) -> bool:
        """true or false. Raises CheckpointError for anything else."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises CheckpointError; without a default the key is required."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self._missing(key)
            return default
        if not isinstance(value, str):
            raise self._wrong(key, "a string")
        return value

    def table(self, key: str) -> dict[str, Any] | None:
        """A nested object, or None. Raises CheckpointError for anything else."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self._wrong(key, "an object")
        return value

    def _missing(self, key: str) -> CheckpointError:
        return CheckpointError(f'the key "{key}" is missing', where=self.where, hint=_HINT)

    def _wrong(self, key: str, expected: str) -> CheckpointError:
        found = repr(self.values[key])
        return CheckpointError(
            f'the key "{key}" has a value that makes no sense', where=self.where,
            found=found if len(found) <= 80 else found[:77] + "...", expected=expected, hint=_HINT,
        )
