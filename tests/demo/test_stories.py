"""The story grammar is reproducible, and its held-out stories are really held out."""

import re
from pathlib import Path

import pytest

from tellme import demo
from tellme.demo.stories import ANIMALS, FRIENDS, HEROES, stories, with_article

HELD_OUT = (Path(demo.__file__).parent / "heldout.txt").read_text(encoding="utf-8").splitlines()


def test_the_same_seed_gives_the_same_stories():
    assert stories(50, seed=3) == stories(50, seed=3)
    assert stories(50, seed=3) != stories(50, seed=4)
    assert stories(50, seed=3)[:20] == stories(20, seed=3)


def test_the_held_out_file_is_what_its_seed_gives():
    assert stories(17, seed=7) == HELD_OUT


def test_held_out_stories_are_not_among_the_training_stories():
    assert not set(HELD_OUT) & set(stories(40000, seed=1))


def test_every_story_has_one_hero_and_at_most_one_friend():
    heroes = {name for names in HEROES.values() for name in names}
    assert not heroes & set(FRIENDS)
    for text in stories(2000, seed=5):
        words = set(re.findall(r"\w+", text))
        assert len(words & heroes) == 1, text
        assert len(words & set(FRIENDS)) == 1, text


def test_pronouns_agree_with_the_hero():
    for text in stories(2000, seed=6):
        words = set(re.findall(r"\w+", text.lower()))
        feminine = bool({name.lower() for name in HEROES["she"]} & words)
        assert ("he" if feminine else "she") not in words, text


def test_articles_fit_the_next_word():
    for text in stories(2000, seed=8):
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]", text), text
    assert with_article("owl") == "an owl" and with_article("fox") == "a fox"


def test_stories_are_varied():
    text = stories(2000, seed=9)
    assert len(set(text)) == len(text)
    joined = " ".join(text)
    assert all(f" {animal}" in joined for animal in ANIMALS)


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_that_is_not_positive_is_refused(count):
    with pytest.raises(ValueError, match=f"count of stories must be a positive integer, not {count}"):
        stories(count, seed=1)
