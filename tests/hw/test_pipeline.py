"""Delay lines and counters: every form gives the value of so many cycles ago, in its shape; only flags are reset."""

from __future__ import annotations

import random
from typing import Any

import pytest
from amaranth.hdl import Module, ResetInserter, Shape, Signal, signed
from amaranth.lib import data
from amaranth.sim import Simulator

from tellme.hw import pipeline

SEED = 1
PAIR = data.StructLayout({"low": signed(5), "high": 3})
LENGTHS = (0, 1, pipeline.SHORT, pipeline.SHORT + 1, pipeline.SHORT + 2, 9)


@pytest.mark.parametrize("form", ({}, {"ring": True}, {"reset_less": False}))
@pytest.mark.parametrize("cycles", LENGTHS)
@pytest.mark.parametrize("shape", (1, 7, signed(6), PAIR))
def test_a_delay_line_repeats_its_input_in_its_shape(shape: Any, cycles: int, form: dict[str, bool]) -> None:
    m = Module()
    source: Any = Signal(shape)
    late = pipeline.delay_line(m, source, cycles, "late", **form)
    assert late.shape() == source.shape()
    out = Signal(shape)
    m.d.comb += out.eq(late)
    m.d.sync += Signal().eq(0)
    rng = random.Random(SEED)
    width = Shape.cast(source.shape()).width
    given = [rng.randrange(1 << width) for _ in range(40)]
    seen = []

    async def bench(ctx: Any) -> None:
        for value in given:
            ctx.set(source.as_value() if shape is PAIR else source, value)
            seen.append(ctx.get(out.as_value() if shape is PAIR else out) & (1 << width) - 1)
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert seen[cycles:] == given[: len(given) - cycles]


@pytest.mark.parametrize("cycles", LENGTHS[1:])
def test_flags_fall_on_reset_and_data_do_not(cycles: int) -> None:
    inner = Module()
    flag, reset = Signal(), Signal()
    late = pipeline.delay_line(inner, flag, cycles, "flag", reset_less=False)
    data_ = pipeline.delay_line(inner, flag, cycles, "data")
    m = Module()
    m.submodules.inner = ResetInserter(reset)(inner)
    seen = []

    async def bench(ctx: Any) -> None:
        ctx.set(flag, 1)
        await ctx.tick().repeat(cycles)
        ctx.set(flag, 0)
        ctx.set(reset, 1)
        await ctx.tick()
        ctx.set(reset, 0)
        for _ in range(cycles):
            seen.append((ctx.get(late), ctx.get(data_)))
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert [f for f, _ in seen] == [0] * cycles
    assert [d for _, d in seen] == [1] * (cycles - 1) + [0]


def test_a_counter_starts_over_behind_its_last_value() -> None:
    m = Module()
    count = Signal(3)
    m.d.sync += count.eq(pipeline.counted(count, count == 4))
    seen = []

    async def bench(ctx: Any) -> None:
        for _ in range(12):
            seen.append(ctx.get(count))
            await ctx.tick()

    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert seen == [0, 1, 2, 3, 4] * 2 + [0, 1]


def test_impossible_delays_are_refused() -> None:
    m = Module()
    with pytest.raises(ValueError, match="delay of flag must be 0 or more cycles, not -1"):
        pipeline.delay_line(m, Signal(), -1, "flag")
    with pytest.raises(ValueError, match="flag: flags cannot go through a ring, whose memory no reset clears"):
        pipeline.delay_line(m, Signal(), 9, "flag", reset_less=False, ring=True)
