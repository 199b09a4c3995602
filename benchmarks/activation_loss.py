"""What 8-bit activations cost: KL divergence of their logits from those of float32 activations, ours and the peers'.

    python benchmarks/activation_loss.py --work /tmp/bench [--text eval_b.txt] [--peer-python PYTHON] \\
        [--models S L SmolLM2] [--engines Kumquant llama.cpp …] [--tokens 2048] [--window 512] \\
        --out benchmarks/results/NAME-activation-loss

--work is the folder that `compare_peers.py --prepare` filled: all engines have the very same 4-bit weights. The
reference is Kumquant with float32 activations, keys and values; its logits are Transformers' (tests/conformance).
Kumquant's own rows differ from it in the activations alone ("float32 KV") or run as it comes; the peers' have all
that they round: activations to 8 bits in every matrix product, in OpenVINO other parts to bfloat16 too. SmolLM2
reads the text; S and L have random weights, and read random token ids.

PYTHON has openvino, onnxruntime-genai and, for llama.cpp, llama-cpp-python; what it lacks is left out. Where the
package llama_cpp is only a source folder, name that in PYTHONPATH and its libraries' folder in LLAMA_CPP_LIB_PATH.
Rows replace those of the same model and engine in the result; others stay.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine_facts import git_commit, machine
from make_models import SHAPES

from kumquant.evaluate.measures import Scores
from kumquant.models import TensorCache
from kumquant.runtime import Model
from kumquant.tokenizer import Tokenizer

QUANTIZATION = "q4f16_1"

# Each is given a model, a file of token ids and where to save the logits (tokens, vocabulary) as float32.
LLAMACPP = """
import sys, numpy as np, llama_cpp
model = llama_cpp.Llama(sys.argv[1], n_ctx=2048, n_batch=512, logits_all=True, verbose=False, flash_attn=False)
ids = np.load(sys.argv[2])
model.eval(ids.tolist())
np.save(sys.argv[3], model.scores[: len(ids)])
"""
ONNXRUNTIME = """
import sys, numpy as np, onnxruntime_genai as genai
ids = np.load(sys.argv[2])
parameters = genai.GeneratorParams(model := genai.Model(sys.argv[1]))
parameters.set_search_options(max_length=len(ids) + 1)
generator = genai.Generator(model, parameters)
generator.append_tokens(ids[None].astype(np.int32))
np.save(sys.argv[3], np.array(generator.get_output("logits"))[0])
"""
OPENVINO = """
import sys, numpy as np, openvino
ids = np.load(sys.argv[2])[None].astype(np.int64)
request = openvino.Core().compile_model(sys.argv[1] + "/openvino_model.xml", "CPU").create_infer_request()
inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(ids.shape[1])[None],
          "beam_idx": np.zeros(1, np.int32)}
np.save(sys.argv[3], request.infer(inputs)["logits"][0].astype(np.float32))
"""
PEERS = {"llama.cpp": (LLAMACPP, "model-q4_0.gguf"), "ONNX Runtime": (ONNXRUNTIME, "onnxruntime"),
         "OpenVINO": (OPENVINO, "openvino")}


def windows_of(options: argparse.Namespace, name: str, cache: TensorCache) -> list[np.ndarray]:
    if name in SHAPES:
        ids = np.random.default_rng(0).integers(3, cache.spec.vocab_size, options.tokens)
    else:
        text = options.text.read_text(encoding="utf-8")
        ids = np.array(Tokenizer.open(cache.folder).encode(text, add_special_tokens=False)[: options.tokens])
    return [ids[begin : begin + options.window] for begin in range(0, len(ids) - 1, options.window)]


def peer_logits(python: str, script: str, model: Path, ids: np.ndarray) -> np.ndarray:
    """Raises CalledProcessError where the peer is missing or fails."""
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder) / "ids.npy", Path(folder) / "logits.npy"
        np.save(given, ids)
        subprocess.run([python, "-c", script, str(model), str(given), str(answer)], check=True, capture_output=True)
        return np.load(answer)


def losses(options: argparse.Namespace, name: str) -> Iterator[dict[str, Any]]:
    """A row for each engine."""
    cache = TensorCache.open(options.work / f"{name}-{QUANTIZATION}-8k")
    model = Model(cache)
    windows = windows_of(options, name, cache)
    references = [model.logits(ids.tolist(), "float32", "float32") for ids in windows]
    own = (("Kumquant, float32 KV", "float32"), ("Kumquant", "auto"))
    for engine, kv_dtype in own if "Kumquant" in options.engines else ():
        yield row(name, engine, windows, references, [model.logits(ids.tolist(), "int8", kv_dtype) for ids in windows])
    if not options.peer_python:
        return
    for engine, (script, file) in PEERS.items():
        if engine not in options.engines:
            continue
        path = options.work / "peers" / name / file
        try:
            logits = [peer_logits(options.peer_python, script, path, ids) for ids in windows]
        except subprocess.CalledProcessError as error:
            print(f"{name}: without {engine}: {error.stderr.decode(errors='replace')[-300:]}", file=sys.stderr)
            continue
        yield row(name, engine, windows, references, logits)


def row(name: str, engine: str, windows: list[np.ndarray], references: list[np.ndarray],
        logits: list[np.ndarray]) -> dict[str, Any]:
    scores, distance, size = Scores(), 0.0, 0.0
    for ids, expected, found in zip(windows, references, logits, strict=True):
        scores.add(found[:-1], ids[1:], expected[:-1])
        distance += float(((found - expected).astype(np.float64) ** 2).sum())
        size += float((expected.astype(np.float64) ** 2).sum())
    return {"model": name, "engine": engine, "tokens": scores.count, "mean_kl": scores.kl / scores.count,
            "top1_agreement": scores.agreements / scores.count, "relative_error": (distance / size) ** 0.5}


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| model | engine | mean KL | same top token | relative error of the logits |", "|---|---|---|---|---|"]
    lines += [f"| {one['model']} | {one['engine']} | {one['mean_kl']:.1e} | {one['top1_agreement']:.1%} | "
              f"{one['relative_error']:.2%} |" for one in rows]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=(*SHAPES, "SmolLM2"), default=[*SHAPES, "SmolLM2"])
    parser.add_argument("--text", type=Path, help="what SmolLM2 reads")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--peer-python")
    parser.add_argument("--engines", nargs="+", choices=("Kumquant", *PEERS), default=["Kumquant", *PEERS])
    parser.add_argument("--out", type=Path, required=True, help="name of the results without suffix")
    options = parser.parse_args()
    if "SmolLM2" in options.models and options.text is None:
        parser.error("SmolLM2 needs --text")
    stored = options.out.with_suffix(".json")
    found = json.loads(stored.read_text()) if stored.exists() else {"machine": machine(), "rows": []}
    taken = {"date": datetime.date.today().isoformat(), "kumquant": git_commit(), "quantization": QUANTIZATION,
             "window": options.window}
    rows = found["rows"]
    for name in options.models:
        for one in losses(options, name):
            print(json.dumps(one), file=sys.stderr, flush=True)
            rows[:] = [row for row in rows if (row["model"], row["engine"]) != (name, one["engine"])] + [one | taken]
            stored.write_text(json.dumps(found, indent=1) + "\n")
    rows.sort(key=lambda row: options.models.index(row["model"]) if row["model"] in options.models else -1)
    options.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
