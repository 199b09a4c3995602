"""LLM: prompts of every kind, streams, chat, the edges; on the fake model."""

import gc
import json
import weakref

import fake_llm
import numpy as np
import pytest

from kumquant.engine import SamplingParams
from kumquant.errors import CapacityError, RequestError, TensorCacheError

GREEDY = SamplingParams(temperature=0, max_tokens=4)


@pytest.fixture
def llm(monkeypatch, tmp_path):
    fake_llm.install(monkeypatch, "Hello.")
    with fake_llm.open_llm(tmp_path, threads=1) as llm:
        yield llm


def test_one_text_and_many_texts_give_a_list(llm):
    (one,) = llm.generate("Hi", GREEDY)
    assert (one.text, one.finish_reason, len(one.token_ids)) == ("Hell", "length", 4)
    assert one.prompt_token_ids == [fake_llm.BOS, *llm.tokenizer.encode("Hi", add_special_tokens=False)]
    assert [result.text for result in llm.generate(["Hi", "Ho"], GREEDY)] == ["Hell", "Hell"]
    assert llm.generate([], GREEDY) == []


def test_token_ids_are_a_prompt_as_they_are(llm):
    assert llm.generate([5, 6, 7], GREEDY)[0].prompt_token_ids == [5, 6, 7]
    assert [r.prompt_token_ids for r in llm.generate([[5, 6], [7]], GREEDY)] == [[5, 6], [7]]
    assert llm.generate(np.array([5, 6]), GREEDY)[0].prompt_token_ids == [5, 6]
    assert [len(r.prompt_token_ids) for r in llm.generate([[5, 6], "Hi"], GREEDY)] == [2, 3]


@pytest.mark.parametrize("prompts", [5, None, [None], [5.5], [[1.5]], [True], b"bytes", [b"bytes"]])
def test_what_is_no_prompt_is_refused(llm, prompts):
    with pytest.raises(RequestError, match="not a prompt"):
        llm.generate(prompts, GREEDY)


def test_an_empty_prompt_is_refused_and_leaves_nothing_behind(llm):
    with pytest.raises(RequestError, match="the prompt is empty"):
        llm.generate([[5], []], GREEDY)
    assert not llm._engine.has_work


def test_one_params_for_all_or_one_for_each(llm):
    short, long = SamplingParams(temperature=0, max_tokens=1), SamplingParams(temperature=0)
    assert [r.text for r in llm.generate(["a", "b"], [short, long])] == ["H", "Hello."]
    with pytest.raises(RequestError, match="one for each; found 1 for 2 prompts"):
        llm.generate(["a", "b"], [short])


def test_an_answer_ends_at_the_models_end_token(llm):
    (result,) = llm.generate("Hi", SamplingParams(temperature=0))
    assert (result.text, result.finish_reason, result.token_ids[-1]) == ("Hello.", "stop", fake_llm.END)


def test_chat_renders_the_template_and_answers(llm):
    messages = [{"role": "user", "content": "Hi"}]
    result = llm.chat(messages, SamplingParams(temperature=0))
    assert result.text == "Hello."
    assert llm.tokenizer.decode(result.prompt_token_ids) == "user: Hi\nassistant: "
    stream = llm.chat(messages, SamplingParams(temperature=0), stream=True)
    assert list(stream) == ["H", "e", "l", "l", "o", "."]
    assert stream.result.text == "Hello."


def test_the_next_turn_computes_only_what_is_new(monkeypatch, tmp_path):
    models = fake_llm.install(monkeypatch, "Hello.")
    with fake_llm.open_llm(tmp_path) as llm:
        messages = [{"role": "user", "content": "Tell me all about it."}]
        answer = llm.chat(messages, SamplingParams(temperature=0)).text
        messages.append({"role": "assistant", "content": answer})
        fed = models[0].num_tokens_fed
        result = llm.chat([*messages, {"role": "user", "content": "And?"}], SamplingParams(temperature=0))
    new = len("\nuser: And?\nassistant: ")
    # The answer's end token is not in the history, and up to a page before it is computed again.
    assert new <= models[0].num_tokens_fed - fed - len(result.token_ids) + 1 <= new + 4


def test_two_streams_advance_together(llm):
    first, second = (llm.stream(prompt, SamplingParams(temperature=0)) for prompt in ("Hi", "Ho"))
    assert [next(first), next(second), next(first)] == ["H", "H", "e"]
    assert "".join(first) == "llo." and "".join(second) == "ello."


def test_a_closed_stream_keeps_what_it_has(llm):
    stream = llm.stream("Hi", SamplingParams(temperature=0))
    next(stream)
    with pytest.raises(RequestError, match="still runs"):
        stream.result  # noqa: B018
    stream.close()
    assert (stream.result.text, stream.result.finish_reason, list(stream)) == ("H", "abort", [])
    assert not llm._engine.has_work


def test_an_abandoned_stream_frees_its_pages(llm):
    next(llm.stream("Hi", SamplingParams(temperature=0)))
    assert not llm._engine.has_work


def test_a_step_that_fails_is_told_to_every_caller_whose_text_it_was(llm, monkeypatch):
    first, second = (llm.stream(prompt, SamplingParams(temperature=0)) for prompt in ("Hi", "Ho"))
    assert [next(first), next(second)] == ["H", "H"]

    def failing(pool, inputs):
        raise CapacityError("no memory")

    with monkeypatch.context() as patch:
        patch.setattr(llm.model, "step", failing)
        for stream in (first, second):
            with pytest.raises(CapacityError, match="no memory"):
                next(stream)
    with pytest.raises(CapacityError, match="no memory"):
        second.result  # noqa: B018
    assert not llm._engine.has_work
    assert llm.generate("Hi", GREEDY)[0].text == "Hell"


def test_ctrl_c_in_generate_leaves_nothing_behind(llm, monkeypatch):
    def interrupted(pool, inputs):
        raise KeyboardInterrupt

    monkeypatch.setattr(llm.model, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate("Hi", GREEDY)
    monkeypatch.undo()
    assert not llm._engine.has_work


def test_a_prompt_longer_than_the_context_names_both_numbers(monkeypatch, tmp_path):
    fake_llm.install(monkeypatch, "Hello.", context_length=16)
    with pytest.raises(RequestError, match="found 17 tokens; expected at most 16"):
        fake_llm.open_llm(tmp_path).generate([[5] * 17], GREEDY)


def test_without_a_tokenizer_token_ids_work_and_text_is_refused(monkeypatch, tmp_path):
    fake_llm.install(monkeypatch, "Hello.", has_tokenizer=False)
    llm = fake_llm.open_llm(tmp_path)
    (result,) = llm.generate([5, 6], GREEDY)
    assert (result.text, len(result.token_ids)) == ("", 4)
    assert llm.logits([5, 6]).shape == (2, llm.model.vocab_size)
    for call in (lambda: llm.generate("Hi"), lambda: llm.chat([{"role": "user", "content": "Hi"}]),
                 lambda: llm.generate([5], SamplingParams(stop="x"))):
        with pytest.raises(RequestError, match="needs a tokenizer, and this folder has none"):
            call()


@pytest.mark.parametrize("token_ids", [[], [-1], [10_000], "text", [1.5]])
def test_logits_check_their_ids(llm, token_ids):
    with pytest.raises(RequestError):
        llm.logits(token_ids)


@pytest.mark.parametrize("options", [
    {"threads": 0}, {"threads": 1.5}, {"activations": "int4"},
    {"context_length": 0}, {"context_length": 5000},
])
def test_options_out_of_range_are_refused_by_name(monkeypatch, tmp_path, options):
    fake_llm.install(monkeypatch, "Hello.")
    with pytest.raises(RequestError, match=next(iter(options))):
        fake_llm.open_llm(tmp_path, **options)


def test_context_length_can_be_less_than_the_models(monkeypatch, tmp_path):
    fake_llm.install(monkeypatch, "Hello.")
    assert fake_llm.open_llm(tmp_path, context_length=100).context_length == 100


def test_a_closed_llm_says_so(llm):
    llm.close()
    with pytest.raises(RequestError, match="this LLM is closed"):
        llm.generate("Hi")


def test_close_frees_the_engine_at_once(llm):
    """And with it the model and its pages, without waiting for the garbage collector."""
    llm.generate("a")
    engine = weakref.ref(llm._engine)
    gc.disable()
    try:
        llm.close()
        assert engine() is None
    finally:
        gc.enable()


def test_without_params_the_models_own_recommendation_counts(monkeypatch, tmp_path):
    fake_llm.install(monkeypatch, "Hello.")
    config = {"temperature": 0.3, "top_p": 0.8, "top_k": None, "eos_token_id": 0, "do_sample": True}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert fake_llm.open_llm(tmp_path).default_params == SamplingParams(temperature=0.3, top_p=0.8)


def test_mlcs_recommendation_counts_where_there_is_no_other(monkeypatch, tmp_path):
    fake_llm.install(monkeypatch, "Hello.")
    (tmp_path / "mlc-chat-config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.95}))
    assert fake_llm.open_llm(tmp_path).default_params == SamplingParams(temperature=0.6, top_p=0.95)


def test_a_damaged_recommendation_is_the_caches_fault(monkeypatch, tmp_path):
    fake_llm.install(monkeypatch, "Hello.")
    (tmp_path / "generation_config.json").write_text('{"temperature": "warm"}')
    with pytest.raises(TensorCacheError, match=r"generation_config\.json"):
        fake_llm.open_llm(tmp_path).default_params  # noqa: B018
