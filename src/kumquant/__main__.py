"""``python -m kumquant``: the same program as ``kumquant``."""

from .cli import entry_point

entry_point()
