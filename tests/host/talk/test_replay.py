"""Texts that are known, through scheduler and guesses: every token once, whatever was guessed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tellme.golden.config import KV260
from tellme.host.image.model import demo_folder
from tellme.host.talk.replay import replay
from tellme.host.talk.scheduler import singly
from tellme.host.talk.work import WORK, Work, find
from tellme.host.text.tokenizer import Files, Tokenizer

TOKENIZER = Tokenizer(Files.read(demo_folder()), 1024)


def cost(firsts: Sequence[int], lanes: Sequence[int], heads: int) -> float:
    """As of BitNet 0.73B on the KV260: another sweep of the head from nine head lanes on."""
    return 1.0 + 0.004 * sum(lanes) + 0.3 * ((heads - 1) // 8)


def text(work: Work) -> tuple[list[int], list[int]]:
    return TOKENIZER.encode(work.prompt), TOKENIZER.encode_more(work.answer)


@pytest.mark.parametrize("work", WORK, ids=lambda w: w.name)
def test_guesses_pay_where_the_answer_copies_and_cost_nothing_where_it_does_not(work: Work) -> None:
    plain, fast = (replay([text(work)], KV260, 1, singly(cost), speculate=s) for s in (False, True))
    # The first token comes with the prompt.
    assert plain.tokens == fast.tokens == len(text(work)[1]) - 1
    assert plain.passes == {(1,): plain.tokens} and plain.drafted == 0
    price = sum(cost(range(n), [0] * n, n) * times for (n,), times in fast.passes.items())
    faster = plain.tokens * cost([0], [0], 1) / price
    assert faster >= (1.8 if work.copies else 0.98)
    assert fast.tokens == fast.passes.total() + fast.accepted and fast.drafted >= fast.accepted


def test_several_share_the_lanes() -> None:
    found = replay([text(find("edit")), text(find("list")), text(find("story"))], KV260, 1, singly(cost))
    assert all(len(lanes) == 3 and sum(lanes) <= KV260.lanes for lanes in found.passes)
    assert all(lanes == tuple(sorted(lanes, reverse=True)) for lanes in found.passes)
    assert found.tokens_per_pass > 3.3


def test_the_works_are_two_stories_and_three_that_copy() -> None:
    assert [(w.name, w.copies) for w in WORK] == [
        ("story", False),
        ("another story", False),
        ("summary", True),
        ("edit", True),
        ("list", True),
    ]
