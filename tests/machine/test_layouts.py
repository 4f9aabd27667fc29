"""Passes of any layout of lanes: conversations that begin at odd lanes, at any position, with two keys a beat.

A property test of the whole machine against the golden model, and of the arithmetic of lane groups against sets.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tellme.golden import schedule
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.kv import CACHE_FORMATS
from tellme.host.checkpoints.checkpoint import Checkpoint
from tellme.host.errors import UserError
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.passes import Backend, Pass, PassResult, fits_scores
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.host.text.tokenizer import Files
from tellme.sim.timing import timing
from tests.models import random_weights, small_spec

PAIRS = replace(TINY, name="pairs", ports=4, lanes=8, attention_lanes=4, key_tile=16, max_context=128, score_words=512)
"""Beats of two keys, blocks of 32 of them, and more lanes than slots fill evenly."""
SLOTS = 5
SPEC = small_spec(layers=1, heads=6, kv_heads=2, vocab=40, max_context=128)

Lanes = tuple[list[int], list[int]]


@st.composite
def layouts(draw: st.DrawFn, config: AcceleratorConfig, slots: int) -> Lanes:
    """(position, slot) of each lane: groups of random lengths at random positions, in a random order of slots."""
    order = draw(st.permutations(range(slots)))
    positions: list[int] = []
    of: list[int] = []
    for slot in order:
        room = config.lanes - len(of)
        if not room:
            break
        n = draw(st.integers(1, room))
        first = draw(st.integers(0, config.max_context - n))
        positions += range(first, first + n)
        of += [slot] * n
        if draw(st.booleans()):
            break
    return positions, of


@pytest.mark.parametrize("config", (TINY, PAIRS, KV260), ids=lambda c: c.name)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_phases_read_every_key_that_a_lane_attends_to_once(config: AcceleratorConfig, data: st.DataObject) -> None:
    """By sets of keys: nothing here divides. With narrow values a word holds two beats' keys of half the queries."""
    positions, slots = data.draw(layouts(config, 7))
    kv = data.draw(st.sampled_from((CACHE_FORMATS["8"], CACHE_FORMATS["8-4"])))
    kpb, halves = config.keys_per_beat, 1 + kv.v_narrow
    ends = [p.final for p in schedule.phases(config, 2, positions, slots, kv.v_narrow)]
    assert ends == [False] * (len(ends) - 1) + [True]
    for v in (False, True):
        for lo, hi in schedule.groups(slots):
            assert {slots[i] for i in range(lo, hi + 1)} == {slots[lo]}
            of_unit = [
                p
                for p in schedule.phases(config, 1, positions, slots, kv.v_narrow)
                if (p.v, p.lane_lo, p.lane_hi) == (v, lo, hi)
            ]
            own = [p for p in of_unit if p.own]
            assert len(own) == 1 and own[0].keys == hi - lo + 1 and own[0].base == 0
            # Own keys lie as the lanes do: two of a word in lanes 2n and 2n + 1.
            beats = sorted({lane // kpb for lane in range(lo, hi + 1)})
            words = [{(-1, beat) for beat in beats[::halves]}]
            keys: list[int] = []
            for p in of_unit[1:]:
                block = range(p.block * config.key_block, p.block * config.key_block + p.keys)
                assert p.base == sum(map(len, words))
                words.append({(p.block, key // (halves * kpb)) for key in block})
                keys += block
            assert sorted(keys) == list(range(positions[lo]))
            assert of_unit[0].unit_words == sum(map(len, words)) == len(set.union(*words))
            used = of_unit[0].unit_words * -(-(hi - lo + 1) * 3 // (config.attention_lanes // halves))
            fits = fits_scores(config, 3, positions[lo], hi - lo + 1, lo, kv)
            assert fits == (used <= config.score_words)


class Nothing(Backend):
    """Takes every pass that the host's checks let through."""

    def __init__(self, config: AcceleratorConfig, slots: int):
        self.config, self.vocab, self.context, self.slots, self.group = config, 8, config.max_context, slots, 3

    def _pass(self, given: Pass) -> PassResult:
        return PassResult(head_first=0, head_count=0, best_index=(), best_value=())


def with_words(config: AcceleratorConfig, words: int) -> AcceleratorConfig:
    """A score memory of any size, which no hardware has."""
    changed = replace(config)
    object.__setattr__(changed, "score_words", words)
    return changed


@pytest.mark.parametrize("config", (TINY, PAIRS, KV260), ids=lambda c: c.name)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_score_memory_is_filled_to_its_last_word_and_no_further(
    config: AcceleratorConfig, data: st.DataObject
) -> None:
    """A machine of just the words that a layout's largest group needs takes it, one of a word less does not."""
    positions, slots = data.draw(layouts(config, 7))
    needs = []
    for lo, hi in schedule.groups(slots):
        sets = -(-(hi - lo + 1) * 3 // config.attention_lanes)
        own = {lane // config.keys_per_beat for lane in range(lo, hi + 1)}
        cached = {key // config.keys_per_beat for key in range(positions[lo])}
        needs.append(sets * (len(own) + len(cached)))
    given = Pass.of([1] * len(slots), positions, slots)
    Nothing(with_words(config, max(needs)), 7).run_pass(given)
    with pytest.raises(UserError, match="need more than the .* words of score memory; send fewer lanes in a pass"):
        Nothing(with_words(config, max(needs) - 1), 7).run_pass(given)


@pytest.fixture(scope="module", params=CACHE_FORMATS)
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CheckedBackend]:
    """The RTL with two keys a beat and the golden model beside it, of a small model, with every kind of cache."""
    kv = CACHE_FORMATS[request.param]
    path: Path = tmp_path_factory.mktemp("image") / "small.tlm"
    weights = random_weights(SPEC, 11)
    convert(Checkpoint(name="small", weights=weights, tokenizer=Files.read(demo_folder()), eos_ids=()), path, PAIRS)
    with (
        Model.open(path, PAIRS) as model,
        SimulatedAccelerator(
            model, compile_program(model, PAIRS, slots=SLOTS, kv=kv), timing=timing("kv260")
        ) as machine,
        CheckedBackend(machine, GoldenBackend(weights, PAIRS, slots=SLOTS, kv=kv)) as checked,
    ):
        for slot in range(SLOTS):  # whatever a layout attends to is there, and other than in every other slot
            for first in range(0, SPEC.max_context, PAIRS.lanes):
                lanes = range(first, first + PAIRS.lanes)
                checked.run_pass(
                    Pass.of([(7 * p + 11 * slot) % SPEC.vocab for p in lanes], lanes, [slot] * PAIRS.lanes)
                )
        yield checked


def run(both: CheckedBackend, positions: list[int], slots: list[int], token: int) -> None:
    compared = both.logits
    ids = [(token + 3 * lane) % SPEC.vocab for lane in range(len(slots))]
    both.run_pass(Pass.of(ids, positions, slots))
    assert both.logits - compared == len(slots) * SPEC.vocab


@pytest.mark.parametrize("before", range(4))
def test_a_conversation_may_begin_at_any_lane(both: CheckedBackend, before: int) -> None:
    """Of every length, behind another one of `before` lanes."""
    for n in range(1, PAIRS.lanes - before + 1):
        run(both, [*range(20, 20 + before), *range(9, 9 + n)], [3] * before + [1] * n, n)


def test_random_layouts_of_lanes_are_bit_exact(both: CheckedBackend) -> None:
    rng = random.Random(4)
    for _ in range(50):
        positions: list[int] = []
        slots: list[int] = []
        for slot in rng.sample(range(SLOTS), rng.randint(1, SLOTS)):
            n = min(rng.randint(1, 5), PAIRS.lanes - len(slots))
            first = rng.randint(0, SPEC.max_context - PAIRS.lanes)
            positions += range(first, first + n)
            slots += [slot] * n
        run(both, positions, slots, rng.randrange(SPEC.vocab))
