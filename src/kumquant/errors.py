"""Every error a user can meet, as one tree.

    Error
    ├─ TensorCacheError    a manifest, shard or record is missing, damaged or contradicts itself
    ├─ CheckpointError     a source checkpoint is missing, damaged or contradicts its config
    ├─ UnsupportedError    well formed, but not something Kumquant can do (family, mode, rope type, …)
    ├─ RequestError        the caller asked for something impossible (HTTP 400, exit code 2 on the command line)
    └─ CapacityError       a limit was reached: pages, queue, disk (HTTP 429 or 507)

A message says where, what was found, what was expected, and what to do next. ``assert`` is for our own bugs.
Foreign errors (OSError, json, safetensors, jinja2, …) are translated where they enter.
"""

from __future__ import annotations


class Error(Exception):
    """Base of all errors raised for reasons a user can act on.

    where: the file, tensor, option or key concerned. what: what is wrong. found, expected: the two sides of the
    contradiction, where there is one. hint: what to do next.
    """

    exit_code = 1
    http_status = 500

    def __init__(self, what: str, *, where: object = None, found: object = None, expected: object = None,
                 hint: str | None = None) -> None:
        self.what, self.where, self.found, self.expected, self.hint = what, where, found, expected, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        head = self.what if self.where is None else f"{self.where}: {self.what}"
        if self.found is not None:
            head += f"; found {self.found}"
        if self.expected is not None:
            head += f"; expected {self.expected}"
        return head if self.hint is None else f"{head}\n{self.hint}"


class TensorCacheError(Error):
    """A tensor cache that is missing, damaged or contradicts itself."""


class CheckpointError(Error):
    """A source checkpoint that is missing, damaged or contradicts its config."""


class UnsupportedError(Error):
    """Well-formed input that asks for something Kumquant does not do."""

    http_status = 400


class RequestError(Error):
    """The caller's own mistake: an option, a prompt, a parameter."""

    exit_code = 2
    http_status = 400


class CapacityError(Error):
    """A limit was reached: KV pages, queue length, disk space."""

    http_status = 429
