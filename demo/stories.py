"""Simple children's stories from a hand-written grammar: the text that the demo model learns and is measured on.

Every story has a hero and one friend. Heroes and friends draw their names from two disjoint lists, and every choice
that a later sentence depends on (the time of day, what is stuck where, who was hurt how) is made once, so that a model
of a million parameters can keep track of who is who. All text is this project's own.

The same count and seed give the same stories on every machine: ``random.Random`` promises that for ``random()``, and
nothing else is drawn from.

Example
-------
``python -m tellme.demo.stories --count 1000 --seed 1 --out stories.txt`` writes one story per line.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

HEROES = {
    "she": ("Mia", "Anna", "Emma", "Kate", "Tess"),
    "he": ("Ben", "Sam", "Leo", "Finn", "Noah"),
}
FRIENDS = ("Clara", "David", "Grace", "Hugo", "Ivy", "Jack", "Olive", "Peter", "Rose", "Will")

#: Species and the word that describes a friend of that species.
ANIMALS = {
    "cat": "soft",
    "dog": "brown",
    "fox": "red",
    "rabbit": "white",
    "bear": "big",
    "mouse": "small",
    "frog": "green",
    "owl": "old",
    "duck": "yellow",
    "hedgehog": "round",
    "squirrel": "quick",
    "goat": "gray",
    "horse": "black",
    "bird": "blue",
    "turtle": "slow",
}

#: What a hero is like, and what that means.
TRAITS = {
    "kind": "always helped others",
    "brave": "was not afraid of the dark",
    "shy": "did not talk very much",
    "clever": "liked to solve puzzles",
    "happy": "smiled all day long",
    "quiet": "liked to listen to the wind",
    "curious": "wanted to know everything",
    "gentle": "never hurt anyone",
    "cheerful": "sang from morning until night",
    "careful": "looked twice before crossing the bridge",
    "little": "wanted to be tall",
    "small": "wanted to be tall",
    "young": "had a lot to learn",
}


@dataclass(frozen=True)
class Place:
    """Where a hero lives: ``in a forest``, the word for it later on (``the forest``) and who lives there."""

    where: str
    short: str
    everyone: str


PLACES = (
    Place("in a forest", "the forest", "Everyone in the forest"),
    Place("in a village", "the village", "Everyone in the village"),
    Place("in a garden", "the garden", "Everyone in the garden"),
    Place("on a farm", "the farm", "Everyone on the farm"),
    Place("in a valley", "the valley", "Everyone in the valley"),
    Place("in a town by the sea", "the town", "Everyone in the town"),
    Place("in a house on a hill", "the house", "Everyone on the hill"),
    Place("in a little cottage near the river", "the river", "Everyone near the river"),
    Place("in a castle", "the castle", "Everyone in the castle"),
    Place("at a mill by the lake", "the mill", "Everyone at the mill"),
)

THINGS = (
    "red ball",
    "wooden boat",
    "silver key",
    "blue kite",
    "warm hat",
    "golden coin",
    "small lamp",
    "picture book",
    "music box",
    "green umbrella",
    "toy horse",
    "round stone",
)
HIDING_PLACES = (
    "under the old bridge",
    "behind the big tree",
    "in the tall grass",
    "near the well",
    "on the roof",
    "inside a hollow log",
    "at the bottom of the hill",
    "beside the stream",
    "under the bed",
    "in the barn",
)
#: Food as it is served, and the pronoun for it.
FOODS = (
    ("an apple", "it"),
    ("some cake", "it"),
    ("some pie", "it"),
    ("some bread", "it"),
    ("some soup", "it"),
    ("some honey", "it"),
    ("some cheese", "it"),
    ("berries", "them"),
    ("carrots", "them"),
    ("cookies", "them"),
)
TRAPS = ("a deep hole", "the mud", "a thorn bush", "an old net", "the branches of a tall tree")
TOOLS = ("a long rope", "a strong stick")
#: A wish, and the animals that would not wish it.
WISHES = (
    ("to fly like a bird", ("bird", "owl", "duck")),
    ("to learn to swim", ("duck", "frog", "turtle")),
    ("to climb the high mountain", ("goat",)),
    ("to sing a song for the king", ()),
    ("to bake the best cake in the world", ()),
    ("to paint the moon", ()),
    ("to build a wooden boat", ()),
)
SORROWS = ("sad", "worried", "tired", "scared", "lonely", "upset")
JOYS = ("happy", "proud", "glad", "thankful", "full of joy")
WEATHER = ("sunny", "rainy", "windy", "cold", "warm", "cloudy", "snowy", "bright")

GOLD = "A true friend is worth more than gold."
KIND = "Being kind is always the right thing to do."
ASK = "If you ask for help, someone will hear you."
SHARE = "It is good to share."
BETTER = "Good things are better when you share them."
SMALL = "Even small friends can do big things."
BRAVE = "Brave does not mean that you are never afraid."
TRY = "It is better to try than to give up."
PATIENCE = "Patience makes hard work easy."


def pick(rng: random.Random, options: Sequence[T]) -> T:
    """One of `options`, each as likely as the others."""
    return options[int(rng.random() * len(options))]


def with_article(words: str) -> str:
    """``a fox``, ``an owl``."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def capital(words: str) -> str:
    """`words` with a capital first letter."""
    return words[0].upper() + words[1:]


@dataclass(frozen=True)
class Cast:
    """Who a story is about, where and when; drawn before its first sentence.

    Attributes
    ----------
    name, pronoun, adjective, kind : str
        The hero: ``Mia``, ``she``, ``kind``, and ``girl``, ``boy`` or a species.
    friend, species, look : str
        The friend: ``Hugo``, ``fox``, ``red``.
    place : Place
        Where the hero lives.
    weather, time : str
        A word for the day, and ``day``, ``morning`` or ``evening``.
    """

    name: str
    pronoun: str
    adjective: str
    kind: str
    friend: str
    species: str
    look: str
    place: Place
    weather: str
    time: str

    @property
    def hero(self) -> str:
        """The hero as introduced: ``a kind girl named Mia``."""
        return f"{with_article(self.adjective)} {self.kind} named {self.name}"

    @property
    def stranger(self) -> str:
        """The friend as introduced: ``a red fox named Hugo``."""
        return f"{with_article(self.look)} {self.species} named {self.friend}"

    @property
    def she(self) -> str:
        """The hero's pronoun with a capital."""
        return capital(self.pronoun)


def draw_cast(rng: random.Random) -> Cast:
    """A hero, a friend of another species, a place and a day."""
    pronoun = pick(rng, ("she", "he"))
    kind = ("girl" if pronoun == "she" else "boy") if rng.random() < 0.5 else pick(rng, tuple(ANIMALS))
    species = pick(rng, tuple(animal for animal in ANIMALS if animal != kind))
    return Cast(
        name=pick(rng, HEROES[pronoun]),
        pronoun=pronoun,
        adjective=pick(rng, tuple(TRAITS)),
        kind=kind,
        friend=pick(rng, FRIENDS),
        species=species,
        look=ANIMALS[species],
        place=pick(rng, PLACES),
        weather=pick(rng, WEATHER),
        time=pick(rng, ("day", "morning", "evening")),
    )


def opening(rng: random.Random, cast: Cast) -> list[str]:
    """Introduce the hero: name, home and, mostly, what the hero is like."""
    where = cast.place.where
    ways = (
        [f"Once upon a time there was {cast.hero}.", f"{cast.name} lived {where}."],
        [f"Once upon a time, {where}, there lived {cast.hero}."],
        [f"Long ago, {cast.hero} lived {where}."],
        [f"There was once {cast.hero} who lived {where}."],
    )
    if rng.random() < 0.08:
        sentences = [f"One day, {cast.hero} was looking for a friend.", f"{cast.she} lived {where}."]
    else:
        sentences = pick(rng, ways)
    if rng.random() < 0.7:
        sentences = [*sentences, f"{cast.she} {TRAITS[cast.adjective]}."]
    return sentences


def when(rng: random.Random, cast: Cast, *, weather: bool = True) -> str:
    """``One evening``, ``One sunny day``, ``On a windy morning``; always the time of the cast."""
    if weather and cast.time == "day" and rng.random() < 0.5:
        return f"One {cast.weather} day"
    if weather and cast.time == "morning" and rng.random() < 0.5:
        return f"On a {cast.weather} morning"
    return f"One {cast.time}"


def lost(rng: random.Random, cast: Cast) -> list[str]:
    """The hero misses a toy; the friend helps to find it."""
    name, pronoun, friend = cast.name, cast.pronoun, cast.friend
    thing, sorrow = pick(rng, THINGS), pick(rng, SORROWS)
    first, second, found = (HIDING_PLACES[i] for i in distinct(rng, len(HIDING_PLACES), 3))
    deed = pick(rng, ("danced", "laughed", "jumped up and down", f"gave {friend} a big hug"))
    return [
        f"{name} had {with_article(thing)} that {pronoun} loved very much.",
        f"{when(rng, cast)}, " + pick(rng, (f"{name} could not find the {thing}.", f"the {thing} was gone.")),
        pick(
            rng,
            (
                f"{cast.she} looked in the kitchen and in the garden, but it was not there.",
                f"{cast.she} looked everywhere, but {pronoun} could not find it.",
            ),
        ),
        f"{name} was very {sorrow}.",
        f"Then {pick(rng, ('an old friend came by. It was', 'along came'))} {cast.stranger}.",
        f'"Why are you so {sorrow}?" asked {pick(rng, (f"the {cast.species}", friend))}.',
        f'"I lost my {thing}," said {name}.',
        f'"{pick(rng, ("Do not worry", "Do not cry", "Dry your eyes"))}," said the {cast.species}. '
        f'"{pick(rng, ("I will help you look for it", "We will find it together", "Let us look together"))}."',
        pick(
            rng,
            (
                "They walked for a long time.",
                f"They looked {first}, and then they looked {second}.",
                "They asked everyone they met.",
            ),
        ),
        f"At last they found the {thing} {found}.",
        f'"{pick(rng, ("Thank you so much", "Thank you, my friend", "Oh, thank you"))}!" said {name}.',
        f"{cast.she} was so {pick(rng, JOYS)} that {pronoun} {deed}.",
    ]


def stuck(rng: random.Random, cast: Cast) -> list[str]:
    """The friend is stuck; the hero comes with the right tool."""
    name = cast.name
    promise, search = pick(
        rng,
        (
            ("get you out", "looked around and saw"),
            ("help you", "thought for a moment and then took"),
            ("come back with help", "ran home and found"),
        ),
    )
    thanks = pick(rng, ("You saved me,", "Thank you for helping me,", "How can I ever thank you?"))
    return [
        f"{when(rng, cast)}, {name} went for a walk "
        f"{pick(rng, ('along the river', 'through the woods', 'over the hills', 'down the road'))}.",
        f"{cast.she} heard a {pick(rng, ('small', 'soft', 'sad'))} voice. "
        f'"{pick(rng, ("Help! Help!", "Please help me!", "Is anybody there?"))}" it said.',
        f"It was {cast.stranger}, who was stuck in {pick(rng, TRAPS)}.",
        f'"{pick(rng, ("Do not be afraid", "Stay calm", "Wait there"))}," said {name}. "I will {promise}."',
        f"{name} {search} {pick(rng, TOOLS)}.",
        f"{cast.she} pulled and pulled, {pick(rng, ('and at last', 'and after a long time', 'until'))} "
        f"the {cast.species} was free.",
        f'"{thanks}" said {cast.friend}. '
        f'"{pick(rng, ("I will never forget this", "You are a true friend", "Now I want to help you too"))}."',
        f"{name} was {pick(rng, JOYS)}.",
    ]


def share(rng: random.Random, cast: Cast) -> list[str]:
    """The hero shares a meal; the friend comes back to say thanks."""
    name, species = cast.name, cast.species
    food, it = pick(rng, FOODS)
    meal = {"day": "lunch", "morning": "breakfast", "evening": "dinner"}[cast.time]
    gone = "until it was all gone" if it == "it" else "until they were all gone"
    present = pick(rng, ("apples", "nuts", "flowers", "plums"))
    return [
        f"{when(rng, cast)}, {name} had {food} for {meal}.",
        f"{capital(cast.stranger)} sat {pick(rng, ('by the road', 'near the door', 'under a tree'))} "
        f"and looked {pick(rng, ('very hungry', 'sad and hungry', 'cold and hungry'))}.",
        f'"{pick(rng, ("I have not eaten all day", "I am so hungry", "My basket is empty"))}," said the {species}.',
        pick(
            rng,
            (
                f"{name} thought about it. {cast.she} was hungry too.",
                f"At first {name} did not want to share.",
                f"{name} did not wait.",
            ),
        ),
        f'Then {cast.pronoun} said, "'
        f'{pick(rng, ("Please sit with me", "Come and eat with me", "There is enough for two"))}."',
        f"They ate {it} together {pick(rng, ('in the sun', 'and told each other stories', gone))}."
        if cast.time != "evening"
        else f"They ate {it} together {pick(rng, ('and told each other stories', gone))}.",
        f"The next day, {cast.friend} came back with a {pick(rng, (f'basket of {present}', 'big surprise', 'song'))}.",
        f'"{pick(rng, ("This is for you", "You were kind to me", "Now it is my turn to share"))}," said the {species}.',
        f"{name} was {pick(rng, JOYS)}.",
    ]


def race(rng: random.Random, cast: Cast) -> list[str]:
    """The friend wants a race and is hurt; the hero stops to help."""
    name, species = cast.name, cast.species
    goal = pick(rng, ("the old oak tree", "the top of the hill", "the stone bridge", "the lake"))
    mishap, complaint = pick(
        rng,
        (
            ("fell over a stone", "My foot hurts"),
            ("hurt a foot", "My foot hurts"),
            ("hurt a foot", "I cannot go on"),
            ("began to cry", "I am so tired"),
            ("began to cry", "I cannot go on"),
        ),
    )
    return [
        f'{when(rng, cast)}, {cast.stranger} said, "I am faster than you."',
        f'"{pick(rng, ("Let us see", "Let us have a race", "We will see about that"))}," said {name}. '
        f'"We will run to {goal}."',
        "They ran as fast as they could.",
        pick(
            rng,
            (
                "The wind blew in their ears.",
                "The birds watched from the trees.",
                f"{cast.place.everyone} came to look.",
            ),
        ),
        f"But {pick(rng, ('half way there', 'near the end', 'after a while'))}, the {species} {mishap}.",
        f"{name} could have won, but {cast.pronoun} stopped. "
        f'"{pick(rng, ("Are you all right", "Are you hurt", "Can you walk"))}?" {cast.pronoun} asked.',
        f'"{complaint}," said the {species}.',
        f'"Then we will {pick(rng, ("walk", "go"))} together," said {name}.',
        f"They came to {goal} side by side, and {pick(rng, ('both of them were', 'they were both'))} "
        f"{pick(rng, JOYS)}.",
    ]


def storm(rng: random.Random, cast: Cast) -> list[str]:
    """The hero is caught by bad weather; the friend offers a dry place."""
    name = cast.name
    weather, sound = pick(rng, (("rain", "rain"), ("snow", "wind"), ("storm", "wind")))
    light = pick(rng, ("small", "weak", "yellow"))
    shelter = pick(rng, ("a cave", "an old barn", "a hollow tree", "a small hut"))
    return [
        f"{when(rng, cast, weather=False)}, dark clouds came over {cast.place.short}. Then it began to {weather}.",
        f"{name} was far from home and "
        f"{pick(rng, ('could not see the path', 'felt cold and wet', 'did not know where to go'))}.",
        f"{cast.she} saw a {light} light in {shelter}. Inside sat {cast.stranger}.",
        f'"Come in," said the {cast.species}. "'
        + pick(
            rng,
            ("You can stay here until morning", "It is warm and dry in here", "There is room for both of us"),
        )
        + '."',
        f"{name} {pick(rng, ('sat by the fire', 'ate some warm soup', 'wrapped up in a blanket'))} and "
        f"{pick(rng, ('told a story', 'sang a song', f'listened to the {sound}'))}.",
        f"In the morning the sky was {pick(rng, ('clear', 'blue'))} and "
        f"the sun was {pick(rng, ('shining', 'bright'))}.",
        f'"{pick(rng, ("Thank you for your help", "I will not forget you", "Please come and visit me"))}," '
        f"said {name}. {cast.she} was {pick(rng, JOYS)}.",
    ]


def wish(rng: random.Random, cast: Cast) -> list[str]:
    """The hero wants to do something hard; the friend teaches it."""
    name, friend = cast.name, cast.friend
    wanted = pick(rng, tuple(what for what, not_for in WISHES if cast.kind not in not_for))
    lesson = wanted.removeprefix("to learn ")
    return [
        f"More than anything, {name} wanted {wanted}.",
        f'"{pick(rng, ("You are too small", "That is too hard for you", "It cannot be done"))}," '
        f"said {pick(rng, ('the others', 'everyone'))}.",
        f"But {name} did not {pick(rng, ('listen', 'give up', 'stop dreaming'))}.",
        f"{when(rng, cast)}, {cast.pronoun} met {cast.stranger}.",
        f'"Can you teach me {lesson}?" asked {name}.',
        f'"{pick(rng, ("Yes, but you must work hard", "I can try", "Only if you are patient"))}," '
        f"said the {cast.species}.",
        f"So they {pick(rng, ('worked', 'practiced', 'tried'))} every day, "
        f"{pick(rng, ('in the sun and in the rain', 'from morning until evening', 'week after week'))}.",
        pick(
            rng,
            (
                f'Sometimes {name} wanted to stop, but {friend} said, "Try again."',
                "It was not easy, but slowly it got better.",
            ),
        ),
        f"And {pick(rng, ('at last', 'one day', 'after many days'))}, {name} {pick(rng, ('could do it', 'did it'))}! "
        f"{pick(rng, ('Everyone clapped.', 'Nobody could believe it.', 'The others were amazed.'))}",
        f"{cast.she} was {pick(rng, JOYS)}.",
    ]


#: Each kind of story with the morals that fit it.
PLOTS: tuple[tuple[Callable[[random.Random, Cast], list[str]], tuple[str, ...]], ...] = (
    (lost, (GOLD, ASK)),
    (stuck, (KIND, SMALL, BRAVE)),
    (share, (SHARE, BETTER, KIND)),
    (race, (GOLD, KIND)),
    (storm, (KIND, BETTER)),
    (wish, (TRY, PATIENCE)),
)


def ending(rng: random.Random, cast: Cast, morals: tuple[str, ...]) -> list[str]:
    """How it went on, at times a moral and ``The end.``"""
    name, friend = cast.name, cast.friend
    sentences = [
        pick(
            rng,
            (
                f"From that day on, {name} and {friend} were "
                f"{pick(rng, ('best friends', 'good friends', 'always together'))}.",
                f"{name} and {friend} "
                f"{pick(rng, ('walked home together', 'became friends and never forgot that day'))}.",
                f"That night, {name} "
                f"{pick(rng, ('slept very well', 'went to bed with a smile', f'dreamed of {friend} and the stars'))}.",
            ),
        )
    ]
    if rng.random() < 0.6:
        sentences.append(pick(rng, morals))
    if rng.random() < 0.35:
        sentences.append("The end.")
    return sentences


def distinct(rng: random.Random, size: int, count: int) -> list[int]:
    """`count` different numbers below `size`, in random order."""
    left = list(range(size))
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def story(rng: random.Random) -> str:
    """One story: opening, plot and ending, on one line."""
    cast = draw_cast(rng)
    plot, morals = pick(rng, PLOTS)
    return " ".join([*opening(rng, cast), *plot(rng, cast), *ending(rng, cast, morals)])


def stories(count: int, seed: int) -> list[str]:
    """`count` stories, the same ones for the same `seed`.

    Raises
    ------
    ValueError
        `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count of stories must be a positive integer, not {count}")
    rng = random.Random(seed)
    return [story(rng) for _ in range(count)]


def main() -> None:
    """Write stories to a file, one per line."""
    parser = argparse.ArgumentParser(description="Write simple synthetic children's stories, one per line.")
    parser.add_argument("--count", type=int, default=1000, help="how many stories (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random choices (default %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="text file to write")
    arguments = parser.parse_args()
    text = stories(arguments.count, arguments.seed)
    arguments.out.write_text("\n".join(text) + "\n", encoding="utf-8")
    print(f"{len(text)} stories ({len(set(text))} distinct), {sum(map(len, text))} characters -> {arguments.out}")


if __name__ == "__main__":
    main()
