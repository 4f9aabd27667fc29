"""Row accumulators and the row FIFO."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from tellme.golden.config import TINY
from tellme.hw.queues import ReservedQueue
from tellme.hw.tlmm.accumulate import Accumulator, accumulator_lead, row_layout

CONFIG = replace(TINY, name="t", lanes=2, block_rows=64)
SEED = 4


@pytest.mark.parametrize("form", ["ternary", "grouped"])
@pytest.mark.parametrize("tiles", [1, 2, 5])
def test_blocks_follow_each_other_at_a_beat_a_cycle_down_to_eight_rows(tiles: int, form: str) -> None:
    rng = np.random.default_rng(SEED)
    config = replace(CONFIG, weight_format=form)
    dut = Accumulator(config, sum_width=15)
    lead = accumulator_lead(config)
    assert lead == (1 if form == "ternary" else 2) and dut.delay == lead + 1
    blocks = [8, 64, 16, 8, 8, 24]
    order = [(b, t, r) for b, rows in enumerate(blocks) for t in range(tiles) for r in range(rows)]
    sums = rng.integers(-(1 << 14), 1 << 14, (len(order), CONFIG.lanes))
    seen: list[list[int]] = []

    async def bench(ctx: Any) -> None:
        for n in range(len(order) + 5):
            ctx.set(dut.valid, int(n < len(order)))
            if n < len(order):
                _, t, r = order[n]
                ctx.set(dut.first, int(t == 0))
                ctx.set(dut.last, int(t == tiles - 1))
                ctx.set(dut.row, r)
            if lead <= n < len(order) + lead:
                for lane, s in enumerate(dut.sums):
                    ctx.set(s, int(sums[n - lead, lane]))
            await ctx.tick()
            if ctx.get(dut.push):
                seen.append([ctx.get(dut.result[lane]) for lane in range(CONFIG.lanes)])

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    wanted = []
    for b, rows in enumerate(blocks):
        wanted += [
            sum(s for (bb, _, rr), s in zip(order, sums, strict=True) if (bb, rr) == (b, r)) for r in range(rows)
        ]
    assert np.array_equal(np.array(seen), np.array(wanted))


@pytest.mark.parametrize("taker", [1.0, 0.3])
def test_fifo_keeps_order_and_never_promises_more_than_it_holds(taker: float) -> None:
    rng = np.random.default_rng(SEED)
    dut = ReservedQueue(row_layout(CONFIG), CONFIG.block_rows)
    latency, total = 9, 400
    out: list[int] = []
    stats = {"held": 0, "most": 0}

    async def bench(ctx: Any) -> None:
        pipe = [None] * latency
        promised = 0
        while len(out) < total:
            ready = rng.random() < taker and (taker == 1.0 or promised > 90 or rng.random() < 0.9)
            ctx.set(dut.out.ready, int(ready))
            room = ctx.get(dut.room) and promised < total
            pipe.insert(0, promised if room else None)
            promised += int(room)
            ctx.set(dut.reserve, int(room))
            arriving = pipe.pop()
            ctx.set(dut.write, int(arriving is not None))
            if arriving is not None:
                ctx.set(dut.payload[0], arriving)
                ctx.set(dut.payload[1], -arriving)
            if ready and ctx.get(dut.out.valid):
                assert ctx.get(dut.out.payload[1]) == -ctx.get(dut.out.payload[0])
                out.append(ctx.get(dut.out.payload[0]))
            stats["most"] = max(stats["most"], promised - len(out))
            await ctx.tick()

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    assert out == list(range(total))
    assert stats["most"] <= CONFIG.block_rows
    if taker < 1:
        assert stats["most"] == CONFIG.block_rows
