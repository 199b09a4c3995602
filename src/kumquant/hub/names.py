"""Names of models on the hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PART = r"[A-Za-z0-9][\w.-]*"
_NAME = re.compile(rf"(?P<repository>{_PART}/{_PART})(?:@(?P<revision>[\w./-]+))?", re.ASCII)


@dataclass(frozen=True)
class HubName:
    """repository: "org/model". revision: a branch, tag or commit; None for the main branch."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"


def parse_name(text: str) -> HubName | None:
    """``text`` as a name on the hub, None if it cannot be one."""
    match = _NAME.fullmatch(text)
    return HubName(match["repository"], match["revision"]) if match else None
