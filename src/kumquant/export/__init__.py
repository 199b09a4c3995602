"""export: a tensor cache goes out, as a GGUF file for llama.cpp or as a Hugging Face checkpoint."""

from .exporting import FORMATS, ExportReport, export

__all__ = ["FORMATS", "ExportReport", "export"]
