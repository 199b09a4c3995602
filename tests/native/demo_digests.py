"""The demo model converted, and run by every instruction set: digests that must be the same on every machine.

Prints a line for each converted file, and for the logits and a sampled text of each mode. Fails where two instruction
sets differ. scripts/test-arm64 compares the lines of x86-64 with those of 64-bit ARM.

    python tests/native/demo_digests.py
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path

import kumquant
from kumquant import LLM, SamplingParams, _native

SOURCE = Path(kumquant.__file__).parent / "demo_model"
MODES = ["q4f16_1", "q3f16_1", "q4f32_1"]
PARAMS = SamplingParams(max_tokens=24, temperature=0.9, top_p=0.95, seed=7, logprobs=3)
PROMPT = "Tell me a short story about a dog."


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def results(mode: str, folder: Path) -> list[str]:
    """Lines of one mode on the instruction set that KUMQUANT_ISA names."""
    kumquant.convert(SOURCE, folder, quantization=mode)
    shards = sorted(folder.glob("params_shard_*.bin"))
    lines = [f"{mode} {shard.name} {digest(shard.read_bytes())}" for shard in shards]
    for activations in ("int8", "float32"):
        with LLM(folder, activations=activations) as llm:
            logits = llm.logits(list(range(2, 42)), activations)
            generation = llm.generate([PROMPT], PARAMS)[0]
        lines.append(f"{mode} {activations} logits {digest(logits.tobytes())}")
        lines.append(f"{mode} {activations} text {generation.text!r}")
        lines.append(f"{mode} {activations} logprobs {digest(repr(generation.logprobs).encode())}")
    return lines


def main() -> int:
    isas = _native.isa_list()
    print(f"{platform.machine()}: {' '.join(isas)}", file=sys.stderr)
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        for mode in MODES:
            first: list[str] = []
            for isa in isas:
                os.environ["KUMQUANT_ISA"] = isa
                lines = results(mode, Path(folder) / isa / mode)
                if not first:
                    first = lines
                elif lines != first:
                    status = 1
                    print(f"{isa} differs from {isas[0]}", *lines, sep="\n  ", file=sys.stderr)
            print(*first, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
