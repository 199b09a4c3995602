"""Short stories written from a small grammar: a hero, a thing, a problem that the thing solves, an ending.

Templates are ordinary text with three marks: `[a|b|c]` picks one alternative (innermost first), `{name}` is a
slot of the story (see `Cast.slots`), and a slot may be capitalized (`{He}`). One story keeps one hero, one
friend and one thing, so names, pronouns and objects agree throughout. Only the standard library is used.
"""

# ruff: noqa: SIM905 (word lists read better as text)

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from things import ANY_USE, PROBLEMS, THINGS

GIRLS = "Mia Lily Anna Ivy Rosa Nora Ella Lucy Ruby Clara Daisy Hazel Molly Tessa Wendy Zoe".split()
BOYS = "Tom Ben Max Leo Sam Finn Hugo Oscar Toby Felix Jack Otto Pip Rufus Theo Milo".split()

ANIMALS = (
    "fox rabbit bear owl mouse cat dog duck frog hedgehog squirrel turtle goat pony beaver otter crow deer "
    "pig lamb badger mole hen penguin"
).split()
PEOPLE = "girl boy dragon robot knight princess farmer sailor wizard giant pirate baker".split()
HEROES = ANIMALS + PEOPLE
GENDER = {"girl": "f", "princess": "f", "hen": "f", "boy": "m", "knight": "m", "wizard": "m"}

TRAITS = "kind brave clever shy curious cheerful quiet gentle careful friendly small young".split()
PLACES = [
    "in a small house by the forest",
    "near a quiet river",
    "at the edge of a village",
    "on a green hill",
    "beside a blue lake",
    "in an old mill",
    "in a valley full of flowers",
    "under a tall oak tree",
    "by the sea",
    "at the foot of a mountain",
]


OPENINGS = [
    "Once upon a time there was a {trait} {kind} named {H}. {He} lived {place}.",
    "Once there was a {trait} {kind} who lived {place}. {His} name was {H}.",
    "Long ago a {trait} {kind} named {H} lived {place}.",
    "{H} was a {trait} {kind} who lived {place}.",
    "There once was a {kind} named {H}, who lived {place}. {He} was very {trait2}.",
]
ACQUIRE = [
    "One morning {he} found {an_o} [under a tree|by the road|in the grass|near the well].",
    "{His} [grandmother|grandfather|aunt|uncle] had given {him} {an_o}.",
    "{He} had {an_o} that {he} [took everywhere|kept beside {his} bed|had made {himself}].",
    "At the market {he} [bought|traded a jar of honey for] {an_o}.",
]
# Arc -> how the hero or the others feel about the thing; what is learned in the end.
ARCS = {
    "doubt": (
        '[The others laughed. "What do you want with that?" they asked|"That is no use at all," said the '
        "neighbors|Nobody thought that it was good for anything], but {H} kept it.",
        "[After that, nobody laughed at the {o} again|From then on, the neighbors never laughed at the {o}].",
    ),
    "pride": (
        "{H} [loved the {o} very much|was very proud of the {o}|looked at the {o} every day].",
        "[From that day on, {H} and {F} were best friends|{H} and {F} stayed friends for the rest of their "
        "lives|That night {H} put the {o} beside {his} bed and slept well].",
    ),
    "share": (
        "{H} did not want to share [it|the {o}] with anyone.",
        "[{H} learned that things are best when they are shared|And {H} learned that sharing makes everyone happy].",
    ),
    "wonder": (
        '"[What can I do with it|What is it good for]?" {he} [wondered|asked {himself}].',
        '[Now {H} knew what the {o} was good for|"Now I know what a {o} is good for," said {H}].',
    ),
}
MEET = [
    "{His} best friend was {a_friend} named {F}.",
    "{He} had a friend, {a_friend} named {F}.",
    "Next door lived {a_friend} named {F}.",
]
CLOSINGS = ["The end."]


def article(phrase: str) -> str:
    """The phrase behind "a" or "an"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def expand(template: str, slots: dict[str, str], rng: random.Random) -> str:
    """Choose the alternatives of a template and fill its slots; `{Slot}` capitalizes the value of `slot`."""
    while match := re.search(r"\[([^\[\]]*)\]", template):
        template = template[: match.start()] + rng.choice(match[1].split("|")) + template[match.end() :]

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        if name in slots:
            return slots[name]
        return slots[name[0].lower() + name[1:]].capitalize()

    return re.sub(r"\{(\w+)\}", fill, template)


@dataclass(frozen=True)
class Cast:
    """Who and what one story is about."""

    kind: str
    name: str
    gender: str
    friend_kind: str
    friend_name: str
    friend_gender: str
    thing: str

    def slots(self, rng: random.Random) -> dict[str, str]:
        """What a template may name: H, F, o (the thing), pronouns of the hero (he) and friend (f_he)."""
        he, his, him = ("she", "her", "her") if self.gender == "f" else ("he", "his", "him")
        f_he, f_his, f_him = ("she", "her", "her") if self.friend_gender == "f" else ("he", "his", "him")
        trait, trait2 = rng.sample(TRAITS, 2)
        adjective = rng.choice(THINGS[self.thing].adjectives.split("|")) if self.thing in THINGS else "little"
        return {
            "H": self.name, "F": self.friend_name, "kind": self.kind, "o": self.thing,
            "an_o": article(f"{adjective} {self.thing}"), "a_friend": article(self.friend_kind),
            "he": he, "his": his, "him": him, "himself": "herself" if he == "she" else "himself",
            "f_he": f_he, "f_his": f_his, "f_him": f_him,
            "trait": trait, "trait2": trait2, "place": rng.choice(PLACES),
        }  # fmt: skip


def pick_cast(
    rng: random.Random, kind: str, thing: str, name: str | None = None, friend_kind: str | None = None
) -> Cast:
    """Fill the open places of a cast: names that fit, a friend of another kind with another name."""
    if name is not None:
        gender = "f" if name in GIRLS else "m"
    else:
        gender = GENDER.get(kind) or rng.choice("fm")
        name = rng.choice(GIRLS if gender == "f" else BOYS)
    friend_kind = friend_kind or rng.choice([animal for animal in ANIMALS if animal != kind])
    friend_gender = GENDER.get(friend_kind) or rng.choice("fm")
    friend_name = rng.choice([n for n in (GIRLS if friend_gender == "f" else BOYS) if n != name])
    return Cast(kind, name, gender, friend_kind, friend_name, friend_gender, thing)


def write_story(rng: random.Random, cast: Cast) -> str:
    """One story about the cast, a single paragraph of 90 to 150 words."""
    slots = cast.slots(rng)
    own = THINGS[cast.thing].uses if cast.thing in THINGS else {}
    # A thing's own plots come first; the general ones are seen often enough to be learned for every thing.
    uses = own if own and rng.random() < 0.75 else ANY_USE
    problem = rng.choice(sorted(uses))
    happened, tried, ended = PROBLEMS[problem]
    arcs = ["doubt", "pride", "wonder"] if problem != "missing" else ["pride"]
    if problem in ("hungry", "cold", "rain", "gift"):
        arcs.append("share")
    arc = "pride" if problem == "gift" else rng.choice(arcs)
    feeling, lesson = ARCS[arc]
    if problem == "gift":
        lesson = "[From that day on, {H} and {F} were best friends|{H} learned that giving makes everyone happy]."
    parts = [
        rng.choice(OPENINGS), rng.choice(ACQUIRE), feeling, rng.choice(MEET), happened,
        rng.choice(tried.split("|")) if "[" not in tried else tried_choice(tried, rng),
        uses[problem], ended + ("" if ended.endswith(".") else "."), lesson,
    ]  # fmt: skip
    if rng.random() < 0.3:
        parts.append(rng.choice(CLOSINGS))
    text = " ".join(expand(part, slots, rng) for part in parts)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def tried_choice(tried: str, rng: random.Random) -> str:
    """One of the alternatives divided by a bar that stands outside brackets."""
    return rng.choice(re.split(r"\|(?![^\[]*\])", tried))


def story_request(rng: random.Random, kind: str, thing: str) -> str:
    """How a user asks for a story about a hero and a thing."""
    a, b = article(kind), article(thing)
    return rng.choice(
        [
            f"Tell me a story about {a} and {b}.",
            f"Tell me a story about {a} and {b}.",
            f"Tell me a short story about {a} and {b}.",
            f"Write a story about {a} and {b}.",
            f"Write a short story about {a} with {b}.",
            f"Can you tell me a story about {a} and {b}?",
            f"Please tell me a story about {a} and {b}.",
            f"I want to hear a story about {a} and {b}.",
            f"A story about {a} and {b}, please.",
            f"Make up a story about {a} who finds {b}.",
            f"Tell me a bedtime story about {a} and {b}.",
            f"Could you write a little story about {a} and {b}?",
        ]
    )
