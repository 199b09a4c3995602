"""What measured numbers depend on: the machine, and the commit under test."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def machine() -> dict[str, Any]:
    """A virtual CPU's name often says little, so its family and model too."""
    cpuinfo = Path("/proc/cpuinfo").read_text()

    def field(key: str) -> str:
        match = re.search(rf"^{key}\s*: (.*)$", cpuinfo, re.MULTILINE)
        return match.group(1) if match else "unknown"

    return {
        "cpu": field("model name"),
        "cpu_family": field("cpu family"),
        "cpu_model": field("model"),
        "cache": field("cache size"),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_average": os.getloadavg(),
    }


def git_commit() -> str:
    """The commit under test, marked where tracked files differ from it."""
    return output_of("git", "describe", "--always", "--dirty")


def output_of(*command: str, cwd: Path = HERE) -> str:
    """What a command prints; "unknown" where it fails or prints nothing."""
    found = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 and found.stdout.strip() else "unknown"
