"""Text to token ids and back, with the model's own tokenizer.json; streaming decode."""

from .from_gguf import tokenizer_files_from_gguf
from .gguf_pre_tokenizers import gguf_pre_tokenizer_name
from .stream import StreamDecoder
from .tokenizer import TOKENIZER_FILES, TOKENIZER_NAME, Tokenizer, has_tokenizer

__all__ = [
    "TOKENIZER_FILES",
    "TOKENIZER_NAME",
    "StreamDecoder",
    "Tokenizer",
    "gguf_pre_tokenizer_name",
    "has_tokenizer",
    "tokenizer_files_from_gguf",
]
