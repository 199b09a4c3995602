"""The engine's loop on a model without weights: batching, chunks, pages, preemption, reuse, ends."""

import pytest
from fake_model import PAGE_SIZE, FakeDecoder, FakeModel

from kumquant.engine import Engine, SamplingParams
from kumquant.errors import CapacityError, RequestError

GREEDY = SamplingParams(max_tokens=8, temperature=0)
PROMPTS = [[1, 2, 3], [7] * 11, [5, 9], list(range(20)), [1, 2, 4]]


def make_engine(model=None, *, num_pages=64, max_call_s=0.0, **options):
    """An engine that takes one step at a time; test_engine_pace.py has those of several."""
    return Engine(model or FakeModel(), num_pages=num_pages, max_call_s=max_call_s, **options)


def run(engine, *requests):
    for _ in range(1000):
        if all(request.is_finished for request in requests):
            return [request.result() for request in requests]
        engine.step()
    raise AssertionError("the engine does not finish")


def alone(prompt, params=GREEDY, **options):
    engine = make_engine(**options)
    return run(engine, engine.add(prompt, params))[0].token_ids


def test_a_batch_gives_what_each_gives_alone():
    engine = make_engine()
    results = run(engine, *[engine.add(prompt, GREEDY) for prompt in PROMPTS])
    assert [result.token_ids for result in results] == [alone(prompt) for prompt in PROMPTS]
    assert [result.prompt_token_ids for result in results] == PROMPTS
    assert {result.finish_reason for result in results} == {"length"}
    assert all(len(result.token_ids) == 8 for result in results)


def test_all_requests_share_each_step():
    model = FakeModel()
    engine = make_engine(model)
    run(engine, *[engine.add(prompt, GREEDY) for prompt in PROMPTS])
    assert model.step_sizes == [(5, sum(map(len, PROMPTS)))] + [(5, 5)] * 7


def test_long_prompts_are_fed_in_chunks_while_others_decode():
    model = FakeModel()
    engine = make_engine(model, max_step_tokens=6)
    first = engine.add([5, 9], GREEDY)
    engine.step()
    second = engine.add(list(range(20)), GREEDY)
    results = run(engine, first, second)
    assert model.step_sizes[:6] == [(1, 2), (2, 6), (2, 6), (2, 6), (2, 6), (2, 2)]
    assert [result.token_ids for result in results] == [alone([5, 9]), alone(list(range(20)))]


def test_a_request_joins_a_running_batch():
    engine = make_engine()
    first = engine.add(PROMPTS[0], GREEDY)
    engine.step()
    engine.step()
    second = engine.add(PROMPTS[1], GREEDY)
    results = run(engine, first, second)
    assert [result.token_ids for result in results] == [alone(PROMPTS[0]), alone(PROMPTS[1])]


def test_at_most_max_running_sequences_decode_together():
    model = FakeModel()
    engine = make_engine(model, max_running=2)
    results = run(engine, *[engine.add(prompt, GREEDY) for prompt in PROMPTS])
    assert max(sequences for sequences, _ in model.step_sizes) == 2
    assert [result.token_ids for result in results] == [alone(prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_out_of_pages_requests_are_preempted_and_resumed_never_failed(temperature):
    params = SamplingParams(max_tokens=30, temperature=temperature, seed=3)
    model = FakeModel()
    engine = make_engine(model, num_pages=14)  # 56 tokens for five requests that end at 32 to 50 tokens
    results = run(engine, *[engine.add(prompt, params) for prompt in PROMPTS])
    assert [result.token_ids for result in results] == [alone(prompt, params) for prompt in PROMPTS]
    assert model.num_tokens_fed > sum(len(prompt) + 29 for prompt in PROMPTS), "nothing was preempted"


def test_a_finished_requests_pages_go_back():
    engine = make_engine(num_pages=16)
    for prompt in PROMPTS:
        run(engine, engine.add(prompt, GREEDY))
    assert engine.pool.num_free + len(engine.pool.cells) == 16
    full_pages = {tuple(cell) for cell in engine.pool.cells.values()}
    assert all(len(page) == PAGE_SIZE for page in full_pages), "only full pages are worth keeping"
    assert run(engine, engine.add(list(range(56)), GREEDY))[0].token_ids == alone(list(range(56)))


def test_a_known_beginning_is_not_computed_twice():
    model = FakeModel()
    engine = make_engine(model)
    (first,) = run(engine, engine.add(list(range(20)), GREEDY))
    fed = model.num_tokens_fed
    history = list(range(20)) + first.token_ids + [3, 3]
    (second,) = run(engine, engine.add(history, GREEDY))
    # 27 tokens are in the cache (the last one was never fed), six full pages of them; 30 - 24 = 6 are left,
    # and 7 decode.
    assert model.num_tokens_fed - fed == 6 + 7
    assert second.token_ids == alone(history)


def test_the_last_prompt_token_is_always_computed():
    model = FakeModel()
    engine = make_engine(model)
    prompt = list(range(2 * PAGE_SIZE))
    run(engine, engine.add(prompt, GREEDY))
    fed = model.num_tokens_fed
    (again,) = run(engine, engine.add(prompt, GREEDY))
    assert model.num_tokens_fed - fed == PAGE_SIZE + 7
    assert again.token_ids == alone(prompt)


def test_two_requests_with_one_beginning_share_its_pages_while_both_run():
    model = FakeModel()
    engine = make_engine(model)
    run(engine, engine.add(list(range(16)), GREEDY))
    used = 64 - engine.pool.num_free
    prompts = [[*range(16), ending] for ending in (40, 41)]
    both = [engine.add(prompt, GREEDY) for prompt in prompts]
    engine.step()
    assert 64 - engine.pool.num_free == used + 2  # 17 tokens are five pages, four of them shared
    assert [result.token_ids for result in run(engine, *both)] == [alone(prompt) for prompt in prompts]


def test_kept_pages_give_way_to_new_work():
    engine = make_engine(num_pages=8)  # 32 tokens
    for start in range(0, 60, 5):
        prompt = [(start + i) % 64 for i in range(20)]
        assert run(engine, engine.add(prompt, GREEDY))[0].token_ids == alone(prompt)


def test_only_so_many_pages_are_kept(monkeypatch):
    monkeypatch.setattr("kumquant.engine.scheduler.MAX_IDLE_BYTES", 3 * 1024)  # the fake's pages have 1024 bytes
    model = FakeModel()
    engine = make_engine(model)
    for start in range(0, 60, 20):
        run(engine, engine.add([(start + i) % 64 for i in range(20)], GREEDY))
    assert engine.pool.num_free == 64 - 3
    fed = model.num_tokens_fed
    prompt = [(40 + i) % 64 for i in range(20)]
    assert run(engine, engine.add(prompt, GREEDY))[0].token_ids == alone(prompt)
    assert model.num_tokens_fed - fed == 20 - 3 * PAGE_SIZE + 7, "the beginning is what is kept longest"


def test_an_abandoned_request_is_dropped_at_the_next_step():
    engine = make_engine()
    kept, dropped = engine.add(PROMPTS[0], GREEDY), engine.add(PROMPTS[1], GREEDY)
    engine.step()
    engine.abandon(dropped)
    assert run(engine, kept)[0].token_ids == alone(PROMPTS[0])
    assert dropped.finish_reason == "abort" and not engine.has_work


def test_one_seed_gives_one_output_wherever_the_prompt_stands():
    params = SamplingParams(max_tokens=8, seed=11)
    engine = make_engine()
    results = run(engine, *[engine.add(prompt, params) for prompt in [*PROMPTS, PROMPTS[0]]])
    assert results[0].token_ids == results[-1].token_ids == alone(PROMPTS[0], params)
    assert alone(PROMPTS[0], SamplingParams(max_tokens=8, seed=12)) != results[0].token_ids


def test_without_a_seed_outputs_differ():
    params = SamplingParams(max_tokens=16)
    assert alone(PROMPTS[0], params) != alone(PROMPTS[0], params)


def test_the_contexts_end_is_a_length():
    engine = make_engine()
    (result,) = run(engine, engine.add(list(range(60)), SamplingParams(max_tokens=None, temperature=0)))
    assert (len(result.token_ids), result.finish_reason) == (4, "length")


def test_a_prompt_that_fills_the_context_has_no_room_to_go_on():
    engine = make_engine()
    (result,) = run(engine, engine.add(list(range(64)), GREEDY))
    assert (result.token_ids, result.text, result.finish_reason) == ([], "", "length")


@pytest.mark.parametrize(("prompt", "params", "message"), [
    ([], GREEDY, "the prompt is empty"),
    ([*range(64), 1], GREEDY, "longer than the context; found 65 tokens; expected at most 64"),
    ([64], GREEDY, "prompt: token id out of range; found 64; expected 0 to 63"),
    ([-1], GREEDY, "prompt: token id out of range; found -1"),
    ([1], SamplingParams(logit_bias={64: 1.0}), "logit_bias: token id out of range; found 64"),
    ([1], SamplingParams(stop_token_ids=[99]), "stop_token_ids: token id out of range; found 99"),
])
def test_what_cannot_run_is_refused(prompt, params, message):
    engine = make_engine()
    with pytest.raises(RequestError) as refusal:
        engine.add(prompt, params)
    assert message in str(refusal.value)
    assert not engine.has_work


def test_the_pool_limits_the_context():
    assert make_engine(num_pages=3).context_length == 3 * PAGE_SIZE


def scripted(script, pieces, **options):
    return make_engine(FakeModel(script=script), new_decoder=lambda: FakeDecoder(pieces), **options)


PIECES = ["<end>", "Hello", " wor", "ld", " END", "!"]


def test_an_end_token_stops_and_is_not_text():
    engine = scripted([1, 2, 3, 0], PIECES, end_ids=frozenset({0}))
    (result,) = run(engine, engine.add([1], SamplingParams()))
    assert (result.text, result.token_ids, result.finish_reason) == ("Hello world", [1, 2, 3, 0], "stop")


def test_ignore_eos_goes_on_but_stop_token_ids_still_end():
    engine = scripted([1, 0, 2, 3], PIECES, end_ids=frozenset({0}))
    (result,) = run(engine, engine.add([1], SamplingParams(ignore_eos=True, stop_token_ids=[3])))
    assert (result.token_ids, result.finish_reason) == ([1, 0, 2, 3], "stop")


def test_a_stop_string_across_tokens_ends_and_is_cut():
    engine = scripted([1, 2, 3, 4], PIECES)
    request = engine.add([1], SamplingParams(stop=["o world"]))
    shown = []
    while not request.is_finished:
        engine.step()
        shown.append(request.take_piece())
    result = request.result()
    assert shown == ["Hell", "", ""]
    assert (result.text, result.token_ids, result.finish_reason) == ("Hell", [1, 2, 3], "stop")


def test_text_that_only_began_a_stop_string_comes_out_at_the_end():
    engine = scripted([1, 2, 3], PIECES)
    (result,) = run(engine, engine.add([1], SamplingParams(max_tokens=2, stop=["world peace"])))
    assert (result.text, result.finish_reason) == ("Hello wor", "length")


def test_logprobs_of_the_chosen_and_the_likeliest():
    engine = make_engine()
    (result,) = run(engine, engine.add([1, 2], SamplingParams(max_tokens=3, temperature=0, logprobs=2)))
    assert [entry.token_id for entry in result.logprobs] == result.token_ids
    for entry in result.logprobs:
        assert len(entry.top) == 2 and entry.top[0] == (entry.token_id, entry.logprob)
        assert entry.top[0][1] >= entry.top[1][1]
    (result,) = run(engine, engine.add([1, 2], SamplingParams(max_tokens=3, temperature=0, logprobs=0)))
    assert [entry.top for entry in result.logprobs] == [(), (), ()]
    (result,) = run(engine, engine.add([1, 2], GREEDY))
    assert result.logprobs is None


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_an_aborted_request_keeps_what_it_has_and_frees_its_pages(steps):
    engine = scripted([1, 2, 3, 4], PIECES)
    request = engine.add([1, 2, 3], SamplingParams())
    for _ in range(steps):
        engine.step()
    engine.abort(request)
    result = request.result()
    assert (result.finish_reason, result.token_ids) == ("abort", [1, 2, 3][:steps])
    assert result.text == "".join(PIECES[1:steps + 1])
    assert not engine.has_work and engine.pool.num_free >= 63


def test_a_step_that_ctrl_c_cut_short_is_done_again(monkeypatch):
    engine = make_engine()
    request = engine.add(PROMPTS[0], SamplingParams(max_tokens=8, seed=2))
    engine.step()
    step = engine.model.step

    def interrupted(pool, inputs):
        step(pool, inputs)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.model, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.undo()
    assert run(engine, request)[0].token_ids == alone(PROMPTS[0], SamplingParams(max_tokens=8, seed=2))


def test_timings_count_from_the_first_step():
    engine = make_engine()
    (result,) = run(engine, engine.add([1, 2], GREEDY))
    assert result.prefill_s > 0 and result.decode_s > 0
    assert result.tokens_per_s == pytest.approx(7 / result.decode_s)


def test_a_step_that_fails_ends_its_own_requests_and_others_go_on(monkeypatch):
    engine = make_engine(max_running=2)
    first, second, waiting = (engine.add(prompt, GREEDY) for prompt in PROMPTS[:3])
    engine.step()
    step = engine.model.step

    def half_a_step(pool, inputs):
        step(pool, inputs[:1])
        raise CapacityError("the system has no memory for a step of this size")

    monkeypatch.setattr(engine.model, "step", half_a_step)
    with pytest.raises(CapacityError, match="no memory"):
        engine.step()
    monkeypatch.undo()
    for request in (first, second):
        assert request.is_finished
        with pytest.raises(CapacityError, match="no memory"):
            request.result()
    assert run(engine, waiting)[0].token_ids == alone(PROMPTS[2])
    assert run(engine, engine.add(PROMPTS[0], GREEDY))[0].token_ids == alone(PROMPTS[0])  # nothing half made is reused
    assert engine._scheduler._store.num_free == engine.pool.num_pages
