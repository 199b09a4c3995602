"""JSON files that others wrote, read with our own errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import Error


def read_json_object(path: Path, error: type[Error]) -> dict[str, Any]:
    """The JSON object in ``path``. Raises ``error`` if it cannot be read, is not JSON or not an object."""
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as reason:
        raise error(f"cannot read the file ({reason.strerror})", where=path) from reason
    except (ValueError, RecursionError) as reason:
        raise error(f"not JSON ({reason})", where=path, hint="Fetch the file again.") from reason
    if not isinstance(value, dict):
        raise error("not a JSON object", where=path, found=type(value).__name__, hint="Fetch the file again.")
    return value


def read_optional_json_object(path: Path, error: type[Error]) -> dict[str, Any]:
    """The JSON object in ``path``, {} if there is no such file. Raises ``error`` like
    ``read_json_object``."""
    return read_json_object(path, error) if path.is_file() else {}
