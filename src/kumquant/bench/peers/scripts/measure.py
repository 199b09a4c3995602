"""Measures a model folder of a runtime that is a Python package. Runs by itself, in the Python that has the package.

    python measure.py openvino|onnxruntime|llama.cpp FOLDER \\
        '{"threads": 2, "options": {}, "workloads": [["prefill", 512, 0, 1], …]}'

A workload is test, tokens, context, batch; options are the runtime's own. Prints a JSON line: "tokens_per_s" in the
order of the workloads, or, without any, "first_token_s": from opening the model to the first token of a 16-token
prompt. "peak_rss_bytes" is that of the workloads with batch 1. Prompts are random token ids, so no tokenizer is needed.
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
LLAMACPP_CHUNK = 512  # tokens of a prompt in one call
LOWEST_ID = 3  # below are the special tokens of most vocabularies

# (token ids (batch, tokens), decoded tokens) -> seconds to the first token, seconds of the others
Run = Callable[[np.ndarray, int], tuple[float, float]]


def open_openvino(folder: str, threads: int, options: dict[str, Any]) -> Run:
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


def open_onnxruntime(folder: str, threads: int, options: dict[str, Any]) -> Run:
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


def open_llamacpp(folder: str, threads: int, options: dict[str, Any]) -> Run:
    """options: fields of llama_context_params."""
    import llama_cpp as binding

    binding.llama_log_set(ignored_log(binding), None)
    binding.llama_backend_init()
    model = binding.llama_model_load_from_file(f"{folder}/model.gguf".encode(), binding.llama_model_default_params())

    def run(token_ids: np.ndarray, count: int) -> tuple[float, float]:
        batch, prompt = token_ids.shape
        params = binding.llama_context_default_params()
        params.n_ctx, params.n_seq_max = batch * (prompt + count + 1), batch
        params.n_threads = params.n_threads_batch = threads
        for name, value in options.items():
            setattr(params, name, value)
        context = binding.llama_init_from_model(model, params)
        step = binding.llama_batch_init(max(LLAMACPP_CHUNK, batch), 0, 1)
        try:
            started_at = time.perf_counter()
            for sequence in range(batch):
                for begin in range(0, prompt, LLAMACPP_CHUNK):
                    chunk = token_ids[sequence, begin:begin + LLAMACPP_CHUNK]
                    decode_llamacpp(binding, context, step, [(int(one), begin + index, sequence)
                                                             for index, one in enumerate(chunk)])
            first_at = time.perf_counter()
            for index in range(count):
                decode_llamacpp(binding, context, step, [(int(token_ids[sequence, 0]), prompt + index, sequence)
                                                         for sequence in range(batch)], all_logits=True)
            return first_at - started_at, time.perf_counter() - first_at
        finally:
            binding.llama_batch_free(step)
            binding.llama_free(context)

    return run


def decode_llamacpp(binding: Any, context: Any, step: Any, tokens: list[tuple[int, int, int]],
                    all_logits: bool = False) -> None:
    """tokens: (id, position, sequence). Logits of the last one, or of all. Like llama-bench it samples nothing."""
    step.n_tokens = len(tokens)
    for index, (token, position, sequence) in enumerate(tokens):
        step.token[index], step.pos[index] = token, position
        step.n_seq_id[index], step.seq_id[index][0] = 1, sequence
        step.logits[index] = all_logits or index + 1 == len(tokens)
    if binding.llama_decode(context, step) != 0:
        raise SystemExit("llama_decode failed")
    binding.llama_synchronize(context)


def ignored_log(binding: Any) -> Any:
    """A log callback that says nothing; kept alive for the process."""
    return KEPT.setdefault("log", binding.llama_log_callback(lambda *_: None))


KEPT: dict[str, Any] = {}
RUNTIMES = {"llama.cpp": open_llamacpp, "openvino": open_openvino, "onnxruntime": open_onnxruntime}


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
    run = RUNTIMES[runtime](folder, job["threads"], job["options"])
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
