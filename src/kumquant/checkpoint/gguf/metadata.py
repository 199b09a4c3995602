"""A GGUF file's metadata, asked for key by key with the type that is expected."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import CheckpointError, UnsupportedError

ARCHITECTURE_KEY = "general.architecture"


class Metadata:
    """values: as the header has them. where: the file, for errors. Keys are given without the architecture's prefix."""

    def __init__(self, values: Mapping[str, Any], where: Path) -> None:
        self.values, self.where = values, where
        architecture = values.get(ARCHITECTURE_KEY)
        if not isinstance(architecture, str):
            raise CheckpointError(f'the key "{ARCHITECTURE_KEY}" is missing or no string', where=where,
                                  hint="Is this the GGUF file of a language model?")
        self.architecture = architecture

    def has(self, key: str) -> bool:
        return self._full(key) in self.values

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer; one that is given per layer must be the same for all."""
        value = self._get(key, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if isinstance(value, list):
            raise UnsupportedError(f'"{self._full(key)}" differs from layer to layer', where=self.where,
                                   found=str(value)[:80])
        if type(value) is not int or not 0 < value < 2**31:
            raise self._wrong(key, value, "a positive integer")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number, as the shortest decimal that float32 holds it by."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not 0 < value < 3e38:
            raise self._wrong(key, value, "a positive number")
        return shortest(value)

    def pattern(self, key: str, period: int, length: int) -> list[bool]:
        """One answer for each of ``length`` layers: yes for all but every n-th, or a list. period: n by default."""
        value = self._get(key, period)
        if type(value) is int and 0 <= value < 2**31:
            return [value == 0 or layer % value < value - 1 for layer in range(length)]
        if not isinstance(value, list) or len(value) < length or not set(map(type, value)) <= {bool, int}:
            raise self._wrong(key, value, f"a count or {length} answers")
        return [bool(answer) for answer in value[:length]]

    def text(self, key: str) -> str:
        value = self._get(key, None)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(self._full(key), default)
        if value is None:
            raise CheckpointError(f'the key "{self._full(key)}" is missing', where=self.where,
                                  hint="The file does not say all that the model needs.")
        return value

    def _wrong(self, key: str, value: object, expected: str) -> CheckpointError:
        return CheckpointError(f'the key "{self._full(key)}" has a value that makes no sense', where=self.where,
                               found=repr(value)[:80], expected=expected)

    def _full(self, key: str) -> str:
        return f"{self.architecture}.{key}"


def shortest(value: float) -> float:
    """float32 1e-5, which is 9.999999747378752e-06, as 1e-05."""
    return float(str(np.float32(value)))
