"""The machine's own account of itself."""

from __future__ import annotations

import os
import platform
import resource
import sys
from pathlib import Path

# Of the many flags a processor has, those that a kernel of ours, or a reader's expectation, depends on.
FEATURES = (
    "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_int8", "asimd", "asimddp", "i8mm", "sve",
)


def cpu_name() -> str:
    """The processor's name, as it calls itself."""
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "unknown"


def cpu_features() -> tuple[str, ...]:
    """Those of ``FEATURES`` that the processor has (Linux only; elsewhere none are known)."""
    flags = set((_cpuinfo("flags") or _cpuinfo("Features")).split())
    return tuple(feature for feature in FEATURES if feature in flags)


def memory_bytes() -> tuple[int, int]:
    """Physical memory, and what of it is available to programs now."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for line in _read_lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return total, int(line.split()[1]) * 1024
    return total, total


def peak_rss_bytes() -> int:
    """The most memory this process has had resident so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # bytes there, KiB elsewhere


def _cpuinfo(key: str) -> str:
    for line in _read_lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return ""


def _read_lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []
