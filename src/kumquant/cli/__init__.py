"""The command line: one file per subcommand, each of which parses, calls one function, and prints."""

from .main import entry_point, main

__all__ = ["entry_point", "main"]
