"""From a checkpoint to a tensor cache: ``convert`` and what it reports."""

from .conversion import ConvertReport, convert

__all__ = ["ConvertReport", "convert"]
