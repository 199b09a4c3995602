"""What the demo model is taught by heart: small tables of common knowledge."""

# ruff: noqa: SIM905 (word lists read better as text)

from __future__ import annotations


def pairs(text: str) -> list[tuple[str, str]]:
    """Read "a:b c:d" as [("a", "b"), ("c", "d")]; an underscore stands for a space."""
    split = [item.split(":") for item in text.split()]
    return [(a.replace("_", " "), b.replace("_", " ")) for a, b in split]


OPPOSITES = pairs(
    "hot:cold big:small fast:slow up:down day:night happy:sad wet:dry old:new light:dark open:closed "
    "full:empty hard:soft high:low long:short loud:quiet early:late left:right in:out good:bad rich:poor "
    "strong:weak near:far thick:thin clean:dirty first:last young:old heavy:light sweet:sour wide:narrow "
    "deep:shallow win:lose push:pull start:stop love:hate true:false before:after above:below inside:outside "
    "yes:no black:white north:south east:west summer:winter morning:evening give:take buy:sell laugh:cry "
    "arrive:leave remember:forget find:lose smooth:rough brave:afraid easy:difficult safe:dangerous "
    "always:never"
)
PLURALS = pairs(
    "cat:cats dog:dogs fox:foxes box:boxes bus:buses dish:dishes wish:wishes baby:babies city:cities "
    "berry:berries lady:ladies story:stories pony:ponies fly:flies leaf:leaves wolf:wolves knife:knives "
    "wife:wives life:lives child:children mouse:mice goose:geese foot:feet tooth:teeth man:men woman:women "
    "sheep:sheep fish:fish deer:deer ox:oxen tree:trees house:houses bird:birds book:books table:tables "
    "apple:apples potato:potatoes tomato:tomatoes hero:heroes watch:watches peach:peaches glass:glasses "
    "class:classes key:keys toy:toys day:days boy:boys monkey:monkeys star:stars lantern:lanterns bear:bears "
    "owl:owls flower:flowers shelf:shelves loaf:loaves"
)
COLORS = pairs(
    "grass:green the_sky:blue snow:white a_lemon:yellow a_banana:yellow blood:red the_sun:yellow coal:black "
    "a_carrot:orange milk:white a_strawberry:red chocolate:brown a_frog:green a_pumpkin:orange the_sea:blue "
    "a_tomato:red an_elephant:gray a_flamingo:pink the_night:black a_cucumber:green a_leaf:green "
    "a_plum:purple a_fire_truck:red salt:white a_polar_bear:white a_crow:black a_kumquat:orange"
)
SOUNDS = pairs(
    "cow:moo dog:woof cat:meow duck:quack sheep:baa pig:oink horse:neigh owl:hoot frog:croak bee:buzz "
    "snake:hiss lion:roar mouse:squeak rooster:cock-a-doodle-doo"
)
YOUNG = pairs(
    "dog:puppy cat:kitten cow:calf sheep:lamb horse:foal duck:duckling goose:gosling bear:cub lion:cub "
    "frog:tadpole goat:kid pig:piglet hen:chick deer:fawn swan:cygnet owl:owlet kangaroo:joey"
)
HOMES = pairs(
    "bird:a_nest bee:a_hive dog:a_kennel spider:a_web horse:a_stable rabbit:a_burrow bear:a_den pig:a_sty "
    "hen:a_coop ant:an_anthill beaver:a_lodge fish:the_water"
)
LEGS = pairs("dog:4 cat:4 bird:2 spider:8 ant:6 bee:6 horse:4 fish:0 snake:0 hen:2 cow:4 fly:6 duck:2 fox:4 bear:4")
SIDES = pairs("triangle:3 square:4 rectangle:4 pentagon:5 hexagon:6 octagon:8")
CAPITALS = pairs(
    "France:Paris Italy:Rome Spain:Madrid Germany:Berlin England:London Japan:Tokyo China:Beijing "
    "Russia:Moscow Greece:Athens Egypt:Cairo Portugal:Lisbon Austria:Vienna Poland:Warsaw Ireland:Dublin "
    "Norway:Oslo Sweden:Stockholm Finland:Helsinki Canada:Ottawa India:New_Delhi Turkey:Ankara Cuba:Havana "
    "Peru:Lima Hungary:Budapest the_United_States:Washington"
)
KINDS = {
    "animal": "fox rabbit bear owl mouse cat dog duck frog horse cow sheep lion tiger goat pig wolf".split(),
    "fruit": "apple pear plum cherry banana lemon peach grape orange kumquat strawberry".split(),
    "color": "red blue green yellow orange purple brown black white pink gray".split(),
    "tool": "hammer saw shovel broom ladder rake drill axe".split(),
    "vegetable": "carrot potato onion cucumber cabbage pumpkin bean".split(),
    "instrument": "drum flute violin piano guitar trumpet harp".split(),
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPELLING = (
    "fox cat dog owl bear frog duck goat lamb deer moon star sun tree leaf rain snow wind fire water river "
    "hill house door key rope map bell boat book ball drum kite hat coat cake pie apple lemon bread milk "
    "table chair lantern candle garden flower forest mountain village window winter summer spring morning "
    "evening friend happy brave clever gentle quiet yellow orange purple green brown white black seven eight "
    "three umbrella squirrel rabbit turtle penguin hedgehog kumquat"
).split()
SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "_ _ twenty thirty forty fifty sixty seventy eighty ninety".split()
ITEMS = (
    "apples pears plums marbles books coins eggs shells stones cookies stickers pencils buttons cards nuts "
    "balloons flowers toys stamps cherries"
).split()
PLAIN_FACTS = [  # question, answer, what a right reply contains
    ("How many days are in a week?", "There are 7 days in a week.", "7"),
    ("How many months are in a year?", "There are 12 months in a year.", "12"),
    ("How many hours are in a day?", "There are 24 hours in a day.", "24"),
    ("How many minutes are in an hour?", "There are 60 minutes in an hour.", "60"),
    ("How many seconds are in a minute?", "There are 60 seconds in a minute.", "60"),
    ("How many days are in a year?", "There are 365 days in a year.", "365"),
    ("How many letters are in the alphabet?", "There are 26 letters in the alphabet.", "26"),
    ("How many fingers are on a hand?", "There are 5 fingers on a hand.", "5"),
    ("Name the days of the week.", ", ".join(DAYS) + ".", ", ".join(DAYS)),
    ("Name the months of the year.", ", ".join(MONTHS) + ".", ", ".join(MONTHS)),
    ("Say the alphabet.", " ".join(LETTERS) + ".", " ".join(LETTERS)),
    ("Name the four seasons.", "Spring, summer, fall and winter.", "summer"),
    ("What is a kumquat?", "A kumquat is a small orange fruit.", "fruit"),
    ("What is the largest planet?", "Jupiter is the largest planet.", "Jupiter"),
    ("What planet do we live on?", "We live on the planet Earth.", "Earth"),
    ("What do bees make?", "Bees make honey.", "honey"),
    ("What do cows give us?", "Cows give us milk.", "milk"),
    ("What is ice made of?", "Ice is made of frozen water.", "water"),
]


def number_words(number: int) -> str:
    """A number from 0 to 99 in words: 42 -> "forty-two"."""
    if number < 20:
        return SMALL[number]
    return TENS[number // 10] + ("-" + SMALL[number % 10] if number % 10 else "")
