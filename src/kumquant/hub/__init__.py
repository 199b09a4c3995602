"""The Hugging Face hub: ``org/model[@revision]`` wherever a folder is meant, downloaded once and checked."""

from .resolve import download, local_folder, outline

__all__ = ["download", "local_folder", "outline"]
