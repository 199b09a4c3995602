"""How large the KV cache may become."""

from __future__ import annotations

import os
from typing import Literal

from ..runtime import KvDtype, Model

Activations = Literal["int8", "float32"]

MAX_CONTEXTS = 8  # full contexts the cache holds at most; more sequences share it as long as they are shorter
MAX_MEMORY_SHARE = 0.5  # of the machine's memory


def kv_pages(model: Model, activations: Activations, context_length: int, kv_dtype: KvDtype = "auto") -> int:
    """Pages of a KV cache for ``model``: for several full contexts, within a share of the machine's memory.

    Memory is only reserved: a page costs nothing before its first token. Where not even one context fits, the
    cache's size is the context's end.
    """
    page_bytes = model.new_pool(1, activations, kv_dtype).page_bytes
    affordable = int(MAX_MEMORY_SHARE * total_memory()) // page_bytes
    return max(min(MAX_CONTEXTS * model.pages_for(context_length), affordable), 1)


def total_memory() -> int:
    """Bytes of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
