"""Kumquant: small language models, quantized, on a plain CPU.

    import kumquant as kq
    kq.convert("path/to/checkpoint", "out", quantization="q4f16_1")
    kq.LLM("out").generate(["Once upon a time"], kq.SamplingParams(max_tokens=64, seed=1))[0].text

The names of ``__all__`` are the public surface. They are imported on first use, so that ``kumquant
--version`` need not wait for NumPy.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .errors import CapacityError, CheckpointError, Error, RequestError, TensorCacheError, UnsupportedError

if TYPE_CHECKING:
    from .chat import Message
    from .convert import convert
    from .engine import LLM, SamplingParams
    from .evaluate import evaluate
    from .models import TensorCache
    from .runtime import pack

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CapacityError",
    "CheckpointError",
    "Error",
    "Message",
    "RequestError",
    "SamplingParams",
    "TensorCache",
    "TensorCacheError",
    "UnsupportedError",
    "__version__",
    "convert",
    "evaluate",
    "pack",
]

_HOMES = {
    "LLM": ".engine",
    "Message": ".chat",
    "SamplingParams": ".engine",
    "TensorCache": ".models",
    "convert": ".convert",
    "evaluate": ".evaluate",
    "pack": ".runtime",
}


class _Package(ModuleType):
    """Keeps ``kumquant.convert`` and ``kumquant.evaluate`` functions although folders have these names too.

    The import system binds a submodule to its parent, whenever that happens; here a public name stays with
    its function.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOMES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
