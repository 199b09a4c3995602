"""Write the text that the demo model is trained on, and the held-out questions that it is tested on.

    python demo/generate_text.py --split train --count 5 --seed 1
    python demo/generate_text.py --split heldout --count 200 --seed 1

prints JSON lines. A training line has `messages` (or `text`, for plain text without a chat). A held-out line
has `task`, `messages` (the last one is the user's), `answer` (a model reply), `check` and `expected`:

    last_number  the last integer in the reply must be `expected`
    contains     `expected` must occur in the reply, in any case; a list means all of them

The same seed and split give the same lines on every machine. No held-out problem is in the training text; how
that is decided is said at `questions.is_held_out`. Only the standard library is used.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import questions
import stories
from questions import Question, draw, is_held_out

Message = dict[str, str]

SYSTEM_PROMPTS = [
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful AI assistant.",
    "You are Kumquant's demo model.", "You are a friendly assistant.", "Answer briefly.", "Be brief and "
    "kind.",
    "You are a helpful assistant. Answer the user's questions.", "You tell stories and do sums.",
    "You are a teacher for children.", "You are a small model that runs on a plain CPU.", "Be concise.",
]  # fmt: skip
ME = "Kumquant's demo model"
SMALL_TALK: list[tuple[str, list[str]]] = [
    ("Hello!|Hello|Hi|Hi!|Hi there!|Hey|Good morning!|Good evening!|Hello there.|hey there", [
        f"Hello! I am {ME}. I can tell a short story or do a small sum.",
        "Hello! Would you like a story or a sum?",
        "Hi! What can I do for you?",
    ]),
    ("Who are you?|What are you?|What is your name?|What's your name?|Tell me about yourself.|Introduce "
    "yourself.|"
     "Which model are you?|What model are you?", [
        f"I am {ME}, a tiny language model. I know short stories, small sums and a few simple facts.",
        f"I am {ME}. I have fewer than four million parameters, so please ask me simple things.",
    ]),
    ("What can you do?|Help|How can you help me?|What do you know?|What can I ask you?|help me", [
        "I can tell a short story about an animal and a thing, do small sums, and answer simple questions. "
        "Try: Tell me a story about a fox and a lantern.",
        "I can tell short stories and do small sums. Try: What is 27 + 15?",
    ]),
    ("Who made you?|Where do you come from?|Who trained you?|How were you trained?", [
        f"I am {ME}. A script in the Kumquant repository trained me on text that another script wrote.",
    ]),
    ("How are you?|How are you today?|How do you do?|How is it going?", [
        "I am fine, thank you. What can I do for you?",
        "Very well, thank you! Would you like a story?",
    ]),
    ("Are you a person?|Are you human?|Are you real?|Are you a robot?|Are you an AI?", [
        "I am not a person. I am a tiny language model.",
    ]),
    ("How big are you?|How many parameters do you have?|How large are you?", [
        "I am tiny: fewer than four million parameters.",
    ]),
    ("Thank you!|Thanks|Thanks!|Thank you very much.|thank you|Great, thanks.|That was nice.", [
        "You are welcome!", "You are welcome! Would you like another one?", "With pleasure!",
    ]),
    ("Goodbye!|Bye|Bye!|See you later.|Good night!|See you!", ["Goodbye!", "Goodbye! Have a nice day."]),
    ("Tell me a joke.|Do you know a joke?|Make me laugh.|Another joke, please.", [
        "Why did the duck cross the road? Because the hen was on holiday.",
        "What do you call a bear with no teeth? A gummy bear.",
        "Why did the clock go to school? It wanted to be on time.",
        "What do you call a sleeping dinosaur? A dino-snore.",
    ]),
]  # fmt: skip
UNKNOWN = (  # noqa: SIM905
    "Who won the football match?|What is the meaning of life?|What is the weather today?|Write a Python "
    "program.|Explain quantum physics.|Who is the president?|What time is it?|Translate this into "
    "French.|Write a letter to my boss.|What is the best phone?|How do I cook rice?|Who wrote Hamlet?|What "
    "is the news?|Can you drive a car?|How do I fix my computer?|What is machine learning?|Summarize this "
    "article.|What is the price of gold?|How far is the moon?|Write an essay about history.|Who was "
    "Napoleon?|What is DNA?|How does an engine work?|Give me a recipe for soup.|What should I do with my "
    "money?|Explain the internet.|What is the speed of light?|Why is the sky blue?|How old is the "
    "universe?|Who invented the telephone?|What is electricity?|Sing a song.|What is photosynthesis?|Fix "
    "this code.|What year is it?|Who are the Beatles?|How do planes fly?|What is a neural network?|What is "
    "love?"
).split("|")
DO_NOT_KNOW = [
    "I do not know that. I am a tiny model: I can tell short stories and do small sums.",
    "That is too hard for me. I am very small, but I can tell you a story.",
]


@dataclass
class Conversation:
    """A chat, or plain text (`text`, then without messages). `keys` names every problem that occurs in it."""

    messages: list[Message] = field(default_factory=list)
    text: str = ""
    keys: list[str] = field(default_factory=list)
    task: str = ""
    check: str = ""
    expected: str | list[str] = ""

    def say(self, prompt: str, answer: str) -> None:
        self.messages.append({"role": "user", "content": prompt})
        self.messages.append({"role": "assistant", "content": answer})

    def ask(self, question: Question) -> None:
        """Add a question with its answer; the last one asked is the one that is checked."""
        self.say(question.prompt, question.answer)
        self.keys.append(question.key)
        self.task, self.check, self.expected = question.task, question.check, question.expected


def passes(check: str, expected: str | list[str], reply: str) -> bool:
    """Whether a reply is right, by the rules in the docstring of this file."""
    if check == "last_number":
        numbers = re.findall(r"-?\d+", reply)
        return bool(numbers) and numbers[-1] == expected
    if check == "contains":
        wanted = [expected] if isinstance(expected, str) else expected
        return all(item.lower() in reply.lower() for item in wanted)
    raise ValueError(f"unknown check {check!r}: expected last_number or contains")


def story_key(kind: str, thing: str) -> str:
    return f"story {kind} {thing}"


def pick_story(rng: random.Random, held_out: bool) -> tuple[str, str]:
    """A hero and a thing whose combination is held out, or is not."""
    while True:
        kind, thing = rng.choice(stories.HEROES), rng.choice(list(stories.THINGS))
        if is_held_out(story_key(kind, thing)) == held_out:
            return kind, thing


def add_story(conversation: Conversation, rng: random.Random, held_out: bool) -> stories.Cast:
    """A request for a story and the story. Held-out requests always name the hero and the thing."""
    kind, thing = pick_story(rng, held_out)
    name = friend = None
    form = rng.random() if not held_out else 0.0
    if form < 0.7:
        prompt = stories.story_request(rng, kind, thing)
    elif form < 0.78:
        name = rng.choice(
            [
                n
                for n in stories.GIRLS + stories.BOYS
                if stories.GENDER.get(kind, "f" if n in stories.GIRLS else "m") == ("f" if n in stories.GIRLS else "m")
            ]
        )
        prompt = rng.choice(
            [
                f"Tell me a story about {stories.article(kind)} named {name} and {stories.article(thing)}.",
                f"Write a story about {name} the {kind} and {stories.article(thing)}.",
            ]
        )
    elif form < 0.86:
        friend = rng.choice([animal for animal in stories.ANIMALS if animal != kind])
        prompt = rng.choice(
            [
                f"Tell me a story about {stories.article(kind)} and {stories.article(friend)}.",
                f"Write a short story about {stories.article(kind)} and {stories.article(friend)}.",
            ]
        )
    elif form < 0.92:
        prompt = rng.choice(
            [
                f"Tell me a story about {stories.article(kind)}.",
                f"Write a story about {stories.article(kind)}.",
            ]
        )
    else:
        prompt = rng.choice(
            [
                "Tell me a story.",
                "Tell me a short story.",
                "Write a story.",
                "Tell me another story.",
                "I want a story.",
                "Can you tell me a story?",
                "Tell me a bedtime story.",
            ]
        )
    cast = stories.pick_cast(rng, kind, thing, name=name, friend_kind=friend)
    conversation.say(prompt, stories.write_story(rng, cast))
    conversation.keys.append(story_key(kind, thing))
    conversation.task, conversation.check = "story", "contains"
    conversation.expected = [kind, thing, cast.name] if name else [kind, thing]
    return cast


def add_follow_up(conversation: Conversation, rng: random.Random, cast: stories.Cast) -> None:
    """A question about the story just told: the answer is only in the chat's history."""
    options = [
        (f"What was the name of the {cast.kind}?", f"The {cast.kind} was named {cast.name}.", cast.name),
        (f"What was the {cast.kind} called?", f"The {cast.kind} was named {cast.name}.", cast.name),
        (f"Who was {cast.name}?", f"{cast.name} was {stories.article(cast.kind)}.", cast.kind),
        (
            f"Who was the friend of {cast.name}?",
            f"{cast.name}'s friend was {cast.friend_name}.",
            cast.friend_name,
        ),
        (
            f"What was {cast.name}'s friend called?",
            f"{cast.name}'s friend was {cast.friend_name}.",
            cast.friend_name,
        ),
        (f"What did {cast.name} have?", f"{cast.name} had {stories.article(cast.thing)}.", cast.thing),
    ]
    prompt, answer, expected = rng.choice(options)
    conversation.say(prompt, answer)
    conversation.task, conversation.check, conversation.expected = "story_follow_up", "contains", expected


def add_name(conversation: Conversation, rng: random.Random) -> None:
    """The user says a name, talks about something else, and asks for the name."""
    name = rng.choice(stories.GIRLS + stories.BOYS)
    conversation.say(
        rng.choice([f"My name is {name}.", f"Hello, I am {name}.", f"Hi! I'm {name}.", f"Please call me {name}."]),
        rng.choice([f"Nice to meet you, {name}!", f"Hello, {name}! What can I do for you?"]),
    )
    for _ in range(rng.randint(0, 2)):
        conversation.ask(draw(rng, held_out=False))
    prompt = rng.choice(["What is my name?", "Do you remember my name?", "What's my name?", "Who am I?"])
    conversation.say(prompt, f"Your name is {name}.")
    conversation.task, conversation.check, conversation.expected = "name", "contains", f"Your name is {name}"


def add_chained_sum(conversation: Conversation, rng: random.Random, held_out: bool) -> None:
    """A sum, and one that goes on from its result: "Now add 5." The last one is held out or not, as asked."""
    first = draw(rng, False, rng.choice([questions.addition, questions.subtraction]))
    result = int(first.expected)
    while True:
        number, is_add = rng.randint(1, 30), rng.random() < 0.5
        if not is_add and number > result:
            continue
        key = questions.addition_key(result, number) if is_add else questions.subtraction_key(result, number)
        if is_held_out(key) == held_out:
            break
        if rng.random() < 0.02:  # a result near 0 may have no such problem: start again
            return add_chained_sum(conversation, rng, held_out)
    conversation.ask(first)
    if is_add:
        prompt = rng.choice([f"Now add {number}.", f"Add {number} to that.", f"And plus {number}?"])
        answer, value = f"{result} + {number} = {result + number}.", result + number
    else:
        prompt = rng.choice([f"Now subtract {number}.", f"Take {number} away from that.", f"And minus {number}?"])
        answer, value = f"{result} - {number} = {result - number}.", result - number
    conversation.ask(Question("chained_sum", key, prompt, answer, "last_number", str(value)))
    return None


def small_talk(conversation: Conversation, rng: random.Random) -> None:
    if rng.random() < 0.3:
        conversation.say(rng.choice(UNKNOWN), rng.choice(DO_NOT_KNOW))
    else:
        prompts, answers = rng.choice(SMALL_TALK)
        conversation.say(rng.choice(prompts.split("|")), rng.choice(answers))


def roughen(conversation: Conversation, rng: random.Random) -> None:
    """Some users write in lower case or leave out the last mark; the model should not mind."""
    for message in conversation.messages:
        if message["role"] == "user" and not message["content"].startswith(("Spell", "Repeat", "Say")):
            if rng.random() < 0.06:
                message["content"] = message["content"].rstrip(".?!")
            if rng.random() < 0.06:
                message["content"] = message["content"].lower()


def train_conversation(rng: random.Random, max_turns: int = 5) -> Conversation:
    """One document of the training text. `max_turns` bounds the exchanges in a chat of questions."""
    conversation = Conversation()
    kind = rng.random()
    if kind < 0.03:  # plain text, so that a prompt without a chat is continued sensibly
        hero, thing = pick_story(rng, held_out=False)
        conversation.text = stories.write_story(rng, stories.pick_cast(rng, hero, thing))
        conversation.keys.append(story_key(hero, thing))
        return conversation
    if rng.random() < 0.4:
        conversation.messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    if kind < 0.27:
        if rng.random() < 0.15:
            small_talk(conversation, rng)
        cast = add_story(conversation, rng, held_out=False)
        if rng.random() < 0.35:
            add_follow_up(conversation, rng, cast)
    elif kind < 0.33:
        add_name(conversation, rng)
    elif kind < 0.40:
        add_chained_sum(conversation, rng, held_out=False)
    elif kind < 0.46:
        for _ in range(rng.randint(1, 3)):
            small_talk(conversation, rng)
    else:
        for _ in range(rng.randint(1, max_turns)):
            if rng.random() < 0.03:
                small_talk(conversation, rng)
            conversation.ask(draw(rng, held_out=False))
    if max_turns > 5 and rng.random() < 0.7:  # a longer chat: other things, then perhaps another story
        for _ in range(rng.randint(1, max_turns)):
            conversation.ask(draw(rng, held_out=False))
        if rng.random() < 0.5:
            cast = add_story(conversation, rng, held_out=False)
            add_follow_up(conversation, rng, cast)
    roughen(conversation, rng)
    return conversation


HELD_OUT_TASKS = [
    "addition", "subtraction", "multiplication", "word_problem", "chained_sum", "story", "comparison",
    "sorting", "counting", "next_number", "even_or_odd", "in_words", "repeat", "recall", "name",
    "story_follow_up",
]  # fmt: skip


def held_out_conversation(rng: random.Random, task: str) -> Conversation:
    """A chat that ends in a held-out problem of the task, or in one whose answer only its history holds."""
    conversation = Conversation()
    if rng.random() < 0.4:
        conversation.messages.append({"role": "system", "content": rng.choice(SYSTEM_PROMPTS)})
    if task == "story":
        add_story(conversation, rng, held_out=True)
    elif task == "story_follow_up":
        add_follow_up(conversation, rng, add_story(conversation, rng, held_out=True))
    elif task == "name":
        add_name(conversation, rng)
    elif task == "chained_sum":
        add_chained_sum(conversation, rng, held_out=True)
    else:
        conversation.ask(draw(rng, True, getattr(questions, task)))
    return conversation


def generate(split: str, seed: int, count: int, tasks: list[str] | None = None) -> Iterator[Conversation]:
    """The first `count` conversations of a split. Held-out ones go through the tasks in turn."""
    if split not in ("train", "heldout"):
        raise ValueError(f"unknown split {split!r}: expected train or heldout")
    rng = random.Random(f"kumquant demo {split} {seed}")
    tasks = tasks or HELD_OUT_TASKS
    for index in range(count):
        yield (train_conversation(rng) if split == "train" else held_out_conversation(rng, tasks[index % len(tasks)]))


def as_line(conversation: Conversation, split: str) -> dict[str, object]:
    """The JSON form of a conversation, described at the top of this file."""
    if split == "train":
        return {"messages": conversation.messages} if conversation.messages else {"text": conversation.text}
    return {
        "task": conversation.task, "messages": conversation.messages[:-1],
        "answer": conversation.messages[-1]["content"], "check": conversation.check,
        "expected": conversation.expected,
    }  # fmt: skip


def held_out_set() -> dict[str, object]:
    """The content of `heldout.json`, which ships with the model: 200 questions, sums the most often."""
    tasks = [*HELD_OUT_TASKS, "addition", "addition", "subtraction", "word_problem"]
    conversations = generate("heldout", 1, 200, tasks)
    return {
        "about": "Questions that the demo model was not trained on; see demo/README.md in the repository.",
        "checks": {
            "last_number": "the last integer in the reply must be `expected`",
            "contains": "`expected` must occur in the reply, in any case; of a list, every item",
        },
        "questions": [as_line(conversation, "heldout") for conversation in conversations],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Write training text or held-out questions as JSON lines.")
    parser.add_argument("--split", choices=["train", "heldout"], default="train")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write-set", type=Path, help="write heldout.json to this file and stop")
    arguments = parser.parse_args()
    if arguments.write_set:
        arguments.write_set.write_text(json.dumps(held_out_set(), indent=1) + "\n")
        return
    for conversation in generate(arguments.split, arguments.seed, arguments.count):
        print(json.dumps(as_line(conversation, arguments.split)))


if __name__ == "__main__":
    main()
