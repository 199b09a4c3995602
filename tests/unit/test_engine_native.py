"""The engine on the native core: one result, alone, in a batch, preempted, on reused pages, on any threads."""

import os
import signal

import pytest
from checkpoints_for_tests import tiny_llama

import kumquant
from kumquant.engine import Engine, SamplingParams
from kumquant.errors import CapacityError, RequestError
from kumquant.processors import MAX_THREADS
from kumquant.runtime import Model

PROMPTS = [[5, 6, 7], [9] * 70, list(range(10, 90)), [5, 6, 8], [3]]
PARAMS = SamplingParams(
    max_tokens=100, temperature=1.2, top_k=50, top_p=0.95, min_p=0.01, repetition_penalty=1.1,
    presence_penalty=0.3, frequency_penalty=0.2, logit_bias={4: -2.0, 9: 1.5}, seed=5, logprobs=2,
)


@pytest.fixture(scope="module", params=["q0f32", "q4f16_1"])
def llm(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine")
    source = tiny_llama(folder / "source", max_position_embeddings=256)
    kumquant.convert(source, folder / "cache", quantization=request.param)
    return kumquant.LLM(folder / "cache", threads=1)


def outcome(request):
    result = request.result()
    return result.token_ids, result.logprobs, result.finish_reason


def run(llm, prompts, **options):
    engine = Engine(llm.model, **{"num_pages": 64, **options})
    requests = [engine.add(prompt, PARAMS) for prompt in prompts]
    while engine.has_work:
        engine.step()
    return [outcome(request) for request in requests]


@pytest.fixture(scope="module")
def alone(llm):
    return [run(llm, [prompt])[0] for prompt in PROMPTS]


def test_in_a_batch(llm, alone):
    assert run(llm, PROMPTS) == alone


def test_in_small_chunks(llm, alone):
    assert run(llm, PROMPTS, max_step_tokens=9) == alone


def test_preempted_and_resumed(llm, alone):
    assert run(llm, PROMPTS, num_pages=5) == alone


def test_on_reused_pages(llm, alone):
    engine = Engine(llm.model, num_pages=64)
    for _ in range(2):
        requests = [engine.add(prompt, PARAMS) for prompt in PROMPTS]
        while engine.has_work:
            engine.step()
        assert [outcome(request) for request in requests] == alone


def test_on_two_threads(llm, alone):
    other = kumquant.LLM(llm.folder, threads=2)
    assert run(other, PROMPTS) == alone
    assert run(llm, PROMPTS) == alone, "two models in one process disturb each other"


def test_greedy_is_the_likeliest_of_the_logits(llm):
    params = SamplingParams(max_tokens=20, temperature=0, logprobs=1)
    (result,) = llm.generate(PROMPTS[2], params)
    logits = llm.logits(result.prompt_token_ids + result.token_ids)
    expected = logits[len(PROMPTS[2]) - 1:-1].argmax(axis=1).tolist()
    assert result.token_ids == expected
    assert [entry.top[0][0] for entry in result.logprobs] == expected


@pytest.mark.parametrize("threads", [MAX_THREADS + 1, 2**70])
def test_more_threads_than_any_machine_has_are_refused(llm, threads):
    with pytest.raises(RequestError, match="threads: value out of range") as refusal:
        kumquant.LLM(llm.folder, threads=threads)
    assert f"1 to {MAX_THREADS}" in str(refusal.value)


def test_threads_that_the_system_does_not_give_are_an_error_and_no_crash(llm, monkeypatch):
    def no_threads(*arguments):
        raise RuntimeError("Resource temporarily unavailable")

    monkeypatch.setattr("kumquant._native.Model", no_threads)
    with pytest.raises(CapacityError, match="gives no 8 threads"):
        Model(kumquant.TensorCache.open(llm.folder), threads=8)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="skipped: no fork here")
def test_a_forked_process_is_refused_instead_of_waiting_for_threads_it_does_not_have(llm):
    threaded = kumquant.LLM(llm.folder, threads=2)
    threaded.logits([5])
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # ends a child that waits for ever
        code = 1
        try:
            threaded.logits([5])
        except RequestError as error:
            code = 0 if "before the process was forked" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert threaded.logits([5]).shape == (1, threaded.model.vocab_size)
