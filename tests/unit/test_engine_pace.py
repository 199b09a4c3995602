"""Several decode steps in one native call: the same tokens, and nothing that nobody wants."""

import pytest
from fake_model import PAGE_SIZE, FakeDecoder, FakeModel

from kumquant.engine import Engine, SamplingParams
from kumquant.runtime import Pace
from kumquant.runtime.pace import MAX_CALL_STEPS

PROMPTS = [[1, 2, 3], [7] * 11, [5, 9], list(range(20)), [1, 2, 4]]
PIECES = ["<end>", "Hello", " wor", "ld", " END", "!", *"abcdefghijklmnopqrstuvwxyz" * 3]
ONE_STEP, MANY_STEPS = 0.0, 1e9  # seconds of a call


def results_of(max_call_s, prompts, params, *, model=None, **options):
    engine = Engine(model or FakeModel(), num_pages=options.pop("num_pages", 64), max_call_s=max_call_s, **options)
    requests = [engine.add(prompt, params) for prompt in prompts]
    while engine.has_work:
        engine.step()
    return [request.result() for request in requests]


def told(results):
    return [(one.text, one.token_ids, one.finish_reason, one.logprobs) for one in results]


@pytest.mark.parametrize("num_pages", [64, 14])  # 14: requests are preempted
@pytest.mark.parametrize("params", [
    SamplingParams(max_tokens=1, seed=1), SamplingParams(max_tokens=25, temperature=0),
    SamplingParams(max_tokens=30, seed=3, logprobs=1), SamplingParams(seed=5, stop=["7"], max_tokens=30),
    SamplingParams(seed=6, stop_token_ids=[10, 20, 30, 40], max_tokens=30),
])
def test_the_results_are_those_of_single_steps(params, num_pages):
    model = FakeModel()
    options = {"new_decoder": lambda: FakeDecoder([str(token) for token in range(64)]), "num_pages": num_pages,
               "end_ids": frozenset({2, 3})}
    many = results_of(MANY_STEPS, PROMPTS, params, model=model, **options)
    assert told(many) == told(results_of(ONE_STEP, PROMPTS, params, **options))
    if params.max_tokens > 1:
        assert max(model.call_steps) > 1


def test_a_call_has_no_more_steps_than_asked_for_and_as_there_are_pages_for():
    model = FakeModel()
    results_of(MANY_STEPS, [[5, 9]], SamplingParams(max_tokens=12, temperature=0), model=model)
    # After the prompt's step 11 are left. One is timed; then calls end where a page is full: at 4, 8 and 12 tokens.
    assert PAGE_SIZE == 4 and model.call_steps == [1, 1, 4, 4, 1]


def test_a_call_ends_with_the_first_end_token_and_nothing_is_fed_behind_it():
    model = FakeModel(script=[1, 2, 0, 3, 4, 5])
    (result,) = results_of(MANY_STEPS, [[1] * PAGE_SIZE], SamplingParams(), model=model, end_ids=frozenset({0}))
    assert (result.token_ids, result.finish_reason) == ([1, 2, 0], "stop")
    assert model.num_tokens_fed == PAGE_SIZE + 2


def test_what_comes_after_a_stop_string_in_the_same_call_is_dropped():
    prompt = [1] * PAGE_SIZE
    model = FakeModel(script=[5, 5, 1, 2, 3, 4])
    engine = Engine(model, num_pages=64, max_call_s=MANY_STEPS, new_decoder=lambda: FakeDecoder(PIECES))
    request = engine.add(prompt, SamplingParams(stop=["ello"], logprobs=0))
    while engine.has_work:
        engine.step()
    result = request.result()
    assert (result.text, result.token_ids, result.finish_reason) == ("!!H", [5, 5, 1], "stop")
    assert len(result.logprobs) == 3
    # The second page is full, but of 5, 5, 1 and a token that was dropped: it is no beginning of another prompt.
    assert model.num_tokens_fed == 2 * PAGE_SIZE
    model.script = None
    again = engine.add([*prompt, 5, 5, 1, 9, 9], SamplingParams(max_tokens=3, temperature=0))
    while engine.has_work:
        engine.step()
    assert model.num_tokens_fed == 2 * PAGE_SIZE + 5 + 2
    (alone,) = results_of(ONE_STEP, [[*prompt, 5, 5, 1, 9, 9]], SamplingParams(max_tokens=3, temperature=0))
    assert again.result().token_ids == alone.token_ids


@pytest.mark.parametrize("prompt", [[5], [1] * (PAGE_SIZE + 1)])
def test_the_first_token_comes_alone(prompt):
    """Also where only one token of the prompt is left to compute, and steps were timed before."""
    engine = Engine(FakeModel(), num_pages=64, max_call_s=MANY_STEPS)
    params = SamplingParams(max_tokens=8, temperature=0)
    for _ in range(2):
        request = engine.add(prompt, params)
        engine.step()
        assert request.num_output_tokens == 1
        while engine.has_work:
            engine.step()


def test_nothing_to_do_is_no_step():
    engine = Engine(FakeModel(), num_pages=64, max_call_s=MANY_STEPS)
    assert engine.step() == [] and engine.model.step_sizes == []


def test_pieces_of_text_stay_single():
    engine = Engine(FakeModel(script=[1, 2, 3, 4]), num_pages=64, max_call_s=MANY_STEPS,
                    new_decoder=lambda: FakeDecoder(PIECES))
    request = engine.add([1], SamplingParams(max_tokens=6))
    pieces = []
    while engine.has_work:
        engine.step()
        while piece := request.take_piece():
            pieces.append(piece)
    assert pieces == ["Hello", " wor", "ld", " END", " END", " END"]


def test_a_call_that_ctrl_c_cut_short_is_done_again(monkeypatch):
    params = SamplingParams(max_tokens=20, seed=2)
    model = FakeModel()
    engine = Engine(model, num_pages=64, max_call_s=MANY_STEPS)
    request = engine.add([1, 2, 3, 4], params)
    engine.step()
    engine.step()
    decode = model.decode

    def interrupted(pool, inputs, count):
        assert len(decode(pool, inputs, count)[0]) > 1
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.undo()
    while engine.has_work:
        engine.step()
    assert request.result().token_ids == results_of(ONE_STEP, [[1, 2, 3, 4]], params)[0].token_ids


def test_prompts_keep_their_turn():
    model = FakeModel()
    engine = Engine(model, num_pages=64, max_call_s=MANY_STEPS, max_step_tokens=6)
    first = engine.add([5, 9], SamplingParams(max_tokens=20, temperature=0))
    for _ in range(3):
        engine.step()
    calls = list(model.call_steps)
    second = engine.add(list(range(20)), SamplingParams(max_tokens=3, temperature=0))
    for _ in range(4):  # its chunks
        engine.step()
    assert second.num_output_tokens == 1 and model.call_steps == calls
    assert first.num_output_tokens == 1 + sum(calls) + 4


def test_as_many_steps_as_last_the_time():
    pace = Pace(4e-3)
    assert pace.num_steps(1) == 1
    pace.note(1, 0.9e-3)
    assert (pace.num_steps(1), pace.num_steps(2)) == (4, 1)
    pace.note(2, 50e-3)
    assert (pace.num_steps(1), pace.num_steps(2)) == (1, 1)
    pace.note(1, 0.0)
    assert pace.num_steps(1) == MAX_CALL_STEPS
