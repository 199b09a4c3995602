"""The demo model still answers after quantization: held-out questions, greedily, in q4f16_1, against a floor."""

from __future__ import annotations

import json
import re
from importlib.resources import files

from kumquant import LLM, SamplingParams, convert

DEMO_MODEL = files("kumquant") / "demo_model"
# Measured when the model was committed: 162 of 200, addition 30 of 30, subtraction 18 of 20.
FLOORS = {"all": 150, "addition": 27, "subtraction": 16}


def is_right(question: dict, reply: str) -> bool:
    expected = question["expected"]
    if question["check"] == "last_number":
        numbers = re.findall(r"-?\d+", reply)
        return bool(numbers) and int(numbers[-1]) == int(expected)
    assert question["check"] == "contains"
    return all(item.lower() in reply.lower() for item in ([expected] if isinstance(expected, str) else expected))


def test_the_demo_model_answers_held_out_questions(tmp_path):
    convert(str(DEMO_MODEL), tmp_path / "demo", quantization="q4f16_1")
    llm = LLM(tmp_path / "demo")
    questions = json.loads((DEMO_MODEL / "heldout.json").read_text(encoding="utf-8"))["questions"]
    prompts = [llm.chat_template.encode(question["messages"], llm.tokenizer) for question in questions]
    replies = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=200))
    right = dict.fromkeys(FLOORS, 0)
    for question, reply in zip(questions, replies, strict=True):
        for name in ("all", question["task"]):
            if name in right:
                right[name] += is_right(question, reply.text)
    assert len(questions) == 200
    assert all(right[name] >= floor for name, floor in FLOORS.items()), right
