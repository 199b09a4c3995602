"""The text that the demo model learns from: reproducible, right, and free of the held-out problems."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "demo"))

import generate_text  # noqa: E402
import questions  # noqa: E402
from generate_text import HELD_OUT_TASKS, Conversation, generate, passes  # noqa: E402

HELD_OUT_JSON = ROOT / "src/kumquant/demo_model/heldout.json"
SUM = re.compile(r"(\d+) ([+x-]) (\d+) = (\d+)")
KEYS = {
    "+": questions.addition_key,
    "-": questions.subtraction_key,
    "x": questions.multiplication_key,
}


def lines(split: str, seed: int, count: int) -> list[str]:
    return [json.dumps(generate_text.as_line(c, split)) for c in generate(split, seed, count)]


@pytest.fixture(scope="module")
def training() -> list[Conversation]:
    return list(generate("train", 7, 20_000))


def replies(conversations: list[Conversation]) -> list[str]:
    return [m["content"] for c in conversations for m in c.messages if m["role"] == "assistant"]


def test_same_seed_gives_same_text() -> None:
    assert lines("train", 5, 50) == lines("train", 5, 50)
    assert lines("train", 5, 50) != lines("train", 6, 50)


def test_text_is_the_one_that_the_shipped_model_was_trained_on() -> None:
    """A changed generator needs a new model: then, and only then, change these sums."""
    digests = {
        split: hashlib.sha256("\n".join(lines(split, 1, 3000)).encode()).hexdigest()[:16]
        for split in ("train", "heldout")
    }
    assert digests == {"train": "89b2bc2d221b2006", "heldout": "b3ff27d406e6a58f"}


def test_no_held_out_problem_is_trained_on(training: list[Conversation]) -> None:
    """By the generator's own keys, and by every sum that can be read from the text."""
    keys = {key for conversation in training for key in conversation.keys}
    assert len(keys) > 10_000
    assert not [key for key in keys if questions.is_held_out(key)]
    sums = [match for reply in replies(training) for match in SUM.finditer(reply)]
    assert len(sums) > 10_000
    assert not [m[0] for m in sums if questions.is_held_out(KEYS[m[2]](int(m[1]), int(m[3])))]


def test_held_out_prompts_are_not_trained_on(training: list[Conversation]) -> None:
    """What is asked last is new, but for the two tasks whose answer is only in the chat's history."""
    seen = {m["content"].lower() for c in training for m in c.messages if m["role"] == "user"}
    for conversation in generate("heldout", 3, 1600):
        prompt = conversation.messages[-2]["content"].lower()
        if conversation.task not in ("name", "story_follow_up", "chained_sum"):
            assert prompt not in seen


def test_about_a_tenth_is_held_out() -> None:
    sums = [questions.addition_key(a, b) for a in range(10, 100) for b in range(a, 100)]
    share = sum(map(questions.is_held_out, sums)) / len(sums)
    assert 0.08 < share < 0.12
    assert questions.addition_key(15, 27) == questions.addition_key(27, 15)


def test_a_held_out_product_is_taught_the_other_way_around() -> None:
    products = [(a, b) for a in range(11) for b in range(11)]
    held_out = [(a, b) for a, b in products if questions.is_held_out(questions.multiplication_key(a, b))]
    assert held_out
    for a, b in held_out:
        assert not questions.is_held_out(questions.multiplication_key(b, a))


def test_every_sum_in_the_text_is_right(training: list[Conversation]) -> None:
    for match in (match for reply in replies(training) for match in SUM.finditer(reply)):
        a, b = int(match[1]), int(match[3])
        assert int(match[4]) == {"+": a + b, "-": a - b, "x": a * b}[match[2]], match[0]


def test_held_out_answers_pass_their_own_check() -> None:
    for task in HELD_OUT_TASKS:
        for conversation in generate("heldout", 2, 100, [task]):
            answer = conversation.messages[-1]["content"]
            assert passes(conversation.check, conversation.expected, answer), answer


def test_checks_refuse_wrong_replies() -> None:
    assert not passes("last_number", "42", "27 + 15 = 43.")
    assert not passes("last_number", "42", "I do not know.")
    assert not passes("contains", ["fox", "lantern"], "Once there was a fox.")
    with pytest.raises(ValueError, match="unknown check"):
        passes("equals", "42", "42")


def test_stories_fill_every_slot(training: list[Conversation]) -> None:
    for conversation in training:
        for text in [conversation.text, *(m["content"] for m in conversation.messages)]:
            assert not re.search(r"[{}\[\]|_]|\ba [aeiou][a-z]", text), text


def test_shipped_questions_are_the_generated_ones() -> None:
    if not HELD_OUT_JSON.exists():
        pytest.skip("the demo model is not in this checkout")
    assert json.loads(HELD_OUT_JSON.read_text()) == generate_text.held_out_set()


def test_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown split"):
        list(generate("test", 1, 1))
