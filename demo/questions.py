"""Questions with answers that can be checked: sums, word problems, small facts.

Every builder takes a random source and returns a `Question`, whose `key` names the *problem* (not its wording
for sums, wording included for facts). `is_held_out(key)` decides by a hash whether a problem may be trained
on; `draw` applies it. Only the standard library is used.
"""

# ruff: noqa: SIM905 (word lists read better as text)

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

import facts
from stories import BOYS, GIRLS

HELD_OUT_PERCENT = 10


@dataclass(frozen=True)
class Question:
    """One exchange. `check` and `expected`: see `generate_text.passes`."""

    task: str
    key: str
    prompt: str
    answer: str
    check: str
    expected: str


def is_held_out(key: str) -> bool:
    """Whether the problem with this key is kept out of the training text.

    A problem is held out if the first four bytes of the SHA-256 of its key, read as a number, are below
    `HELD_OUT_PERCENT` modulo 100. Keys that start with "basic:" are never held out (single-digit sums).
    """
    if key.startswith("basic:"):
        return False
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % 100 < HELD_OUT_PERCENT


def addition_key(a: int, b: int) -> str:
    """The same for a + b and b + a, so that a held-out sum is not seen the other way around either."""
    low, high = sorted((a, b))
    return ("basic:" if high < 10 else "") + f"{low}+{high}"


def subtraction_key(a: int, b: int) -> str:
    return ("basic:" if a < 10 else "") + f"{a}-{b}"


def multiplication_key(a: int, b: int) -> str:
    """A product is held out in one order only, its mirror is taught: so small a model learns the table by
    heart, and the held-out ones ask whether it has understood that a x b = b x a."""
    mirror_held_out = is_held_out(f"{b}x{a}")
    return ("basic:" if a == b or mirror_held_out else "") + f"{a}x{b}"


def number(rng: random.Random) -> int:
    """Mostly two digits, sometimes one."""
    return rng.randint(0, 9) if rng.random() < 0.2 else rng.randint(10, 99)


def addition(rng: random.Random) -> Question:
    a, b = number(rng), number(rng)
    prompt = rng.choice(
        [
            f"What is {a} + {b}?",
            f"What is {a} + {b}?",
            f"What is {a} + {b}?",
            f"{a} + {b}",
            f"{a} + {b} =",
            f"{a}+{b}",
            f"What's {a} + {b}?",
            f"What is {a} plus {b}?",
            f"Add {a} and {b}.",
            f"How much is {a} + {b}?",
            f"Calculate {a} + {b}.",
            f"Can you work out {a} + {b}?",
            f"Please add {a} and {b}.",
            f"{a} plus {b}?",
            f"What is the sum of {a} and {b}?",
            f"What do you get when you add {a} and {b}?",
            f"{a}+{b}=?",
            f"Compute {a}+{b}.",
        ]
    )
    return Question("addition", addition_key(a, b), prompt, f"{a} + {b} = {a + b}.", "last_number", str(a + b))


def subtraction(rng: random.Random) -> Question:
    b, a = sorted((number(rng), number(rng)))
    prompt = rng.choice(
        [
            f"What is {a} - {b}?",
            f"What is {a} - {b}?",
            f"What is {a} - {b}?",
            f"{a} - {b}",
            f"{a} - {b} =",
            f"{a}-{b}",
            f"What's {a} - {b}?",
            f"What is {a} minus {b}?",
            f"Subtract {b} from {a}.",
            f"How much is {a} - {b}?",
            f"Calculate {a} - {b}.",
            f"Can you work out {a} - {b}?",
            f"Take {b} away from {a}.",
            f"{a} minus {b}?",
            f"What is the difference between {a} and {b}?",
            f"{a}-{b}=?",
        ]
    )
    return Question("subtraction", subtraction_key(a, b), prompt, f"{a} - {b} = {a - b}.", "last_number", str(a - b))


def multiplication(rng: random.Random) -> Question:
    a, b = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.8:
        a, b = rng.randint(2, 10), rng.randint(2, 10)
    prompt = rng.choice(
        [
            f"What is {a} x {b}?",
            f"What is {a} x {b}?",
            f"What is {a} * {b}?",
            f"{a} x {b}",
            f"{a} * {b} =",
            f"{a}*{b}",
            f"What is {a} times {b}?",
            f"Multiply {a} by {b}.",
            f"How much is {a} times {b}?",
            f"Calculate {a} * {b}.",
            f"What is the product of {a} and {b}?",
            f"{a} times {b}?",
        ]
    )
    key = multiplication_key(a, b)
    return Question("multiplication", key, prompt, f"{a} x {b} = {a * b}.", "last_number", str(a * b))


def word_problem(rng: random.Random) -> Question:
    """A sum in a sentence; the reply writes the sum down first, then answers the question."""
    name, other = rng.sample(GIRLS + BOYS, 2)
    he = "she" if name in GIRLS else "he"
    item = rng.choice(facts.ITEMS)
    top = rng.choice([10, 20, 50])
    kind = rng.choice("add add add subtract subtract subtract multiply".split())
    if kind == "add":
        a, b = rng.randint(1, top), rng.randint(1, top)
        prompt, tail = rng.choice(
            [
                (f"{name} has {a} {item} and gets {b} more. How many {item} does {name} have now?", "has"),
                (
                    f"{name} has {a} {item}. {other} gives {name} {b} more. How many {item} does {name} have?",
                    "has",
                ),
                (f"{name} has {a} {item} and finds {b} more. How many {item} does {he} have?", "has"),
                (
                    f"There are {a} {item} in a box. {name} puts in {b} more. How many {item} are in the box?",
                    "box",
                ),
                (
                    f"{name} has {a} {item} and {other} has {b} {item}. How many {item} do they have together?",
                    "both",
                ),
                (f"{name} buys {a} {item} and then {b} more. How many {item} does {he} have?", "has"),
            ]
        )
        key, total, formula = addition_key(a, b), a + b, f"{a} + {b} = {a + b}."
    elif kind == "subtract":
        b, a = sorted((rng.randint(1, top), rng.randint(1, top)))
        prompt, tail = rng.choice(
            [
                (f"{name} has {a} {item} and loses {b}. How many {item} does {name} have left?", "left"),
                (
                    f"{name} has {a} {item} and gives {b} to {other}. How many {item} does {name} have left?",
                    "left",
                ),
                (
                    f"{name} had {a} {item}. {other} took {b} of them. How many {item} does {he} have left?",
                    "left",
                ),
                (
                    f"There are {a} {item} in a box. {name} takes out {b}. How many {item} are in the box?",
                    "box",
                ),
                (f"{name} has {a} {item} and sells {b}. How many {item} are left?", "left"),
            ]
        )
        key, total, formula = subtraction_key(a, b), a - b, f"{a} - {b} = {a - b}."
    else:
        a, b = rng.randint(2, 10), rng.randint(2, 10)
        prompt, tail = rng.choice(
            [
                (f"{name} has {a} boxes with {b} {item} each. How many {item} does {name} have?", "has"),
                (f"There are {a} bags with {b} {item} in each bag. How many {item} are there?", "there"),
            ]
        )
        key, total, formula = multiplication_key(a, b), a * b, f"{a} x {b} = {a * b}."
    ending = {
        "has": f"{name} has {total} {item}.", "left": f"{name} has {total} {item} left.",
        "box": f"There are {total} {item} in the box.", "both": f"Together they have {total} {item}.",
        "there": f"There are {total} {item}.",
    }[tail]  # fmt: skip
    return Question("word_problem", key, prompt, f"{formula} {ending}", "last_number", str(total))


def comparison(rng: random.Random) -> Question:
    a, b = rng.sample(range(100), 2)
    low, high = sorted((a, b))
    if rng.random() < 0.6:
        prompt = rng.choice(
            [
                f"Which is bigger, {a} or {b}?",
                f"Which number is larger, {a} or {b}?",
                f"Is {a} or {b} bigger?",
                f"What is more, {a} or {b}?",
            ]
        )
        answer = f"{high} is bigger than {low}."
    else:
        prompt = rng.choice(
            [
                f"Which is smaller, {a} or {b}?",
                f"Which number is less, {a} or {b}?",
                f"Is {a} or {b} smaller?",
            ]
        )
        answer = f"{low} is smaller than {high}."
    return Question("comparison", f"compare {low} {high}", prompt, answer, "contains", answer[:-1])


def sorting(rng: random.Random) -> Question:
    numbers = rng.sample(range(1, 30), rng.choice([3, 3, 4]))
    text = ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"
    prompt = rng.choice(
        [
            f"Put {text} in order.",
            f"Sort {text}.",
            f"Sort the numbers {text}.",
            f"Write {text} from smallest to largest.",
        ]
    )
    answer = ", ".join(map(str, sorted(numbers)))
    return Question("sorting", f"sort {sorted(numbers)}", prompt, answer + ".", "contains", answer)


def counting(rng: random.Random) -> Question:
    start, length = rng.randint(0, 60), rng.randint(3, 12)
    end, backward = start + length, rng.random() < 0.25
    first, last = (end, start) if backward else (start, end)
    prompt = f"Count {'down ' if backward else ''}from {first} to {last}."
    answer = ", ".join(map(str, range(end, start - 1, -1) if backward else range(start, end + 1)))
    return Question("counting", f"count {first} {last}", prompt, answer + ".", "contains", answer)


def next_number(rng: random.Random) -> Question:
    n = rng.randint(1, 99)
    if rng.random() < 0.5:
        prompt = rng.choice([f"What number comes after {n}?", f"Which number comes after {n}?"])
        return Question("next_number", f"after {n}", prompt, f"{n + 1} comes after {n}.", "contains", f"{n + 1} comes")
    prompt = rng.choice([f"What number comes before {n}?", f"Which number comes before {n}?"])
    return Question("next_number", f"before {n}", prompt, f"{n - 1} comes before {n}.", "contains", f"{n - 1} comes")


def even_or_odd(rng: random.Random) -> Question:
    n = rng.randint(0, 99)
    answer = f"{n} is {'odd' if n % 2 else 'even'}"
    prompt = rng.choice([f"Is {n} even or odd?", f"Is {n} odd or even?"])
    return Question("even_or_odd", f"parity {n}", prompt, answer + ".", "contains", answer)


def in_words(rng: random.Random) -> Question:
    n = rng.randint(0, 99)
    words = facts.number_words(n)
    prompt = rng.choice([f"Write {n} in words.", f"How do you write {n} in words?", f"Spell the number {n}."])
    return Question("in_words", f"words {n}", prompt, f"{n} is {words}.", "contains", f"{n} is {words}.")


def repeat(rng: random.Random) -> Question:
    """Copying: three or four words after a colon."""
    pool = facts.SPELLING + facts.KINDS["animal"] + facts.KINDS["color"] + facts.ITEMS
    words = " ".join(rng.sample(pool, rng.randint(2, 5)))
    prompt = rng.choice([f"Repeat after me: {words}", f"Say: {words}", f"Repeat: {words}"])
    return Question("repeat", f"repeat {words}", prompt, words, "contains", words)


def recall(rng: random.Random) -> Question:
    """A fact from a table. The key includes the wording: a held-out fact is taught in other words."""
    task = rng.choice(list(RECALL))
    table, wordings, reply = RECALL[task]
    item, answer = rng.choice(table)
    index = rng.randrange(len(wordings))
    prompt = fix_articles(wordings[index].format(a=item, b=answer))
    text = fix_articles(reply.format(a=item, A=item[0].upper() + item[1:], b=answer))
    return Question(task, f"{task} {index} {item}", prompt, text, "contains", text.rstrip("."))


def fix_articles(text: str) -> str:
    """ "a owl" -> "an owl"."""
    return re.sub(r"\b([Aa]) (?=[aeiou][a-z])", r"\1n ", text)


def _neighbors(names: list[str], step: int) -> list[tuple[str, str]]:
    return [(name, names[(i + step) % len(names)]) for i, name in enumerate(names)]


# Task -> (table of (a, b), wordings of the question, reply). {A} is {a} with a capital letter.
RECALL: dict[str, tuple[list[tuple[str, str]], list[str], str]] = {
    "opposite": (
        facts.OPPOSITES,
        ["What is the opposite of {a}?", "Opposite of {a}?", "What's the opposite of {a}?",
         "Tell me the opposite of {a}.", "Which word is the opposite of {a}?"],
        "The opposite of {a} is {b}.",
    ),
    "plural": (
        facts.PLURALS,
        ["What is the plural of {a}?", "Plural of {a}?", "What's the plural of {a}?",
         "One {a}, two what?", "Tell me the plural of {a}."],
        "The plural of {a} is {b}.",
    ),
    "color": (
        facts.COLORS,
        ["What color is {a}?", "Which color is {a}?", "Tell me the color of {a}.", "What is the color of "
        "{a}?"],
        "{A} is {b}.",
    ),
    "sound": (
        facts.SOUNDS,
        ["What does a {a} say?", "What sound does a {a} make?", "Which sound does the {a} make?"],
        "A {a} says {b}.",
    ),
    "young": (
        facts.YOUNG,
        ["What is a baby {a} called?", "What do you call a young {a}?", "What do you call a baby {a}?"],
        "A young {a} is called a {b}.",
    ),
    "home": (facts.HOMES, ["Where does a {a} live?", "What is the home of a {a}?"], "A {a} lives in {b}."),
    "legs": (
        facts.LEGS,
        ["How many legs does a {a} have?", "How many legs has a {a}?", "Tell me how many legs a {a} has."],
        "A {a} has {b} legs.",
    ),
    "sides": (
        facts.SIDES,
        ["How many sides does a {a} have?", "How many sides are in a {a}?", "Tell me how many sides a {a} "
        "has."],
        "A {a} has {b} sides.",
    ),
    "capital": (
        facts.CAPITALS,
        ["What is the capital of {a}?", "Capital of {a}?", "Which city is the capital of {a}?",
         "What's the capital of {a}?"],
        "The capital of {a} is {b}.",
    ),
    "kind": (
        [
            (item if kind == "color" else f"a {item}", f"a {kind}")
            for kind, items in facts.KINDS.items()
            for item in items
        ],
        ["What kind of thing is {a}?", "What is {a}?", "Is {a} an animal, a fruit or something else?"],
        "{A} is {b}.",
    ),
    "day_after": (
        _neighbors(facts.DAYS, 1),
        ["What day comes after {a}?", "Which day comes after {a}?", "Today is {a}. What day is tomorrow?",
         "What is the day after {a}?"],
        "{b} comes after {a}.",
    ),
    "day_before": (
        _neighbors(facts.DAYS, -1),
        ["What day comes before {a}?", "Which day comes before {a}?", "Today is {a}. What day was yesterday?",
         "What is the day before {a}?"],
        "{b} comes before {a}.",
    ),
    "month_after": (
        _neighbors(facts.MONTHS, 1),
        ["What month comes after {a}?", "Which month comes after {a}?", "What is the month after {a}?"],
        "{b} comes after {a}.",
    ),
    "month_before": (
        _neighbors(facts.MONTHS, -1),
        ["What month comes before {a}?", "Which month comes before {a}?", "What is the month before {a}?"],
        "{b} comes before {a}.",
    ),
    "letter_after": (
        list(zip(facts.LETTERS, facts.LETTERS[1:])),
        ["What letter comes after {a}?", "Which letter comes after {a}?", "What is the letter after {a}?"],
        "{b} comes after {a}.",
    ),
    "spelling": (
        [(word, "-".join(word)) for word in facts.SPELLING],
        ["Spell {a}.", "How do you spell {a}?", "Spell the word {a}.", "Can you spell {a}?"],
        "{A} is spelled {b}.",
    ),
    "first_letter": (
        [(word, word[0].upper()) for word in facts.SPELLING],
        ["What is the first letter of {a}?", "Which letter does {a} start with?", "What letter does {a} "
        "begin with?"],
        "{A} starts with the letter {b}.",
    ),
    "letters": (
        [(word, f"has {len(word)} letters") for word in facts.SPELLING],
        ["How many letters are in {a}?", "How many letters does {a} have?", "Count the letters in {a}."],
        "{A} {b}.",
    ),
}  # fmt: skip


def plain_fact(rng: random.Random) -> Question:
    """Single questions taught as they are; never held out."""
    prompt, answer, expected = rng.choice(facts.PLAIN_FACTS)
    return Question("fact", f"basic:{prompt}", prompt, answer, "contains", expected)


# Task builders and how often each is drawn.
BUILDERS: list[tuple[Callable[[random.Random], Question], float]] = [
    (addition, 24), (subtraction, 24), (multiplication, 10), (word_problem, 16), (comparison, 4),
    (sorting, 2),
    (counting, 2), (next_number, 2), (even_or_odd, 2), (in_words, 2), (repeat, 2), (recall, 20),
    (plain_fact, 3),
]  # fmt: skip


def draw(rng: random.Random, held_out: bool, builder: Callable[[random.Random], Question] | None = None) -> Question:
    """A question whose problem is held out, or is not, as asked; `plain_fact` has none that is held out."""
    while True:
        build = builder or rng.choices([b for b, _ in BUILDERS], [w for _, w in BUILDERS])[0]
        question = build(rng)
        if is_held_out(question.key) == held_out:
            return question
