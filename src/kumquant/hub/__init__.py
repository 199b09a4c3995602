"""The Hugging Face hub: ``org/model[@revision]`` wherever a folder is meant, downloaded once and checked."""

from .choice import MANIFESTS, TWINS
from .resolve import download, local_folder, outline

__all__ = ["MANIFESTS", "TWINS", "download", "local_folder", "outline"]
