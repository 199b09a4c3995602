"""How decode, prefill and memory grow with context, batch, vocabulary, model size; and other instruction sets.

    python benchmarks/scaling.py [--parts context,batch,vocabulary,size,isa] [--out FILE.json] [--again]

Run it with a Python that has Kumquant, on an otherwise idle machine. Models are random
q4f16_1 caches, made in WORK where they are missing (5 GB for all of them). Every point is measured in a process of its
own, several rounds of each figure; the file has them all and is written after every point. A second run goes on where
the first stopped (--again measures everything anew). scaling_plots.py draws the file.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from machine_facts import git_commit, machine
from make_models import SHAPES, Shape

from kumquant import TensorCache, _native
from kumquant.models import family_of, records_of
from kumquant.runtime import Model, SamplerConfig, Sequence, StepInput
from kumquant.schemes import SCHEMES
from kumquant.tensor_cache import write_cache

HERE = Path(__file__).parent
QUANTIZATION = "q4f16_1"
MAX_CONTEXT = 36_864  # the longest measured, and room to go on from there
S = replace(SHAPES["S"], context_length=MAX_CONTEXT)
L = replace(SHAPES["L"], context_length=MAX_CONTEXT)

# The shapes of published models, by their own names; weights are random.
SIZES = {
    "S (101M)": S,
    "SmolLM2-135M": Shape(576, 30, 9, 3, 1536, 49152, tied=True, rope_theta=1e5, context_length=8192),
    "SmolLM2-360M": Shape(960, 32, 15, 5, 2560, 49152, tied=True, rope_theta=1e5, context_length=8192),
    "Qwen2.5-0.5B": Shape(896, 24, 14, 2, 4864, 151936, tied=True, rope_theta=1e6, context_length=8192),
    "L (1.2B)": L,
    "SmolLM2-1.7B": Shape(2048, 24, 32, 32, 8192, 49152, tied=True, rope_theta=1e5, context_length=8192),
    "Llama-3.2-3B": Shape(3072, 28, 24, 8, 8192, 128256, tied=True, rope_theta=5e5, context_length=8192),
}
CONTEXTS = {"S": (0, 512, 1024, 2048, 4096, 8192, 16_384, 32_768), "L": (0, 512, 1024, 2048, 4096, 8192)}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
VOCABULARIES = (8_192, 16_384, 32_768, 65_536, 131_072, 262_144)
ISAS = ("avx512vnni", "avx2", "portable")
PROMPT, DECODED, CHUNK = 16, 32, 512
ROUNDS = 3
PARTS = ("context", "batch", "vocabulary", "size", "isa")


@dataclass(frozen=True)
class Point:
    """One process: ``what`` is measured on a model. isa: forced by KUMQUANT_ISA; "" the machine's best."""

    part: str
    label: str
    shape: Shape
    what: Literal["contexts", "batches", "basics"]
    isa: str = ""

    @property
    def key(self) -> str:
        return f"{self.part}/{self.label}"


def points() -> list[Point]:
    return [
        *(Point("context", name, shape, "contexts") for name, shape in (("S", S), ("L", L))),
        *(Point("batch", name, shape, "batches") for name, shape in (("S", S), ("L", L))),
        *(Point("vocabulary", f"{size}", replace(S, vocab_size=size), "basics") for size in VOCABULARIES),
        *(Point("size", name, shape, "basics") for name, shape in SIZES.items()),
        *(Point("isa", isa, S, "basics", isa) for isa in ISAS),
    ]


class Bench:
    """One loaded model, and a KV cache of ``num_tokens``."""

    def __init__(self, folder: Path, threads: int, num_tokens: int) -> None:
        self.model = Model(TensorCache.open(folder), threads=threads)
        self.pool = self.model.new_pool(self.model.pages_for(num_tokens) + 2 * max(BATCHES))

    def sequence(self) -> Sequence:
        return self.model.new_sequence(self.pool, SamplerConfig(temperature=0.0))

    def feed(self, sequence: Sequence, count: int) -> float:
        """Seconds of ``count`` more prompt tokens, the last one's token drawn."""
        self._make_room(sequence, count)
        ids = [(index * 7919 + 17) % self.model.vocab_size for index in range(count)]
        began = time.perf_counter()
        for at in range(0, count, CHUNK):
            output: Literal["sample", "none"] = "sample" if at + CHUNK >= count else "none"
            self.model.step(self.pool, [StepInput(sequence, ids[at:at + CHUNK], output)])
        return time.perf_counter() - began

    def decode(self, sequences: list[Sequence], steps: int) -> float:
        """Seconds of ``steps`` steps of all sequences together."""
        for sequence in sequences:
            self._make_room(sequence, steps)
        tokens = [17] * len(sequences)
        began = time.perf_counter()
        for _ in range(steps):
            inputs = [StepInput(sequence, [token], "sample") for sequence, token in zip(sequences, tokens)]
            tokens = [output.token_id for output in self.model.step(self.pool, inputs)]
        return time.perf_counter() - began

    def _make_room(self, sequence: Sequence, count: int) -> None:
        missing = self.model.pages_for(sequence.length + count) - sequence.num_pages
        sequence.add_pages(self.pool.allocate(max(missing, 0)))


def rates(sequences: list[Sequence], tokens: int, work: Callable[[], float]) -> list[float]:
    """Tokens per second of each round; the sequences are put back after each."""
    lengths = [sequence.length for sequence in sequences]
    found = []
    for _ in range(ROUNDS):
        found.append(tokens / work())
        for sequence, length in zip(sequences, lengths):
            sequence.rewind(length)
    return found


def measure_contexts(folder: Path, threads: int, contexts: tuple[int, ...]) -> Iterator[dict[str, Any]]:
    bench = Bench(folder, threads, contexts[-1] + CHUNK)
    sequence = bench.sequence()
    bench.decode([sequence], DECODED)  # warms up
    sequence.rewind(0)
    for context in contexts:
        if context > sequence.length:
            bench.feed(sequence, context - sequence.length)
        yield {
            "context": context,
            "decode": rates([sequence], DECODED, lambda: bench.decode([sequence], DECODED)),
            "prefill": rates([sequence], CHUNK, lambda: bench.feed(sequence, CHUNK)),
            "rss_bytes": resident_bytes(),
        }


def measure_batches(folder: Path, threads: int) -> Iterator[dict[str, Any]]:
    bench = Bench(folder, threads, max(BATCHES) * (PROMPT + DECODED))
    sequences: list[Sequence] = []
    for batch in BATCHES:
        while len(sequences) < batch:
            sequences.append(bench.sequence())
            bench.feed(sequences[-1], PROMPT)
        bench.decode(sequences, 2)
        yield {
            "batch": batch,
            "decode": rates(sequences, batch * DECODED // 2, lambda: bench.decode(sequences, DECODED // 2)),
            "rss_bytes": resident_bytes(),
        }


def measure_basics(folder: Path, threads: int, shape: Shape) -> Iterator[dict[str, Any]]:
    bench = Bench(folder, threads, 2 * CHUNK + 8 * (PROMPT + DECODED))
    sequence = bench.sequence()
    bench.decode([sequence], 4)
    sequence.rewind(0)
    row: dict[str, Any] = {
        "weights_bytes": weights_bytes(folder),
        "read_bytes_per_token": bench.model.native.panel_bytes,
        "decode": rates([sequence], DECODED, lambda: bench.decode([sequence], DECODED)),
        "prefill": rates([sequence], CHUNK, lambda: bench.feed(sequence, CHUNK)),
        "rss_bytes": resident_bytes(),
    }
    bench.feed(sequence, CHUNK)
    row["decode_512"] = rates([sequence], DECODED, lambda: bench.decode([sequence], DECODED))
    sequence.close()
    several = [bench.sequence() for _ in range(8)]
    for one in several:
        bench.feed(one, PROMPT)
    row["decode_batch_8"] = rates(several, 8 * DECODED, lambda: bench.decode(several, DECODED))
    yield row | {"vocab_size": shape.vocab_size, "isa_used": bench.model.isa}


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def weights_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("params_shard_*.bin"))


def make_cache(folder: Path, shape: Shape) -> None:
    """A cache of random codes; config.json comes last, so a folder that has one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama", "hidden_size": shape.hidden_size, "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers, "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads, "head_dim": shape.head_dim, "vocab_size": shape.vocab_size,
        "tie_word_embeddings": shape.tied, "rope_theta": shape.rope_theta, "rms_norm_eps": 1e-5,
        "max_position_embeddings": shape.context_length, "hidden_act": "silu",
    }
    family, rng = family_of(config), np.random.default_rng(0)
    arrays = {}
    for tensor in family.plan(family.config(config)):
        for name, size, dtype in records_of(tensor, SCHEMES[QUANTIZATION]):
            if dtype == "uint32":
                arrays[name] = rng.integers(0, 2**32, size, np.uint32)
            else:  # norms are one; 0.005 is the step of weights with deviation 0.02
                arrays[name] = np.full(size, 0.005 if name.endswith(".q_scale") else 1.0, dtype)
    write_cache(folder, arrays)
    (folder / "mlc-chat-config.json").write_text(json.dumps({"quantization": QUANTIZATION}))
    (folder / "config.json").write_text(json.dumps(config, indent=1))


def folder_of(work: Path, shape: Shape) -> Path:
    return work / f"{shape.hidden_size}x{shape.num_layers}-{shape.num_kv_heads}-{shape.vocab_size}"


def run_point(point: Point, folder: Path, threads: int) -> list[dict[str, Any]]:
    """In the process of the point: all its rows."""
    if point.what == "contexts":
        return list(measure_contexts(folder, threads, CONTEXTS[point.label]))
    if point.what == "batches":
        return list(measure_batches(folder, threads))
    return list(measure_basics(folder, threads, point.shape))


def measure(point: Point, work: Path, threads: int) -> list[dict[str, Any]]:
    folder = folder_of(work, point.shape)
    if not (folder / "config.json").exists():
        make_cache(folder, point.shape)
    command = [sys.executable, __file__, "--work", str(work), "--threads", str(threads), "--point", point.key]
    environment = os.environ | ({"KUMQUANT_ISA": point.isa} if point.isa else {})
    finished = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout)


def parse_arguments() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS)
    parser.add_argument("--only", help="only points whose key contains this, such as size/L")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "kumquant-scaling")
    today = datetime.date.today().isoformat()
    parser.add_argument("--out", type=Path, default=HERE / "results" / f"scaling-{today}.json")
    parser.add_argument("--again", action="store_true", help="measure what the file has already, too")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse_arguments()
    if options.point:
        point = next(one for one in points() if one.key == options.point)
        print(json.dumps(run_point(point, folder_of(options.work, point.shape), options.threads)))
        return
    found: dict[str, Any] = {"points": {}}
    if options.out.exists():
        found = json.loads(options.out.read_text())
    wanted = [one for one in points() if one.part in options.parts and (options.only or "") in one.key
              and (not one.isa or one.isa in _native.isa_list())]
    for point in wanted:
        if point.key in found["points"] and not options.again:
            continue
        began = time.perf_counter()
        rows = measure(point, options.work, options.threads)
        found |= {"machine": machine(), "quantization": QUANTIZATION}
        found["points"][point.key] = {
            "date": datetime.date.today().isoformat(), "commit": git_commit(), "threads": options.threads, "rows": rows}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
        print(f"{point.key}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
