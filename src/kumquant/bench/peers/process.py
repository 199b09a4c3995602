"""Another program, run on some processors only and watched for its peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import Error

_MAX_TOLD = 600  # characters of a failed program's stderr


class PeerError(Error):
    """A peer that does not run, or answers something that is not understood."""


@dataclass(frozen=True)
class Finished:
    """seconds: from start to end of the process. peak_rss_bytes: the most memory it had resident."""

    stdout: str
    stderr: str
    seconds: float
    peak_rss_bytes: int

    def json_array(self) -> list[dict[str, Any]]:
        """The JSON array at the end of the output, after any remarks. Raises PeerError where there is none."""
        begin = ("\n" + self.stdout).rfind("\n[")
        try:
            return list(json.loads(self.stdout[begin:]))
        except ValueError:
            raise PeerError("answers no JSON", found=self.stdout[:_MAX_TOLD] or "nothing") from None

    def json_object(self) -> dict[str, Any]:
        """The last line, a JSON object. Raises PeerError where it is none."""
        lines = self.stdout.splitlines()
        try:
            return dict(json.loads(lines[-1]))
        except (IndexError, ValueError):
            raise PeerError("answers no JSON", found=self.stdout[:_MAX_TOLD] or "nothing") from None


def run_pinned(command: Sequence[str], processors: Sequence[int] | None = None, cwd: str | None = None) -> Finished:
    """Run a program to its end, on these processors (default: any). Raises PeerError when it fails."""
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started_at = time.perf_counter()
        try:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, cwd=cwd,
                                       preexec_fn=_pinning(processors))
        except OSError as reason:
            raise PeerError(f"cannot run: {reason.strerror or reason}", where=command[0]) from reason
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # interrupted: nothing is left running
            process.kill()
            process.wait()
            raise
        seconds = time.perf_counter() - started_at
        process.returncode = os.waitstatus_to_exitcode(status)
        stdout.seek(0)
        stderr.seek(0)
        said, told = (file.read().decode(errors="replace") for file in (stdout, stderr))
        if process.returncode != 0:
            raise PeerError(f"ended with {process.returncode}", where=" ".join(command[:3]),
                            hint=told.strip()[-_MAX_TOLD:] or None)
        peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
        return Finished(said, told, seconds, peak)


def _pinning(processors: Sequence[int] | None) -> Callable[[], None] | None:
    if processors is None or not hasattr(os, "sched_setaffinity"):
        return None
    return lambda: os.sched_setaffinity(0, processors)
