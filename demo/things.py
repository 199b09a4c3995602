"""What stories are about: the problems that can happen, and the things that solve them, with how.

The texts are templates of the grammar in `stories.py`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Thing:
    """Something a story can be about: adjectives that suit it, and the problems it solves, with how."""

    adjectives: str
    uses: dict[str, str]


# Problem -> what happened; what was tried first; how it ended. {F} is the friend in trouble.
PROBLEMS: dict[str, tuple[str, str, str]] = {
    "dark": (
        "[One evening|That night] {F} did not come home. The [forest|wood] was [very dark|as dark as ink], "
        "and nobody could see the path.",
        "{H} called {F}'s name, but only the wind answered.|{H} waited by the door, but {F} did not come.",
        "[Together they walked home|They held on to each other and walked home|Soon they were both safe at home].",
    ),
    "river": (
        "One day it rained so hard that the [old bridge broke|bridge was washed away]. {F} was on the other "
        "side of the river and could not come home.",
        "{F} tried to [swim|jump across], but the water was too fast.|They looked for a shallow place, but "
        "there was none.",
        "{F} [was wet but happy|laughed with joy|was home in time for supper].",
    ),
    "cold": (
        "[One winter night|When winter came,] {F} was cold. The wind blew [snow|cold air] through the window "
        "of {f_his} house.",
        "{F} sat close to the fire, but {f_he} still shivered.|{F} drank hot tea, but it did not help for long.",
        "[Soon {F} was warm and fell asleep|{F} stopped shivering and smiled|Before long {F} was as warm as toast].",
    ),
    "hungry": (
        "One day {H} met {F} on the road. {F} looked sad, because {f_he} had not eaten [all day|since the morning].",
        "They looked for berries, but the bushes were empty.|{F} had asked at every house, but nobody had "
        "opened the door.",
        "[They ate until they were full|{F} ate and felt strong again|Soon {F} was not hungry anymore].",
    ),
    "sad": (
        "One day {F} was sad. {F} had [lost a game|broken a cup|quarreled with a neighbor] and did not want "
        "to [play|talk|come outside].",
        "{H} told {f_him} a joke, but {F} did not laugh.|{H} asked {f_him} to come for a walk, but {F} shook "
        "{f_his} head.",
        "[Soon {F} was laughing|Little by little {F} began to smile|By the evening {F} was happy again].",
    ),
    "locked": (
        "One day {F} found a [small|strange] door in the [garden wall|hillside], but the door was locked.",
        "They pushed and pulled, but the door did not move.|{F} knocked and knocked, but nobody opened.",
        "Behind the door was a garden full of [roses|apple trees|butterflies], and they [played there all "
        "day|sat there until the evening].",
    ),
    "rain": (
        "One afternoon {H} and {F} were far from home when it began to rain. {F} was [afraid of getting "
        "sick|wet and unhappy].",
        "They stood under a tree, but the rain came through the leaves.|They looked for a cave, but they "
        "could not find one.",
        "[They walked home slowly and sang all the way|When the sun came out, they were still dry|They came "
        "home dry and drank hot soup].",
    ),
    "lost": (
        "One day {H} and {F} went for a long walk. [A thick fog came down|They talked so much that they "
        "forgot the way], and soon they were lost.",
        "They walked in a circle and came back to the same tree.|They climbed a hill, but they saw only trees.",
        "[In the evening they were home again|Before dark they saw the lights of home|Soon they were sitting "
        "by the fire at home].",
    ),
    "hole": (
        "One morning {H} heard a cry for help. {F} had fallen into a deep hole and could not climb out.",
        "{H} held out {his} hand, but the hole was too deep.|{F} jumped as high as {f_he} could, but it was "
        "not high enough.",
        "[{F} was safe, and they danced for joy|{F} hugged {H} and thanked {him}|{F} was dusty but not hurt].",
    ),
    "tree": (
        "One day the wind blew {F}'s [hat|red scarf|favorite cap] into the top of a tall tree.",
        "{F} shook the tree, but nothing fell down.|They threw small stones, but they could not reach it.",
        "[{F} was very happy|{F} put it on and smiled|{F} clapped and cheered].",
    ),
    "dry": (
        "That summer it did not rain for weeks, and the flowers in {F}'s garden began to die.",
        "{F} looked at the sky every day, but there were no clouds.|{F} carried water in {f_his} hands, but "
        "it was not enough.",
        "[After a week the garden was green again|Soon the flowers lifted their heads|The flowers grew "
        "taller than ever].",
    ),
    # The last two suit any thing at all, so that a story about a thing never seen before still makes sense.
    "gift": (
        "Soon it was {F}'s birthday. {H} wanted to give {f_him} something nice, but {he} had no money.",
        "{H} looked in every corner of the house, but {he} found nothing.|{H} tried to bake a cake, but it burned.",
        "[{F} said that it was the best gift of all|{F} hugged {H} and would not let go|{F} was so happy "
        "that {f_he} danced].",
    ),
    "missing": (
        "But one morning the {o} was gone. {H} was very sad.",
        "{H} looked [under the bed|behind the house|in every box], but it was not there.|{H} asked the "
        "neighbors, but nobody had seen it.",
        "[{H} laughed and thanked {F}|{H} was so happy that {he} danced|{H} hugged {F} and smiled].",
    ),
}

ANY_USE = {
    "gift": "Then {he} looked at the {o}. [{He} put it in a box with a red ribbon|{He} cleaned it until it "
    "shone] and gave it to {F}.",
    "missing": "Then {F} came to help. They followed small tracks [through the garden|down the road], and "
    "{F} found the {o} [under a bush|behind a big stone|in the tall grass].",
}

THINGS: dict[str, Thing] = {
    "lantern": Thing(
        "old|small|bright",
        {
            "dark": "Then {H} lit the {o} and [went into the forest|held it up high]. In its light {he} saw "
            "{F} sitting [under a tree|behind a rock].",
            "lost": "Then {H} lit the {o}. [Its light fell on the path|In its light they saw the path], and "
            "they followed it.",
        },
    ),
    "candle": Thing(
        "white|small|long",
        {
            "dark": "Then {H} lit the {o} and put it in the window. {F} saw the little light from far away "
            "and walked toward it.",
        },
    ),
    "rope": Thing(
        "long|strong|thick",
        {
            "hole": "Then {H} tied the {o} to a tree and threw the end to {F}. {F} held on tight, and {H} "
            "pulled {f_him} up.",
            "river": "Then {H} threw the {o} across the water. {F} tied it around {f_his} waist, and {H} "
            "pulled {f_him} over.",
        },
    ),
    "ladder": Thing(
        "wooden|tall|old",
        {
            "tree": "Then {H} brought the {o} and leaned it against the tree. {He} climbed up [step by "
            "step|slowly] and brought it down.",
            "hole": "Then {H} let the {o} down into the hole, and {F} climbed out step by step.",
        },
    ),
    "key": Thing(
        "golden|small|rusty",
        {
            "locked": "Then {H} remembered the {o}. {He} put it into the lock and turned it, and the door opened.",
        },
    ),
    "umbrella": Thing(
        "red|big|yellow",
        {
            "rain": "Then {H} opened the {o} and held it over them both. [It was big enough for two|Not a "
            "drop fell on them].",
        },
    ),
    "map": Thing(
        "old|paper|large",
        {
            "lost": "Then {H} [opened|unfolded] the {o} and looked at it carefully. {He} found the river and "
            "then the way home.",
        },
    ),
    "compass": Thing(
        "small|silver|brass",
        {
            "lost": "Then {H} took out the {o}. The needle pointed north, and {H} knew that home was in the north.",
        },
    ),
    "bell": Thing(
        "silver|little|golden",
        {
            "dark": "Then {H} rang the {o} as loudly as {he} could. {F} heard the sound and followed it "
            "through the trees.",
            "lost": "Then {H} rang the {o}. A shepherd heard the sound, came to them and showed them the way.",
        },
    ),
    "whistle": Thing(
        "little|loud|tin",
        {
            "dark": "Then {H} blew the {o} three times. {F} heard it and walked toward the sound.",
            "hole": "Then {H} blew the {o}. The neighbors heard it, came running and pulled {F} out.",
        },
    ),
    "boat": Thing(
        "little|blue|wooden",
        {
            "river": "Then {H} pushed the {o} into the water and rowed across. {F} climbed in, and {H} rowed back.",
        },
    ),
    "blanket": Thing(
        "soft|woolen|warm",
        {
            "cold": "Then {H} brought the {o} and wrapped it around {F}.",
            "rain": "Then {H} spread the {o} over two branches, and they sat under it like in a tent.",
        },
    ),
    "scarf": Thing(
        "long|red|woolen",
        {
            "cold": "Then {H} took the {o} and wound it around {F}'s neck.",
        },
    ),
    "coat": Thing(
        "warm|thick|brown",
        {
            "cold": "Then {H} took the {o} and put it on {F}'s shoulders.",
            "rain": "Then {H} held the {o} over their heads like a roof.",
        },
    ),
    "pie": Thing(
        "sweet|big|warm",
        {
            "hungry": "Then {H} took out the {o} and cut it into two pieces. {He} gave {F} the bigger piece.",
        },
    ),
    "basket": Thing(
        "brown|round|big",
        {
            "hungry": "Then {H} opened the {o}. There were [bread and cheese|apples and nuts|cakes and "
            "plums] in it, and {he} shared them with {F}.",
        },
    ),
    "cake": Thing(
        "sweet|round|little",
        {
            "hungry": "Then {H} broke the {o} in two and gave {F} one half.",
            "sad": "Then {H} brought the {o} and put it on the table. They ate it together and talked.",
        },
    ),
    "drum": Thing(
        "red|round|loud",
        {
            "sad": "Then {H} began to play the {o}. Boom, boom, boom! {F}'s feet began to dance.",
            "lost": "Then {H} beat the {o}. The people of the village heard it and came to find them.",
        },
    ),
    "flute": Thing(
        "wooden|silver|small",
        {
            "sad": "Then {H} played a [song|soft tune] on the {o}. {F} listened and opened the door.",
        },
    ),
    "kite": Thing(
        "red|paper|big",
        {
            "sad": "Then {H} brought the {o}, and they ran up the hill. The {o} flew higher and higher.",
            "lost": "Then {H} let the {o} fly above the trees. {His} family saw it in the sky and came to find them.",
        },
    ),
    "ball": Thing(
        "red|round|bouncy",
        {
            "sad": "Then {H} rolled the {o} to {F}. {F} rolled it back, and soon they were playing.",
        },
    ),
    "book": Thing(
        "thick|old|blue",
        {
            "sad": "Then {H} opened the {o} and read a funny story aloud. {F} came closer to see the pictures.",
            "lost": "Then {H} opened the {o}. It said that moss grows on the north side of trees, and so "
            "they found the way.",
        },
    ),
    "bucket": Thing(
        "tin|big|old",
        {
            "dry": "Then {H} took the {o} to the river and filled it. {He} carried water to the flowers every day.",
        },
    ),
    "shovel": Thing(
        "small|strong|old",
        {
            "hole": "Then {H} took the {o} and dug steps into the side of the hole. {F} walked up the steps.",
            "dry": "Then {H} took the {o} and dug a little ditch from the river to the garden. The water "
            "came running in.",
        },
    ),
    "broom": Thing(
        "long|old|wooden",
        {
            "tree": "Then {H} brought the {o} and reached up with it. One push, and it came down.",
        },
    ),
    "mirror": Thing(
        "round|little|shiny",
        {
            "dark": "Then the moon came out. {H} held up the {o}, and the moonlight fell on the path and on {F}.",
        },
    ),
    "feather": Thing(
        "white|long|blue",
        {
            "sad": "Then {H} took the {o} and tickled {F}'s nose with it. {F} sneezed and had to laugh.",
        },
    ),
    "hat": Thing(
        "green|tall|funny",
        {
            "sad": "Then {H} put on the {o} and made a funny face. {F} tried not to laugh.",
            "rain": "Then {H} put the {o} on {F}'s head, and the rain ran off its brim.",
        },
    ),
    # Things that only the two general plots use.
    **{
        name: Thing(adjectives, {})
        for name, adjectives in {
            "spoon": "silver|wooden|big",
            "button": "blue|shiny|round",
            "ring": "golden|small|shiny",
            "stone": "smooth|round|green",
            "shell": "pink|white|large",
            "clock": "old|little|loud",
            "star": "paper|shiny|golden",
            "flower": "yellow|pretty|red",
            "pencil": "long|red|new",
            "cup": "blue|white|little",
            "box": "wooden|small|blue",
            "toy": "little|old|wooden",
            "coin": "golden|old|shiny",
            "apple": "red|big|shiny",
            "egg": "white|big|speckled",
            "balloon": "red|big|yellow",
            "car": "little|red|toy",
            "crown": "golden|paper|little",
            "sword": "wooden|shiny|old",
            "violin": "old|small|brown",
            "computer": "new|small|old",
            "guitar": "old|brown|small",
        }.items()
    },
}
