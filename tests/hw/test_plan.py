"""The plan: what it predicts of slow memories, placements and FIFOs. Against the simulation: tests/machine/test_bench.py."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tellme.golden.boards import BOARDS
from tellme.golden.config import KV260, PYNQ_Z2, TINY, ULTRA96V2, AcceleratorConfig
from tellme.golden.shapes import BITNET_07B, BITNET_2B
from tellme.host.machine.passes import chunks
from tellme.hw.plan import DEPTHS, fifo_memory, plan, predict, steps
from tellme.sim.stream import SustainedMemory
from tellme.sim.timing import timing
from tests.models import small_spec

SPEC = small_spec(hidden=128, layers=4, ffn=320, vocab=600, activation="relu2", max_context=256)
IDEAL = timing("kv260-ideal")


def test_a_slow_memory_is_predicted_as_memory_stalls() -> None:
    slow = timing("kv260-ideal", bandwidth=8.0)
    assert SustainedMemory(slow).rate(TINY) == pytest.approx(8 / 16 * (1 - 20 / 1950))
    todo = steps(SPEC, TINY, [10], [0], 1)
    fast, late = (predict(todo, TINY, SustainedMemory(m)) for m in (IDEAL, slow))
    assert late.cycles > 1.5 * fast.cycles and late.stalls["memory"] > fast.cycles / 2
    assert {k: v for k, v in late.stalls.items() if k != "memory"} == {
        k: v for k, v in fast.stalls.items() if k != "memory"
    }


def test_regions_of_one_bank_are_predicted_as_memory_stalls() -> None:
    """Where regions lie is part of the prediction: the board's phases if nothing is said."""
    kv260, todo = timing("kv260"), steps(BITNET_07B, KV260, [128], [0], 1)
    placed, equal = (predict(todo, KV260, SustainedMemory(kv260, r)) for r in (None, (0, 0, 0, 0)))
    assert placed == predict(todo, KV260, SustainedMemory(kv260, BOARDS["kv260"].phases))
    assert equal.cycles > 1.4 * placed.cycles and equal.beats == placed.beats
    assert equal.stalls["memory"] - placed.stalls["memory"] == pytest.approx(equal.cycles - placed.cycles, abs=5)


def test_the_depth_needed_is_the_least_that_costs_nothing() -> None:
    result = plan(BITNET_2B, KV260, SustainedMemory(IDEAL), context=250, prompt=chunks(KV260, 4, 128))
    cycles = {d: c for d, _, c in result.depths}
    assert list(cycles) == list(DEPTHS) and sorted(cycles.values(), reverse=True) == list(cycles.values())
    assert cycles[result.depth] <= 1.001 * cycles[DEPTHS[-1]]


@pytest.mark.parametrize(
    ("config", "beats", "memory"),
    [
        (KV260, 8192, (16, 0)),
        (KV260, 4096, (8, 0)),
        (KV260, 2048, (8, 0)),
        (KV260, 1024, (0, 16)),
        (KV260, 256, (0, 8)),
        (ULTRA96V2, 512, (0, 4)),  # as mapped: docs/measurements/synth.md
        (ULTRA96V2, 8192, (0, 64)),
        (PYNQ_Z2, 512, (0, 2)),
        (PYNQ_Z2, 32768, (0, 128)),
    ],
)
def test_fifos_take_ultraram_where_they_are_deep_and_the_chip_has_it(
    config: AcceleratorConfig, beats: int, memory: tuple[int, int]
) -> None:
    assert fifo_memory(replace(config, fifo_beats=beats)) == memory
