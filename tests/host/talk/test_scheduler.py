"""The scheduler against a model of its rules: every conversation gets its lanes, once, in order, and none waits for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tellme.golden.arith import ceil_div
from tellme.golden.config import KV260, TINY
from tellme.host.errors import UserError
from tellme.host.machine.passes import Backend, Pass, PassResult, fits_scores, lanes_that_fit
from tellme.host.talk.drafts import Draft
from tellme.host.talk.scheduler import PROBE, RISE, Conversation, Planned, Refused, Scheduler, singly


class Checker(Backend):
    """Refuses passes that no machine would take."""

    def __init__(self, scheduler: Scheduler, vocab: int):
        self.config, self.group, self.vocab = scheduler.config, scheduler.group, vocab
        self.context, self.slots = scheduler.context, len(scheduler.slots)

    def _pass(self, given: Pass) -> PassResult:
        return PassResult(
            head_first=given.head[0],
            head_count=given.head[1],
            best_index=(0,) * given.head[1],
            best_value=(np.float32(0),) * given.head[1],
        )


VOCAB = 4


class World:
    """Plays random requests, and holds every pass against the rules."""

    def __init__(self, draw: st.DataObject, lanes: int, slots: int, context: int, queue: int, score_words: int):
        self.draw = draw
        config = replace(TINY, lanes=lanes, score_words=score_words, max_context=32)
        self.scheduler = Scheduler(config, 2, context, slots, queue=queue)
        self.checker = Checker(self.scheduler, VOCAB)
        self.cache: dict[int, list[int]] = {i: [] for i in range(slots)}  # what the passes really wrote
        self.arrivals: list[Conversation] = []
        self.admitted: list[Conversation] = []
        self.waited: dict[Conversation, int] = {}
        self.wanted: dict[Conversation, tuple[list[int], int]] = {}

    def number(self, low: int, high: int) -> int:
        return self.draw.draw(st.integers(low, high))

    def submit(self) -> None:
        s = self.scheduler
        tokens = self.draw.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=s.context))
        most = self.number(1, 6)
        full = len(s.waiting) - sum(x.holder is None for x in s.slots) >= 0 and len(s.waiting) >= s.queue
        try:
            c = s.submit(tokens, most)
        except Refused:
            assert full
            return
        assert not full
        self.arrivals.append(c)
        self.wanted[c] = tokens, most

    def cancel(self) -> None:
        alive = [*self.scheduler.waiting, *self.scheduler.active]
        if alive:
            c = alive[self.number(0, len(alive) - 1)]
            self.scheduler.end(c)
            self.arrivals.remove(c)

    def guess(self, c: Conversation, most: int) -> Draft:
        assert c.decoding and most >= 0
        n = self.number(0, max(0, most))
        return Draft(tuple(self.number(0, VOCAB - 1) for _ in range(n)), self.number(0, 10) / 10, 2)

    def step(self) -> None:
        s = self.scheduler
        for c, source in s.admit():
            assert self.cache[c.slot][: c.computed] == c.tokens[: c.computed]
            if source is not None:
                held = s.slots[source].tokens
                n = 0
                while n < min(len(held), len(c.tokens) - 1) and held[n] == c.tokens[n]:
                    n += 1
                assert n > c.computed
                self.cache[c.slot] = list(held[:n])
                s.copied(c, n)
            assert c.computed < c.prompt
            self.admitted.append(c)
        holders = [x.holder for x in s.slots if x.holder is not None]
        assert len(set(map(id, holders))) == len(holders) and set(map(id, holders)) == set(map(id, s.active))
        assert not s.waiting or len(holders) == len(s.slots), "somebody waits while a slot is free"
        planned = s.plan(self.guess)
        if planned is None:
            assert not s.active
            return
        self.check(planned)
        chosen = {}
        for part in planned.parts:
            if not part.chooses:
                assert not part.drafted
                continue
            right = self.number(0, part.drafted)
            new = [*part.draft.tokens[:right], self.number(0, VOCAB - 1)]
            chosen[part.conversation] = new
        s.complete(planned, chosen)
        for part in planned.parts:
            c = part.conversation
            # Of what was written, only what is known to be right counts.
            assert self.cache[c.slot][: c.computed] == c.tokens[: c.computed] == s.slots[c.slot].tokens
            assert len(c.tokens) <= c.limit
            if len(c.tokens) == c.limit:
                tokens, most = self.wanted[c]
                assert len(c.tokens) == min(len(tokens) + most, s.context + 1)
                s.end(c)

    def check(self, planned: Planned) -> None:
        s, given = self.scheduler, planned.given
        self.checker.run_pass(given)
        at = 0
        seen = set()
        first, count = given.head
        for part in planned.parts:
            c = part.conversation
            assert c in s.active and c not in seen and part.first == at and part.count >= 1
            seen.add(c)
            lanes = slice(at, at + part.lanes)
            known = c.tokens[c.computed : c.computed + part.count]
            assert list(given.tokens[lanes]) == [*known, *part.draft.tokens[: part.drafted]]
            assert list(given.positions[lanes]) == list(range(c.computed, c.computed + part.lanes))
            assert set(given.slots[lanes]) == {c.slot}
            if part.chooses:
                assert first <= at + part.count - 1 and at + part.lanes <= first + count
            self.cache[c.slot] = self.cache[c.slot][: c.computed] + list(given.tokens[lanes])
            at += part.lanes
        assert at == given.lanes, "a lane is nobody's"
        assert any(p.chooses for p in planned.parts) or any(not p.conversation.decoding for p in planned.parts)
        lanes = s.config.lanes
        decoding = [c for c in s.active if c.decoding]
        prompts = [c for c in s.active if not c.decoding]
        if not prompts:
            assert len([c for c in decoding if c in seen]) == min(lanes, len(decoding)), "a decoding one has no lane"
        bound = 2 * ceil_div(len(s.active), max(1, lanes - 1)) + 2 + 2 * len(s.active) * (lanes == 1)
        for c in s.active:
            self.waited[c] = 0 if c in seen else self.waited.get(c, 0) + 1
            assert self.waited[c] <= bound, "starved"


@settings(deadline=None, max_examples=150)
@given(
    draw=st.data(),
    lanes=st.sampled_from([1, 2, 4, 8]),
    slots=st.integers(1, 6),
    context=st.integers(4, 20),
    queue=st.integers(0, 4),
    score_words=st.sampled_from([64, 128, 2048]),
)
def test_any_requests_get_what_the_rules_say(
    draw: st.DataObject, lanes: int, slots: int, context: int, queue: int, score_words: int
) -> None:
    world = World(draw, lanes, slots, context, queue, score_words)
    for _ in range(draw.draw(st.integers(1, 30))):
        action = draw.draw(st.sampled_from(["submit", "submit", "step", "step", "step", "cancel"]))
        getattr(world, action)()
    steps = 0
    while world.scheduler.active or world.scheduler.waiting:
        world.step()
        steps += 1
        assert steps < 2000
    alive = [c for c in world.admitted if c in world.arrivals]
    assert alive == [c for c in world.arrivals if c in alive], "admitted out of order"
    assert all(c in alive for c in world.arrivals), "somebody was lost"


def scheduler(**changes: Any) -> Scheduler:
    return Scheduler(**({"config": KV260, "group": 1, "context": 256, "slots": 8} | changes))


def play(s: Scheduler, passes: int) -> list[Planned]:
    """Passes in which every choice is token 7."""
    out = []
    for _ in range(passes):
        list(s.admit())
        planned = s.plan()
        if planned is None:
            break
        s.complete(planned, {p.conversation: [7] for p in planned.parts if p.chooses})
        out.append(planned)
        for c in list(s.active):
            if len(c.tokens) == c.limit:
                s.end(c)
    return out


def shared(firsts: Any, lanes: Any, heads: int) -> float:
    """A pass costs the same whatever it carries, but for the head."""
    return 10.0 + 5.0 * (heads > 0)


def test_a_pass_has_a_lane_of_each_and_a_chunk() -> None:
    s = scheduler(rise=1.0)
    for _ in range(3):
        s.submit([1], 50)
    play(s, 1)
    s.submit([2] * 40, 5)
    first, second, *_ = play(s, 4)
    assert [p.lanes for p in first.parts] == [13, 1, 1, 1] and first.given.head == (13, 3)
    assert [p.lanes for p in second.parts] == [13, 1, 1, 1]


def test_a_long_prompt_delays_no_short_one() -> None:
    s = scheduler(rise=100.0, cost=singly(shared))
    for _ in range(5):
        s.submit([1], 50)
    play(s, 1)
    s.submit([2] * 200, 5)
    s.submit([3] * 9, 5)
    planned = play(s, 4)
    assert [len(p.parts) for p in planned] == [1, 7, 1, 7]
    short = [[part.lanes for part in p.parts if part.conversation.tokens[0] == 3] for p in planned]
    assert short == [[], [9], [], [1]]


@pytest.mark.parametrize("rise", [1.0, 1.2, RISE, 2.0])
@pytest.mark.parametrize("others", [1, 3, 7])
def test_those_who_decode_wait_as_much_longer_as_they_may_and_no_more(rise: float, others: int) -> None:
    s = scheduler(rise=rise, cost=singly(shared))
    for _ in range(others):
        s.submit([1], 200)
    play(s, 1)
    s.submit([2] * 250, 5)
    planned = [p.given for p in play(s, 12)]
    if not planned[-1].head[1]:
        planned.pop()  # its time is counted at the next token
    cost = sum(shared((), (), p.head[1]) for p in planned)
    tokens = sum(p.head[1] > 0 for p in planned)  # of each of the others
    # Passes of prompts alone come between two tokens, never two of them; one may be too few at the end.
    assert not any(a.head[1] == b.head[1] == 0 for a, b in zip(planned, planned[1:], strict=False))
    usual = 15.0
    assert min(rise, 25 / 15) * usual - 20 / tokens - 1e-6 <= cost / tokens <= rise * usual + 1e-6


def test_a_prompt_that_fits_a_pass_goes_at_once_and_the_time_is_made_up_for() -> None:
    s = scheduler(cost=singly(shared))
    for _ in range(7):
        s.submit([1], 200)
    play(s, 1)
    alone = []
    for i in range(12):  # short prompts, one behind the other
        c = s.submit([10 + i] * 16, 1)
        planned = play(s, 1)[0]
        alone.append(len(planned.parts) == 1)
        while c in s.active:
            play(s, 1)
    assert alone[0] and 0 < alone.count(False)
    for _ in range(20):
        play(s, 1)
    s.submit([30] * 16, 1)
    assert len(play(s, 1)[0].parts) == 1


def test_what_cannot_be_served_is_refused_in_words() -> None:
    s = scheduler(slots=1, queue=1, context=8)
    with pytest.raises(UserError, match="the prompt has 9 tokens, the context holds 8; shorten the prompt"):
        s.submit([1] * 9, 1)
    with pytest.raises(UserError, match="max-new-tokens must be at least 1, not 0"):
        s.submit([1], 0)
    with pytest.raises(UserError, match="the prompt has no tokens"):
        s.submit([], 1)
    s.submit([1], 1)
    list(s.admit())
    s.submit([1], 1)
    with pytest.raises(Refused, match="all 1 cache slots are in use and 1 requests wait already; try again later"):
        s.submit([1], 1)


def test_a_slot_is_found_by_its_prefix_kept_for_others_and_copied() -> None:
    s = scheduler(slots=3)
    first = s.submit(list(range(100)), 1)
    play(s, 20)
    assert s.slots[0].tokens == list(range(100)) and first.cached == 0
    # The conversation goes on: the same slot, only what is new is computed.
    s.submit([*range(100), 7, 8, 9], 1)
    assert [(c.slot, c.cached, source) for c, source in s.admit()] == [(0, 100, None)]
    # While it runs, another one with the same beginning gets a copy.
    other = s.submit([*range(60), 5], 1)
    assert list(s.admit()) == [(other, 0)]
    s.copied(other, 60)
    assert other.computed == other.cached == 60 and other.slot == 1
    play(s, 20)
    # One that shares little takes the slot that is empty, not one that holds much.
    third = s.submit([0, 1, 99], 1)
    assert list(s.admit()) == [(third, None)] and third.slot == 2


def test_guesses_are_taken_as_long_as_they_pay() -> None:
    def plan(chance: float, cost: Any) -> int:
        s = scheduler(cost=singly(cost))
        s.submit([1], 50)
        play(s, 1)
        planned = s.plan(lambda c, most: Draft((7,) * most, chance, 2))
        assert planned is not None
        return planned.parts[0].drafted

    def free(firsts: Any, lanes: Any, heads: int) -> float:
        return 1.0

    def sweeps(firsts: Any, lanes: Any, heads: int) -> float:
        return 1.0 + 0.3 * ceil_div(heads, 8)

    assert plan(0.9, free) == 15
    assert plan(0.5, sweeps) == 7  # eight lanes have one sweep of the head
    assert plan(0.99, sweeps) == 15
    assert plan(0.1, lambda firsts, lanes, heads: float(sum(lanes))) == 0
    assert plan(1.0, lambda firsts, lanes, heads: float(sum(lanes))) == 0, "no more tokens a cycle"


def test_without_costs_a_lane_is_a_hundredth_of_a_pass() -> None:
    for chance, many in ((0.005, 0), (0.02, 1)):
        s = scheduler()
        s.submit([1], 50)
        play(s, 1)
        planned = s.plan(lambda c, most, chance=chance: Draft((7,) * most, chance, 2))  # type: ignore[misc]
        assert planned is not None and planned.parts[0].drafted == many


def test_logits_are_written_where_they_are_wanted_and_there_is_a_head() -> None:
    for logits in (False, True):
        s = scheduler(rise=1.0)
        s.submit([1] * 20, 50)
        for head in (False, True):
            list(s.admit())
            planned = s.plan(logits=logits)
            assert planned is not None and bool(planned.given.head[1]) == head
            assert planned.given.write_logits == (logits and head)
            s.complete(planned, {p.conversation: [7] for p in planned.parts if p.chooses})


@pytest.mark.parametrize("group", [1, 3, 4, 8])
def test_as_many_lanes_as_the_score_memory_holds(group: int) -> None:
    """Of a prompt, and of guesses: one at least."""
    s = scheduler(group=group, context=4080, slots=1)
    c = s.submit([1] * 4000, 80)
    narrow = set()
    while not c.decoding:
        (planned,) = play(s, 1)
        lanes, first = planned.given.lanes, planned.given.positions[0]
        assert lanes == lanes_that_fit(KV260, group, first, min(16, 4000 - first)), first
        narrow.add(lanes)
    assert len(narrow) > 1 or group == 1
    planned_with = s.plan(lambda c, most: Draft((7,) * most, 0.99, 3))
    assert planned_with is not None
    assert planned_with.given.lanes == lanes_that_fit(KV260, group, 4000, 16)


def test_a_prompt_of_which_much_is_held_goes_beside_the_others() -> None:
    """What counts is the rest of it."""
    s = scheduler(rise=5.0, cost=singly(shared), slots=4)
    s.submit([3] * 100, 1)
    while s.waiting or s.active:
        play(s, 1)
    for _ in range(3):
        s.submit([1], 50)
    play(s, 1)
    held = s.submit([*[3] * 100, 4, 5, 6], 5)
    (planned,) = play(s, 1)
    assert held.cached == 100 and [p.lanes for p in planned.parts] == [3, 1, 1, 1]


def test_what_prompts_leave_is_kept_for_two_passes_and_no_more() -> None:
    s = scheduler(cost=singly(shared), slots=8)
    s.submit([1], 200)
    play(s, 1)
    for i in range(12):
        s.submit([10 + i], 1)
        play(s, 1)
    assert s._spare == 30.0


def test_a_slot_that_holds_one_token_is_not_an_empty_one() -> None:
    s = scheduler(slots=2)
    s.slots[0].tokens = [5]
    c = s.submit([9, 8], 1)
    assert list(s.admit()) == [(c, None)] and c.slot == 1


def test_guesses_beyond_the_score_memory_stay_out() -> None:
    config, group, keys = replace(TINY, lanes=4, max_context=96, score_words=128), 2, 60
    assert [fits_scores(config, group, keys, lanes) for lanes in (2, 3)] == [True, False]
    s = Scheduler(config, group, 96, 1, cost=singly(lambda firsts, lanes, heads: 1.0))
    s.submit([1] * keys, 30)
    while not s.active or not s.active[0].decoding:
        play(s, 1)
    planned = s.plan(lambda c, most: Draft((7,) * most, 0.9, 2))
    assert planned is not None and s.active[0].computed == keys
    assert (planned.parts[0].count, planned.parts[0].drafted) == (1, 1)


# ---- who comes first, and ends of ranges -----------------------------------------------------------------------------


def test_where_lanes_are_few_those_left_out_longest_come_first() -> None:
    s = scheduler(config=replace(TINY, lanes=2), slots=5)
    for i in range(5):
        s.submit([i], 30)
    play(s, 3)  # two prompts a pass
    order = [sorted(part.conversation.key for part in p.parts) for p in play(s, 5)]
    assert order == [[1, 2], [3, 4], [1, 5], [2, 3], [1, 4]], order  # of those served in one pass the first comers


def test_a_prompt_takes_one_lane_of_those_who_fill_all_and_no_more() -> None:
    s = scheduler(config=TINY, slots=5, rise=1.0)
    for _ in range(4):
        s.submit([1], 30)
    play(s, 1)
    s.submit([2] * 10, 5)
    assert [[part.lanes for part in p.parts] for p in play(s, 3)] == [[1] * 4] * 3


def test_one_lane_is_for_those_who_decode_and_for_prompts_by_turns() -> None:
    s = scheduler(config=replace(TINY, lanes=1), slots=2, rise=1.0)
    s.submit([1], 50)
    play(s, 1)
    s.submit([2] * 6, 5)
    who = [p.parts[0].conversation.key for p in play(s, 8)]
    assert who == [2, 1] * 4, "the prompt came when the other had been served"


def test_a_prompt_may_fill_the_context_and_then_has_one_token() -> None:
    s = scheduler(slots=1, context=8)
    c = s.submit([1] * 8, 5)
    play(s, 3)
    assert c.limit == 9 and c.tokens == [1] * 8 + [7] and not s.active
    assert s.held([1] * 8) == 7 and s.held([1]) == 0 and s.held([1] * 7 + [2]) == 7


@pytest.mark.parametrize("slot", [-1, 3])
def test_a_slot_that_is_not_there_is_not_used_alone(slot: int) -> None:
    s = scheduler(slots=3)
    with pytest.raises(UserError, match=f"cache slot {slot} does not exist; there are 3"):
        s.only(slot)
    s.only(2, [4, 5, 6])
    c = s.submit([4, 5, 9], 1)
    assert list(s.admit()) == [(c, None)] and (c.slot, c.cached) == (2, 2)


def test_the_slot_unused_for_longest_goes_first() -> None:
    s = scheduler(slots=3)
    for first in (1, 2, 3):  # one behind the other, each in a slot of its own
        s.submit([first] * 20, 1)
        play(s, 5)
    assert [x.tokens[0] for x in s.slots] == [1, 2, 3] and s.slots[0].used < s.slots[1].used < s.slots[2].used
    again = s.submit([1] * 20, 1)  # makes slot 0 the latest
    assert list(s.admit()) == [(again, None)] and (again.slot, again.cached) == (0, 19)
    play(s, 5)
    other = s.submit([9] * 20, 1)
    assert list(s.admit()) == [(other, None)] and other.slot == 1


def test_of_slots_that_share_as_much_the_latest_used_does_not_go() -> None:
    s = scheduler(slots=2)
    s.slots[0].tokens, s.slots[0].used = [5] * 10, 7
    s.slots[1].tokens, s.slots[1].used = [5] * 10, 6
    c = s.submit([5] * 12, 1)
    assert list(s.admit()) == [(c, None)] and (c.slot, c.cached) == (1, 10)


def test_a_slot_that_was_given_is_used_though_no_pass_came() -> None:
    s = scheduler(slots=2)
    s.passes = 9
    s.slots[0].tokens, s.slots[0].used = [5] * 10, 1
    s.slots[1].tokens, s.slots[1].used = [6] * 10, 2
    c = s.submit([5] * 12, 1)
    assert list(s.admit()) == [(c, None)] and c.slot == 0
    s.end(c)
    other = s.submit([9] * 20, 1)
    assert list(s.admit()) == [(other, None)] and other.slot == 1


@pytest.mark.parametrize(("shared", "kept"), [(9, True), (10, False)])
def test_a_slot_of_which_less_than_half_is_shared_is_kept(shared: int, kept: bool) -> None:
    s = scheduler(slots=2)
    s.slots[0].tokens, s.slots[0].used = list(range(20)), 3
    c = s.submit([*range(shared), *[99] * 20], 1)
    list(s.admit())
    assert c.slot == int(kept)


@pytest.mark.parametrize(("shared", "copied"), [(15, False), (16, True)])
def test_a_copy_has_to_save_a_pass(shared: int, copied: bool) -> None:
    s = scheduler(slots=2)  # 16 lanes
    s.submit(list(range(40)), 50)
    play(s, 3)
    c = s.submit([*range(shared), 99, 98], 1)
    assert list(s.admit()) == [(c, 0 if copied else None)]


def test_time_that_was_not_used_is_not_kept() -> None:
    """However long nobody came, one prompt gets no more passes alone than another."""
    alone = []
    for before in (1, 60):
        s = scheduler(rise=1.4, cost=singly(shared))
        for _ in range(3):
            s.submit([1], 200)
        play(s, 1 + before)
        s.submit([2] * 120, 5)
        alone.append([len(p.parts) == 1 for p in play(s, 8)])
    assert alone[0] == alone[1] and any(alone[0]), alone


def test_guesses_end_before_the_limit_and_are_probed_now_and_then() -> None:
    asked: list[int] = []

    def guess(c: Conversation, most: int) -> Draft:
        asked.append(most)
        return Draft((7,) * most, 0.0, 2)

    s = scheduler(cost=singly(lambda firsts, lanes, heads: float(sum(lanes))))
    s.submit([1], 12)
    play(s, 1)
    s.plan(guess)
    # 11 tokens may still come: one is the pass's own, and as many guesses as that leaves.
    assert asked == [10]
    s = scheduler(cost=singly(lambda firsts, lanes, heads: float(sum(lanes))))
    for _ in range(2):
        s.submit([1], 200)
    play(s, 1)
    drafted = []
    for _ in range(80):
        planned = s.plan(lambda c, most: Draft((8,) * most, 0.0, 2))
        assert planned is not None
        drafted.append([p.drafted for p in planned.parts])
        s.complete(planned, {p.conversation: [7] for p in planned.parts})
    # Of those who may, one a pass: conversation 1 in the pass with the number PROBE, the other in the next.
    probes = [i + 1 for i, n in enumerate(drafted) if any(n)]
    assert all(sum(n) <= 1 for n in drafted)
    assert probes == [PROBE, PROBE + 1, 2 * PROBE, 2 * PROBE + 1], probes


def test_chunks_that_need_no_head_stand_before_those_that_do() -> None:
    s = scheduler()
    s.submit([1] * 4, 5)  # ends in this pass
    s.submit([2] * 40, 5)
    list(s.admit())
    planned = s.plan()
    assert planned is not None
    assert [(p.conversation.key, p.lanes) for p in planned.parts] == [(2, 12), (1, 4)]
    assert planned.given.head == (15, 1)


def test_a_confirmed_guess_counts_as_computed_and_the_last_token_does_not() -> None:
    s = scheduler()
    c = s.submit([1, 2, 3], 50)
    play(s, 1)
    assert (c.computed, c.tokens, s.slots[0].tokens) == (3, [1, 2, 3, 7], [1, 2, 3])
    planned = s.plan(lambda c, most: Draft((8, 9, 5), 0.9, 2))
    assert planned is not None and planned.parts[0].drafted == 3
    assert planned.given.head == (0, 4)  # the guesses' logits say what comes behind them
    s.complete(planned, {c: [8, 9, 4]})  # two came true
    assert c.tokens == [1, 2, 3, 7, 8, 9, 4] and c.computed == 6
    assert s.slots[0].tokens == c.tokens[:6] and s.slots[0].used == s.passes == c.served == 2


def test_a_slot_that_a_file_filled_is_kept_while_others_are_empty() -> None:
    s = scheduler(slots=2)
    s.slots[0].tokens = list(range(20))  # as a prompt cache does, before any pass
    c = s.submit([99] * 5, 1)
    assert list(s.admit()) == [(c, None)] and c.slot == 1


def test_who_comes_later_does_not_overtake() -> None:
    """One lane, and a new prompt of one token in every pass: the long one goes on."""
    s = scheduler(config=replace(TINY, lanes=1), slots=8, queue=64)
    long = s.submit([1] * 30, 1)
    for i in range(8):
        s.submit([10 + i], 1)
        play(s, 1)
    assert long.computed == 3, long.computed  # in turn with those who have come before its last turn


def test_what_was_too_much_is_made_up_for_in_passes_without_prompts() -> None:
    s = scheduler(cost=singly(shared))
    for _ in range(7):
        s.submit([1], 200)
    play(s, 1)
    alone = []
    for i in range(4):  # short prompts, each a pass of those who decode later
        s.submit([10 + i] * 16, 1)
        alone.append(len(play(s, 1)[0].parts) == 1)
        while any(not c.decoding for c in s.active):
            play(s, 1)
        play(s, 1)
    # A pass earns half of its 15 for prompts, a prompt alone takes 15: each goes, and the third has to wait.
    assert alone == [True, True, False, True], alone


@pytest.mark.parametrize(("tokens", "parts"), [(9, 8), (10, 1)])
def test_a_prompt_that_fits_beside_the_others_does_not_go_alone(tokens: int, parts: int) -> None:
    s = scheduler(rise=100.0, cost=singly(shared))
    for _ in range(7):
        s.submit([1], 50)
    play(s, 1)
    s.submit([2] * tokens, 5)
    assert len(play(s, 1)[0].parts) == parts


def test_time_that_small_prompts_leave_is_kept_for_two_passes_at_most() -> None:
    alone = []
    for before in (5, 40):
        s = scheduler(cost=singly(shared), context=512, slots=9)
        for _ in range(7):
            s.submit([1], 400)
        play(s, 1)
        for i in range(before):
            s.submit([10 + i], 1)
            assert len(play(s, 1)[0].parts) == 8
        s.submit([2] * 400, 5)
        alone.append([len(p.parts) == 1 for p in play(s, 31)])
    assert alone[0] == alone[1] and any(alone[0])
