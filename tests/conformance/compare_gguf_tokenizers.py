"""Our tokenizers rebuilt from llama.cpp's vocabulary files against llama.cpp itself, token for token.

Not part of the test run: needs llama-cpp-python and llama.cpp's source tree (TREE/models/ggml-vocab-*.gguf). Prints
a line for each file, with the first text on which the two differ. Run:
    python tests/conformance/compare_gguf_tokenizers.py --llama-cpp TREE [NAME ...]
"""

from __future__ import annotations

import argparse
import random
import sys
import unicodedata
from pathlib import Path

import llama_cpp
import tokenizers

from kumquant.checkpoint.gguf.header import read_header
from kumquant.errors import Error
from kumquant.tokenizer import tokenizer_files_from_gguf

NUM_STRINGS = 3000
WORDS = [
    "hello", "world", "naïve", "Straße", "мир", "привет", "こんにちは", "世界", "안녕하세요", "مرحبا", "नमस्ते", "ไทย",
    "Ελλάδα",
    "🙂", "👩‍👧", "🇩🇪", "1", "22", "333", "12345", "3.14", "1e-9", "don't", "I'M", "we'll", "'s", "a+b==c", "foo_bar",
    "HTTPServer", "camelCase", "<end>", "<tool>", "</s>", "…", "---", "½", "ﬁ", "é", "e\u0301", '"', "'", "(", ")",
    "{}", "[0]", "//", "/* */", "#!/bin/sh", "$x", "%d", "&amp;", "\\n", "~", "`", "|", "∑", "→",
]
SPACES = (" ", "  ", "\n", "\n\n", "\t", " \n", "\r\n", "    ", "\u00a0", "\u3000", "\u200b", "")
# Blocks of characters that are cut into words in different ways.
RANGES = ((0x20, 0x7F), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x590, 0x6FF), (0x900, 0x97F), (0x3040, 0x30FF),
          (0x4E00, 0x4F00), (0xAC00, 0xAC80), (0x1F300, 0x1F5FF))


def strings() -> list[str]:
    """The same ones on every run: words and spaces in any order, and characters of one block."""
    rng = random.Random(0)
    found = ["", " ", "\n", " hello ", "\t\t", "a" * 200, "0" * 50, "=" * 40, " " * 33, "Hello, world!"]
    while len(found) < NUM_STRINGS:
        if len(found) % 3:
            found.append("".join(rng.choice(WORDS) + rng.choice(SPACES) for _ in range(rng.randint(1, 25))))
            continue
        characters = [chr(number) for number in range(*rng.choice(RANGES))]
        known = [one for one in characters if unicodedata.category(one) not in ("Cn", "Cc", "Cs")]
        found.append("".join(rng.choice(known) for _ in range(rng.randint(1, 40))))
    return found


def compare(path: Path, texts: list[str]) -> str:
    metadata = read_header(path).metadata
    kind = f"{metadata.get('tokenizer.ggml.model')}, {metadata.get('tokenizer.ggml.pre', 'no pre')}"
    try:
        files = tokenizer_files_from_gguf(metadata, str(path))
    except Error as error:
        return f"{kind} | refused: {error.what}"
    ours = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    differing = [text for text in texts
                 if ours.encode(text).ids != theirs.tokenize(text.encode(), add_bos=True, special=True)]
    first = f"; first: {differing[0][:40]!r}" if differing else ""
    return f"{kind} | {len(texts) - len(differing):,} of {len(texts):,}{first}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-cpp", type=Path, required=True, help="the source tree")
    parser.add_argument("names", nargs="*", metavar="NAME", help="vocabularies (default: all)")
    args = parser.parse_args()
    texts = strings()
    print("| vocabulary | kind | the same tokens |")
    for path in sorted((args.llama_cpp / "models").glob("ggml-vocab-*.gguf")):
        name = path.stem.removeprefix("ggml-vocab-")
        if not args.names or name in args.names:
            print(f"| {name} | {compare(path, texts)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
