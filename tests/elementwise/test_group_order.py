"""Largest magnitudes of groups, whatever chunks of other groups come between those of one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from tellme.golden.config import CHUNK, TINY
from tellme.golden.ternary import GROUP
from tellme.hw.elementwise.groups import GroupMaxima

CONFIG = replace(TINY, weight_format="grouped")


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_the_largest_magnitude_of_a_group_is_found_whatever_comes_between(groups: int, gaps: bool) -> None:
    """Chunks of so many groups in any order: one after the other, every second, every third."""
    rng = np.random.default_rng(groups)
    dut = GroupMaxima(CONFIG)
    chunks = GROUP // CHUNK
    rounds = 6
    want: dict[tuple[int, int], int] = {}
    read: dict[tuple[int, int], int] = {}

    async def bench(ctx: Any) -> None:
        for _ in range(rounds):
            places = [(int(g) % CONFIG.lanes, int(g)) for g in rng.permutation(8)[:groups]]
            done = dict.fromkeys(places, 0)
            want.update(dict.fromkeys(places, 0))
            while any(n < chunks for n in done.values()):
                if gaps and rng.random() < 0.3:
                    ctx.set(dut.write, 0)
                    await ctx.tick()
                    continue
                lane, group = places[rng.integers(len(places))]
                if done[lane, group] == chunks:
                    continue
                values = rng.standard_normal(CHUNK).astype(np.float32).view(np.uint32)
                ctx.set(dut.write, 1)
                ctx.set(dut.lane, lane)
                ctx.set(dut.chunk, group * chunks + done[lane, group])
                for i, v in enumerate(values):
                    ctx.set(dut.u[i], int(v))
                await ctx.tick()
                done[lane, group] += 1
                want[lane, group] = max(want[lane, group], *(int(v) & 0x7FFFFFFF for v in values))
            ctx.set(dut.write, 0)
            await ctx.tick().repeat(dut.delay - 1)
            for lane, group in want:
                ctx.set(dut.read, 1)
                ctx.set(dut.read_lane, lane)
                ctx.set(dut.read_word, group * (GROUP // CONFIG.word))
                await ctx.tick()
                await ctx.tick()
                read[lane, group] = ctx.get(dut.largest)
            ctx.set(dut.read, 0)
            assert read == want

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert len(want) >= groups
