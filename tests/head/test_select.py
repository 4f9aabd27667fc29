"""The selector keeps exactly the best candidates: every order in which scores may come, ties, several lanes, both numbers of planes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from numpy.typing import NDArray

from tellme.golden import screen
from tellme.golden.config import TINY
from tellme.hw.head.heap import CandidateHeaps
from tellme.hw.head.select import Selector

CONFIG = replace(TINY, name="select", block_rows=64, screen_entries=128)
I64 = NDArray[np.int64]
STUCK = 50_000
"""Cycles that no test comes near."""


def run(
    acc: I64, scales: NDArray[np.uint16], *, lanes: tuple[int, int], count: int, stall: float = 0.0, seed: int = 0
) -> tuple[list[list[int]], list[int], int]:
    """Feeds accumulators [rows, planes, lanes of the machine] with scales [rows, planes].

    Returns
    -------
    (chosen rows of each head lane as they come, root scores, cycles until they were in their places)
    """
    rows, planes, _ = acc.shape
    dut = Selector(CONFIG)
    rng = np.random.default_rng(seed)
    matrix = -(-rows * planes // 8) * 8
    flat = np.zeros((matrix, CONFIG.lanes), np.int64)
    flat[: rows * planes] = acc.reshape(-1, CONFIG.lanes)
    codes = np.zeros(-(-matrix // CONFIG.block_rows) * CONFIG.block_rows, np.int64)
    codes[: rows * planes] = scales.reshape(-1)
    chosen: list[list[int]] = [[]]
    roots: list[int] = []
    per_beat = CONFIG.beat_bytes // 2
    beats = CONFIG.block_rows // per_beat
    cycles = 0

    async def bench(ctx: Any) -> None:
        nonlocal cycles
        ctx.set(dut.head_first, lanes[0])
        ctx.set(dut.head_count, lanes[1])
        ctx.set(dut.candidates, count)
        ctx.set(dut.planes, planes)
        ctx.set(dut.vocabulary, rows)
        ctx.set(dut.matrix_rows, matrix)
        ctx.set(dut.chosen.ready, 0)
        ctx.set(dut.room, 1)
        await ctx.tick()
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        row = block = 0
        while row < matrix:
            if row // CONFIG.block_rows == block:  # its scales, in the half that it reads
                ctx.set(dut.rows.valid, 0)
                for i in range(beats):
                    part = codes[block * CONFIG.block_rows + i * per_beat :][:per_beat]
                    ctx.set(dut.scale_write, 1)
                    ctx.set(dut.scale_address, block % 2 * beats + i)
                    ctx.set(dut.scales, sum(int(v) << 16 * k for k, v in enumerate(part)))
                    await ctx.tick()
                ctx.set(dut.scale_write, 0)
                block += 1
            ctx.set(dut.rows.valid, rng.random() >= stall)
            for lane in range(CONFIG.lanes):
                ctx.set(dut.rows.payload[lane], int(flat[row, lane]))
            taken, done = ctx.get(dut.rows.ready) and ctx.get(dut.rows.valid), ctx.get(dut.block_done)
            assert done == (taken and (row % CONFIG.block_rows == CONFIG.block_rows - 1 or row == matrix - 1))
            await ctx.tick()
            cycles += 1
            assert cycles < STUCK
            row += taken
        ctx.set(dut.rows.valid, 0)
        while ctx.get(dut.busy):
            await ctx.tick()
            cycles += 1
            assert cycles < STUCK
        for lane in range(lanes[1]):
            ctx.set(dut.root_lane, lane)
            roots.append(ctx.get(dut.root_score))
        ctx.set(dut.give, 1)
        await ctx.tick()
        ctx.set(dut.give, 0)
        last = False
        while not last:
            ctx.set(dut.chosen.ready, rng.random() >= stall)
            if ctx.get(dut.chosen.valid) and ctx.get(dut.chosen.ready):
                if len(chosen[-1]) == count:
                    chosen.append([])
                chosen[-1].append(ctx.get(dut.chosen.payload.row))
                last = bool(ctx.get(dut.chosen.payload.last))
            await ctx.tick()

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return chosen, roots, cycles


def check(acc: I64, scales: NDArray[np.uint16], *, lanes: tuple[int, int], count: int, **options: Any) -> int:
    chosen, roots, cycles = run(acc, scales, lanes=lanes, count=count, **options)
    first, n = lanes
    values = (acc * scales[:, :, None].astype(np.int64)).sum(axis=1).T[first : first + n]
    want = screen.select(values, count)
    assert len(chosen) == n
    for lane in range(n):
        assert sorted(chosen[lane]) == want[lane].tolist(), lane
        assert roots[lane] == values[lane, want[lane]].min()
    return cycles


def _values(rows: int, planes: int, seed: int) -> tuple[I64, NDArray[np.uint16]]:
    rng = np.random.default_rng(seed)
    most = 1 << CONFIG.row_width - 2
    return rng.integers(-most, most, (rows, planes, CONFIG.lanes)), rng.integers(0, 1 << 16, (rows, planes)).astype(
        np.uint16
    )


ORDERS: dict[str, Callable[[I64], I64]] = {
    "ascending": lambda x: np.sort(x, axis=0),
    "descending": lambda x: -np.sort(-x, axis=0),
    "equal": lambda x: np.full_like(x, 7),
    "few": lambda x: x % 3 - 1,
    "extreme": lambda x: np.where(x > 0, (1 << CONFIG.row_width - 1) - 1, -(1 << CONFIG.row_width - 1)),
}


@pytest.mark.parametrize("order", ORDERS)
def test_any_order_of_scores(order: str) -> None:
    """With equal scales: ties are many, and go to the lowest rows."""
    acc, scales = _values(150, 1, 1)
    check(ORDERS[order](acc), np.full_like(scales, 65535 if order == "extreme" else 3), lanes=(1, 1), count=32)


@pytest.mark.parametrize("rows", [32, 63, 64, 65, 150])
@pytest.mark.parametrize("planes", [1, 2])
def test_any_number_of_rows(rows: int, planes: int) -> None:
    check(*_values(rows, planes, rows), lanes=(0, 1), count=16)


@pytest.mark.parametrize(("lanes", "count"), [((0, 4), 32), ((1, 3), 16), ((3, 1), 32), ((0, 2), 64)])
@pytest.mark.parametrize("planes", [1, 2])
def test_any_lanes_and_counts(lanes: tuple[int, int], count: int, planes: int) -> None:
    """To the last of the entries that there are."""
    check(*_values(2 * count + 5, planes, 9), lanes=lanes, count=count)


def test_gaps_in_the_rows_and_who_does_not_take_change_nothing() -> None:
    check(*_values(140, 2, 4), lanes=(0, 3), count=32, stall=0.5, seed=3)


def test_sorting_in_takes_what_is_said() -> None:
    """Rows in random order, a cycle each: what is sorted in bounds the time, about."""
    rows, count = 400, 64
    cycles = check(*_values(rows, 1, 5), lanes=(0, 1), count=count)
    assert 0.6 < cycles / CandidateHeaps.expected_cycles(count, rows) < 1.1
