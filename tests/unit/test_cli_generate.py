"""``kumquant generate`` on the fake model: whole outputs."""

import io
import json

import fake_llm
import pytest

from kumquant.cli import main

DOCUMENT_KEYS = [
    "text", "token_ids", "finish_reason", "prompt_tokens", "completion_tokens", "prefill_s", "decode_s",
    "tokens_per_s",
]


@pytest.fixture(autouse=True)
def models(monkeypatch):
    return fake_llm.install(monkeypatch, lambda prompt: f"I got: {prompt}")


def generate(capsys, *arguments):
    code = main(["generate", "model", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_template_is_applied(capsys):
    result = generate(capsys, "--prompt", "Hi", "--system", "Be brief.", "--quiet")
    assert result == (0, "I got: system: Be brief.\nuser: Hi\nassistant: \n", "")


def test_raw_continues_the_prompt_as_it_is(capsys):
    assert generate(capsys, "--prompt", "Hi", "--raw", "--quiet") == (0, "I got: Hi\n", "")


def test_speed_is_told_on_stderr(capsys):
    _, out, err = generate(capsys, "--prompt", "Hi", "--raw")
    assert out == "I got: Hi\n"
    assert err.startswith("[3 prompt tokens in ") and err.endswith(" tokens/s]\n")


@pytest.mark.parametrize("arguments", [[], ["--prompt", "-"]])
def test_the_prompt_may_come_from_stdin(capsys, monkeypatch, arguments):
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    assert generate(capsys, "--raw", "--quiet", *arguments) == (0, "I got: two\nlines\n", "")


def test_max_tokens_and_stop(capsys):
    always = ("--prompt", "Hi", "--raw", "--quiet")
    assert generate(capsys, *always, "--max-tokens", "3")[1] == "I g\n"
    assert generate(capsys, *always, "--stop", "t:", "--stop", "x")[1] == "I go\n"
    end = str(fake_llm.CHARACTERS.index("o"))
    assert generate(capsys, *always, "--stop-token-id", end)[1] == "I g\n"


def test_json(capsys):
    code, out, _ = generate(capsys, "--prompt", "Hi", "--raw", "--json", "--quiet", "--temperature", "0")
    document = json.loads(out)
    assert list(document) == DOCUMENT_KEYS
    assert (code, document["text"], document["finish_reason"]) == (0, "I got: Hi", "stop")
    assert (document["prompt_tokens"], document["completion_tokens"]) == (3, 10)
    assert document["token_ids"][-1] == fake_llm.END


def test_json_with_logprobs(capsys):
    arguments = ["--prompt", "Hi", "--raw", "--json", "--quiet", "--logprobs", "2", "--max-tokens", "1"]
    document = json.loads(generate(capsys, *arguments)[1])
    assert list(document) == [*DOCUMENT_KEYS, "logprobs"]
    (entry,) = document["logprobs"]
    assert list(entry) == ["token_id", "token", "logprob", "top"]
    assert (entry["token"], len(entry["top"])) == ("I", 2)
    assert list(entry["top"][0]) == ["token_id", "token", "logprob"]


def test_sampling_options_reach_the_sampler(capsys, monkeypatch):
    seen = []

    class Spy(Exception):
        pass

    def add(engine, prompt_ids, params):
        seen.append(params)
        raise Spy

    monkeypatch.setattr("kumquant.engine.engine.Engine.add", add)
    generate(
        capsys, "--prompt", "Hi", "--max-tokens", "9", "--temperature", "0.5", "--top-k", "4",
        "--top-p", "0.9", "--min-p", "0.1", "--repetition-penalty", "1.1", "--presence-penalty", "-0.5",
        "--frequency-penalty", "0.25",
        "--logit-bias", "3=-1.5", "--logit-bias", "4=2", "--seed", "7", "--stop", "a", "--stop-token-id", "5",
        "--ignore-eos",
    )
    (params,) = seen
    values = {name: getattr(params, name) for name in params.__dataclass_fields__}
    assert values == {
        "max_tokens": 9, "temperature": 0.5, "top_k": 4, "top_p": 0.9, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": -0.5, "frequency_penalty": 0.25,
        "logit_bias": {3: -1.5, 4: 2.0}, "seed": 7, "stop": ("a",), "stop_token_ids": (5,),
        "ignore_eos": True, "logprobs": None,
    }


def test_threads_and_activations_reach_the_model(capsys, models):
    generate(capsys, "--prompt", "Hi", "--threads", "3")
    assert models[0].threads == 3
    assert generate(capsys, "--prompt", "Hi", "--activations", "int4")[0] == 2


@pytest.mark.parametrize(("arguments", "message"), [
    (["--prompt", "Hi", "--top-p", "2"], "top_p: value out of range; found 2.0; expected above 0, at most 1"),
    (["--prompt", "Hi", "--raw", "--system", "x"], "--system: a system message needs the chat template"),
    (["--prompt", "Hi", "--logprobs", "2"], "--logprobs: log probabilities come as JSON only"),
    (["--prompt", "x" * 5000],
     "the prompt is longer than the context; found 5019 tokens; expected at most 4096"),
])
def test_what_cannot_be_done_is_exit_code_2(capsys, arguments, message):
    code, out, err = generate(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"kumquant: error: {message}")


def interrupt_after(monkeypatch, steps):
    from kumquant.engine.engine import Engine

    step, left = Engine.step, [steps]

    def limited(engine):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return step(engine)

    monkeypatch.setattr(Engine, "step", limited)
    monkeypatch.setattr("kumquant.runtime.pace.MAX_CALL_STEPS", 1)  # else how many tokens had come is a matter of speed


def test_ctrl_c_keeps_the_text_so_far(capsys, monkeypatch):
    interrupt_after(monkeypatch, 5)
    assert generate(capsys, "--prompt", "Hi", "--raw", "--quiet") == (130, "I got\n", "")


def test_ctrl_c_keeps_the_json_so_far(capsys, monkeypatch):
    interrupt_after(monkeypatch, 5)
    code, out, _ = generate(capsys, "--prompt", "Hi", "--raw", "--quiet", "--json")
    assert (code, json.loads(out)["text"], json.loads(out)["finish_reason"]) == (130, "I got", "abort")
