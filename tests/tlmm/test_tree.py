"""The adder tree: exact signed sums for odd and even numbers of groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from tellme.hw.tlmm.tree import AdderTree, tree_delay

SEED = 3


@pytest.mark.parametrize("groups,width", [(2, 4), (3, 9), (5, 10), (16, 11), (20, 10), (27, 10), (40, 9), (107, 10)])
def test_sums_are_exact_for_all_signs_and_extremes(groups: int, width: int) -> None:
    lanes, beats = 2, 60
    rng = np.random.default_rng(SEED)
    value = rng.integers(0, 1 << width, (beats, groups, lanes))
    negate = rng.integers(0, 2, (beats, groups))
    value[:8] = np.array([0, (1 << width) - 1] * 4)[:, None, None]
    negate[:4], negate[4:8] = 0, 1
    active = rng.integers(0, 1 << lanes, beats)
    dut = AdderTree(groups=groups, lanes=lanes, width=width)
    assert dut.delay == tree_delay(groups, width)
    seen = []

    async def bench(ctx: Any) -> None:
        for n in range(beats + dut.delay):
            i = min(n, beats - 1)
            for g in range(groups):
                ctx.set(dut.negate[g], int(negate[i, g]))
                for lane in range(lanes):
                    ctx.set(dut.value[g][lane], int(value[i, g, lane]))
            # `active` goes with the last register: the beat that entered delay - 1 cycles ago.
            ctx.set(dut.active, int(active[max(n - dut.delay + 1, 0) % beats]))
            await ctx.tick()
            seen.append([ctx.get(s) for s in dut.sums])

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    wanted = ((1 - 2 * negate)[:, :, None] * (value - (1 << width - 1))).sum(axis=1)
    wanted *= (active[:, None] >> np.arange(lanes)) & 1
    assert np.array_equal(np.array(seen[dut.delay - 1 : dut.delay - 1 + beats]), wanted)
