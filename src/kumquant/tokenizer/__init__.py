"""Text to token ids and back, with the model's own tokenizer.json; streaming decode."""

from .from_gguf import tokenizer_files_from_gguf
from .stream import StreamDecoder
from .tokenizer import TOKENIZER_FILES, Tokenizer, has_tokenizer

__all__ = ["TOKENIZER_FILES", "StreamDecoder", "Tokenizer", "has_tokenizer", "tokenizer_files_from_gguf"]
