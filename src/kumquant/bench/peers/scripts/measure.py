"""Measures a model folder of OpenVINO GenAI or ONNX Runtime GenAI. Runs by itself, in the Python that has them.

    python measure.py openvino|onnxruntime FOLDER '{"threads": 2, "workloads": [["prefill", 512, 0, 1], …]}'

A workload is test, tokens, context, batch. Prints a JSON line: "tokens_per_s" in the order of the workloads, or,
without any, "first_token_s": from opening the model to the first token of a 16-token prompt. "peak_rss_bytes" is that
of the workloads with batch 1. Prompts are random token ids, so no tokenizer is needed.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

FIRST_TOKEN_PROMPT = 16
WARM_UP_TOKENS = 4
LOWEST_ID = 3  # below are the special tokens of most vocabularies

# (token ids (batch, tokens), decoded tokens) -> seconds to the first token, seconds of the others
Run = Callable[[np.ndarray, int], tuple[float, float]]


def open_openvino(folder: str, threads: int) -> Run:
    import openvino
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(folder, "CPU", INFERENCE_NUM_THREADS=threads, PERFORMANCE_HINT="LATENCY")

    def run(token_ids: np.ndarray, count: int) -> tuple[float, float]:
        config = genai.GenerationConfig(max_new_tokens=count + 1, ignore_eos=True, do_sample=False,
                                        apply_chat_template=False)
        if config.eos_token_id < 0:
            config.set_eos_token_id(2)
        ids = openvino.Tensor(token_ids.astype(np.int64))
        mask = openvino.Tensor(np.ones(token_ids.shape, np.int64))
        metrics = pipeline.generate(genai.TokenizedInputs(ids, mask), config).perf_metrics
        stamps = metrics.raw_metrics.m_new_token_times  # milliseconds
        return metrics.get_ttft().mean / 1e3, (stamps[-1] - stamps[0]) / 1e3

    return run


def open_onnxruntime(folder: str, threads: int) -> Run:
    import onnxruntime_genai as genai

    config = genai.Config(folder)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = genai.Model(config)

    def run(token_ids: np.ndarray, count: int) -> tuple[float, float]:
        batch, prompt = token_ids.shape
        length = prompt + count + 1
        params = genai.GeneratorParams(model)
        params.set_search_options(batch_size=batch, max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(model, params)
        started_at = time.perf_counter()
        generator.append_tokens(token_ids.astype(np.int32))
        generator.generate_next_token()
        first_at = time.perf_counter()
        for _ in range(count):
            generator.generate_next_token()
        return first_at - started_at, time.perf_counter() - first_at

    return run


RUNTIMES = {"openvino": open_openvino, "onnxruntime": open_onnxruntime}


def vocab_size(folder: str) -> int:
    """From the folder's own config."""
    for name, keys in (("genai_config.json", ("model",)), ("config.json", ())):
        try:
            with open(f"{folder}/{name}", encoding="utf-8") as file:
                found: Any = json.load(file)
        except OSError:
            continue
        for key in keys:
            found = found[key]
        return int(found["vocab_size"])
    raise SystemExit(f"{folder}: neither genai_config.json nor config.json")


def peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def speed(run: Run, new_ids: Callable[[int, int], np.ndarray], test: str, tokens: int, context: int,
          batch: int) -> float:
    """Tokens per second, after a run that warms up."""
    if test == "prefill":
        run(new_ids(1, tokens), 1)
        return tokens / run(new_ids(1, tokens), 1)[0]
    run(new_ids(batch, 1), WARM_UP_TOKENS)
    return batch * tokens / run(new_ids(batch, context + 1), tokens)[1]


def main() -> None:
    runtime, folder = sys.argv[1:3]
    job = json.loads(sys.argv[3])
    vocabulary, random = vocab_size(folder), np.random.default_rng(0)

    def new_ids(batch: int, tokens: int) -> np.ndarray:
        return random.integers(min(LOWEST_ID, vocabulary - 1), vocabulary, (batch, tokens))

    started_at = time.perf_counter()
    run = RUNTIMES[runtime](folder, job["threads"])
    if not job["workloads"]:
        run(new_ids(1, FIRST_TOKEN_PROMPT), 1)
        first_token_s = time.perf_counter() - started_at
        print(json.dumps({"first_token_s": first_token_s, "peak_rss_bytes": peak_rss_bytes()}))
        return
    single_first = sorted(job["workloads"], key=lambda workload: workload[3] > 1)
    speeds, peak = {}, 0
    for workload in single_first:
        if workload[3] > 1 and peak == 0:
            peak = peak_rss_bytes()
        speeds[tuple(workload)] = speed(run, new_ids, *workload)
    rates = [speeds[tuple(workload)] for workload in job["workloads"]]
    print(json.dumps({"tokens_per_s": rates, "peak_rss_bytes": peak or peak_rss_bytes()}))


if __name__ == "__main__":
    main()
