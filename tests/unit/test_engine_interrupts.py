"""Ctrl-C at any line of the engine: what goes on is what would have come without it, and no page is lost."""

from __future__ import annotations

import itertools
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

import pytest
from fake_model import FakeDecoder, FakeModel

import kumquant.engine
from kumquant.engine import Engine, SamplingParams
from kumquant.errors import CapacityError

ENGINE = str(Path(kumquant.engine.__file__).parent)
PROMPTS = [[1, 2, 3], [7] * 11, [1, 2, 3, 4, 5, 6, 7, 8, 9]]
PARAMS = [SamplingParams(max_tokens=7, seed=3, logprobs=1), SamplingParams(max_tokens=9, seed=4, stop=["13", "7"]),
          SamplingParams(max_tokens=6, temperature=0)]
NUM_PAGES = 9  # not enough for all at once: 1 + 5 + 4 at their ends


class InterruptAt:
    """KeyboardInterrupt before line ``count`` of those that the engine's own files run; ``count`` is what is left."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __enter__(self) -> InterruptAt:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, argument: object):
        if not frame.f_code.co_filename.startswith(ENGINE):
            return None
        if event == "line":
            self.count -= 1
            if self.count == 0:
                raise KeyboardInterrupt
        return self._trace


def make_engine(max_call_s: float) -> Engine:
    pieces = [str(token) for token in range(64)]
    return Engine(FakeModel(), num_pages=NUM_PAGES, max_call_s=max_call_s, end_ids=frozenset({2, 3}),
                  new_decoder=lambda: FakeDecoder(pieces))


def finish(engine: Engine, requests: list) -> list:
    while not all(request.is_finished for request in requests):
        engine.step()
    results = [request.result() for request in requests]
    return [(one.text, one.token_ids, one.finish_reason, one.logprobs) for one in results]


def finish_and_collect(engine: Engine, requests: list, texts: list[str]) -> list:
    """``finish``, taking the pieces as streams do."""
    while True:
        for index, request in enumerate(requests):
            while piece := request.take_piece():
                texts[index] += piece
        if all(request.is_finished for request in requests):
            return finish(engine, requests)
        engine.step()


def add_all(engine: Engine) -> list:
    return [engine.add(prompt, params) for prompt, params in zip(PROMPTS, PARAMS)]


@pytest.mark.parametrize("max_call_s", [0.0, 1e9])
def test_what_goes_on_is_what_would_have_come(max_call_s):
    engine = make_engine(max_call_s)
    wanted = finish(engine, add_all(engine))
    times = 0
    for count in itertools.count(1, 3):
        engine = make_engine(max_call_s)
        requests = add_all(engine)
        with InterruptAt(count) as at:
            try:
                finish(engine, requests)
            except KeyboardInterrupt:
                times += 1
        if at.count > 0:
            break
        assert finish(engine, requests) == wanted, count
        assert not engine.has_work and engine._scheduler._store.num_free == NUM_PAGES, count
    assert times > 200


@pytest.mark.parametrize("max_call_s", [0.0, 1e9])
def test_who_gives_up_leaves_nothing_behind(max_call_s):
    other = make_engine(max_call_s)
    wanted = finish(other, [other.add([5, 9], PARAMS[2])])
    for count in itertools.count(1, 4):
        engine = make_engine(max_call_s)
        requests: list = []
        with InterruptAt(count) as at:
            try:
                for prompt, params in zip(PROMPTS, PARAMS):
                    requests.append(engine.add(prompt, params))
                finish(engine, requests)
            except KeyboardInterrupt:
                pass
            else:
                break
        for request in requests:
            engine.abort(request)
        while engine.has_work:  # one whose caller never got it
            engine.step()
        assert engine._scheduler._store.num_free == NUM_PAGES, count
        assert finish(engine, [engine.add([5, 9], PARAMS[2])]) == wanted
    assert at.count > 0


@pytest.mark.parametrize("max_call_s", [0.0, 1e9])
def test_streams_show_every_piece_once(max_call_s):
    engine = make_engine(max_call_s)
    wanted = finish(engine, add_all(engine))
    for count in itertools.count(1, 5):
        engine = make_engine(max_call_s)
        requests, texts = add_all(engine), ["", "", ""]
        with InterruptAt(count) as at, suppress(KeyboardInterrupt):
            finish_and_collect(engine, requests, texts)
        if at.count > 0:
            break
        assert finish_and_collect(engine, requests, texts) == wanted, count
        incomplete = [index for index in range(3) if texts[index] != wanted[index][0]]
        assert len(incomplete) <= 1, (count, texts)
        for index in incomplete:  # Ctrl-C came after a piece was taken and before it was shown: just that one is lost
            pieces = requests[index]._pieces
            without_one = ["".join(pieces[:lost] + pieces[lost + 1:]) for lost in range(len(pieces))]
            assert texts[index] in without_one, (count, texts)


def test_abandoned_requests_go_whenever_ctrl_c_comes():
    for count in itertools.count(1, 3):
        engine = make_engine(1e9)
        requests = add_all(engine)
        engine.step()
        engine.abandon(requests[0])
        engine.abandon(requests[2])
        with InterruptAt(count) as at, suppress(KeyboardInterrupt):
            finish(engine, requests)
        if at.count > 0:
            break
        finish(engine, requests)
        assert {requests[0].finish_reason, requests[2].finish_reason} == {"abort"}
        assert not engine.has_work and engine._scheduler._store.num_free == NUM_PAGES, count


def test_a_step_that_fails_fails_whenever_ctrl_c_comes(monkeypatch):
    for count in itertools.count(1, 2):
        engine = make_engine(0.0)
        requests = add_all(engine)
        engine.step()

        def fails(pool, inputs):
            raise CapacityError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(engine.model, "step", fails)
            with InterruptAt(count) as at, suppress(KeyboardInterrupt, CapacityError):
                engine.step()
        for request in requests:
            while not request.is_finished:
                engine.step()
            assert request.error is None or request.finish_reason == "abort"
        assert not engine.has_work and engine._scheduler._store.num_free == NUM_PAGES, count
        if at.count > 0:
            break


def test_two_interrupts_one_after_the_other():
    engine = make_engine(1e9)
    wanted = finish(engine, add_all(engine))
    for count, second in itertools.product(range(150, 700, 50), range(1, 120, 7)):
        engine = make_engine(1e9)
        requests = add_all(engine)
        for at in (count, second):
            with InterruptAt(at), suppress(KeyboardInterrupt):
                finish(engine, requests)
        assert finish(engine, requests) == wanted, (count, second)
        assert engine._scheduler._store.num_free == NUM_PAGES
