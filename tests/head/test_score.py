"""The scorer's logits, best rows and bounds equal golden's, whatever the order of the rows, and whoever makes it wait."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator
from numpy.typing import NDArray

from tellme.golden import head, screen
from tellme.golden.config import TINY
from tellme.golden.layout import pack_rows
from tellme.hw.head.score import RowScorer

CONFIG = replace(TINY, name="score", max_hidden=128, screen_entries=128)
I8 = NDArray[np.int8]


def run(
    q: I8,
    scales: NDArray[np.float32],
    rows: list[tuple[NDArray[np.int8], NDArray[np.float32], list[int]]],
    roots: list[int],
    unit: np.float32,
    *,
    lanes: tuple[int, int],
    write: bool = True,
    stall: float = 0.0,
    dut: RowScorer | None = None,
) -> tuple[list[tuple[int, int, int]], dict[tuple[int, int], tuple[int, int]], list[int], int]:
    """A job: rows of each head lane, in the order in which they come.

    Returns
    -------
    ([lane, best row, pattern of its logit] as they come, (pattern, row) of what is written by (lane, number), patterns of bounds, cycles)
    """
    dut = dut or RowScorer(CONFIG)
    first, count = lanes
    rng = np.random.default_rng(5)
    beats: list[int] = []
    for own, own_scales, ids in rows:
        for i, number in enumerate(ids):
            packed = pack_rows(own[i : i + 1], own_scales[i : i + 1], number, CONFIG).reshape(-1, CONFIG.beat_bytes)
            beats += [int.from_bytes(b.tobytes(), "little") for b in packed]
    best: list[tuple[int, int, int]] = []
    written: dict[tuple[int, int], tuple[int, int]] = {}
    bounds: list[int] = []
    cycles = 0
    word_bytes = CONFIG.word

    async def bench(ctx: Any) -> None:
        nonlocal cycles
        for name, value in (
            ("head_first", first), ("head_count", count), ("candidates", len(rows[0][2])), ("inputs", q.shape[1]),
            ("bound_unit", int(unit.view(np.uint32))), ("write", write),
        ):  # fmt: skip
            ctx.set(getattr(dut, name), value)
        ctx.set(dut.start, 1)
        await ctx.tick()
        ctx.set(dut.start, 0)
        at = 0
        assert ctx.get(dut.busy)
        while ctx.get(dut.busy):
            assert cycles < 20_000
            ctx.set(dut.beats.valid, at < len(beats) and rng.random() >= stall)
            ctx.set(dut.beats.payload, beats[at] if at < len(beats) else 0)
            ctx.set(dut.written.ready, rng.random() >= stall)
            ctx.set(dut.root_score, [*roots, *[-7] * CONFIG.lanes][ctx.get(dut.root_lane)])
            en, lane, word = ctx.get(dut.int8.en), ctx.get(dut.int8.lane), ctx.get(dut.int8.word)
            asked = ctx.get(dut.query_scales.lane)
            assert ctx.get(dut.query_scales.head) == 0
            if ctx.get(dut.best):
                best.append((ctx.get(dut.best_lane), ctx.get(dut.best_row), ctx.get(dut.best_value)))
            if ctx.get(dut.written.valid) and ctx.get(dut.written.ready):
                p = dut.written.payload
                key = ctx.get(p.lane), ctx.get(p.number)
                assert key not in written
                written[key] = ctx.get(p.candidate.logit), ctx.get(p.candidate.row)
            taken = ctx.get(dut.beats.valid) and ctx.get(dut.beats.ready)
            await ctx.tick()
            cycles += 1
            at += taken
            if en:
                own = q[lane, word * word_bytes : (word + 1) * word_bytes].tobytes().ljust(word_bytes, b"\0")
                ctx.set(dut.int8.data, int.from_bytes(own, "little"))
            ctx.set(dut.query_scales.data, int(scales[asked].view(np.uint32)))
        assert at == len(beats)
        bounds.extend(ctx.get(dut.bound[i]) for i in range(CONFIG.lanes))

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()
    return best, written, bounds, cycles


@pytest.mark.parametrize(
    ("lanes", "features", "count", "stall", "write"),
    [((0, 1), 64, 16, 0.0, True), ((1, 3), 96, 16, 0.4, True), ((3, 1), 32, 32, 0.3, True), ((0, 4), 128, 16, 0.2, False)],
)  # fmt: skip
def test_logits_best_rows_and_bounds_are_golden_s(
    lanes: tuple[int, int], features: int, count: int, stall: float, write: bool
) -> None:
    """Rows come as heaps give them, in no order."""
    rng = np.random.default_rng(features)
    first, n = lanes
    x = rng.normal(size=(200, features))
    rows, row_scales = head.quantise_rows(x)
    ternary = screen.quantise(rows, row_scales)
    q = rng.integers(-128, 128, (CONFIG.lanes, features)).astype(np.int8)
    scales = rng.uniform(0.01, 0.1, CONFIG.lanes).astype(np.float32)
    want = screen.screened(q[first : first + n], scales[first : first + n], ternary, rows, row_scales, count)
    values = screen.scores(q[first : first + n], ternary)
    roots = [int(v[c].min()) for v, c in zip(values, want.indices, strict=True)]
    given, orders = [], []
    for own in want.indices:
        order = rng.permutation(count)
        orders.append(order)
        given.append((rows[own[order]], row_scales[own[order]], own[order].tolist()))
    best, written, bounds, cycles = run(
        q, scales, given, roots, screen.bound_unit(ternary), lanes=lanes, stall=stall, write=write
    )
    assert [(lane, row) for lane, row, _ in best] == [(first + i, want.best[i]) for i in range(n)]
    assert [v for _, _, v in best] == want.logits.max(axis=1).view(np.uint32).tolist()
    assert bounds[first : first + n] == want.bound.view(np.uint32).tolist()
    if write:
        assert sorted(written) == [(first + i, k) for i in range(n) for k in range(count)]
        for i in range(n):
            for k, place in enumerate(orders[i]):
                bits = int(want.logits[i, place].view(np.uint32))
                assert written[first + i, k] == (bits, want.indices[i, place])
    else:
        assert not written
    if not stall:
        expected = RowScorer.expected_cycles(CONFIG, inputs=features, rows=n * count, lanes=n)
        assert abs(cycles - expected) <= 0.1 * expected


@pytest.mark.parametrize("sign", [1, -1, 0])
def test_of_equal_logits_the_lowest_row_wins_whenever_it_comes(sign: int) -> None:
    """Of positive, of negative ones, and of zeros of both signs, which are one; a smaller logit before and behind."""
    q = np.full((CONFIG.lanes, 32), 1, np.int8)
    q[:, 16:] = -1
    top = np.zeros(32, np.int8)
    top[0] = 3 * sign
    low = top.copy()
    low[1] = -5
    ids = [900, 40, 77, (1 << 20) - 1, 0, 39, 41, 12]
    rows = np.array([top, top, low, top, low, top, top, low])
    row_scales = np.full(8, 0.5, np.float32)
    # -0 is the product of a negative scale with a sum of 0.
    row_scales[[0, 5]] = -0.5 if sign == 0 else 0.5
    best, written, _, _ = run(
        q, np.full(CONFIG.lanes, 0.25, np.float32), [(rows, row_scales, ids)], [-4096], np.float32(1), lanes=(2, 1)
    )
    want = head.logits(q[:1], np.float32([0.25]), rows, row_scales)[0]
    assert [w for w, _ in (written[2, k] for k in range(8))] == want.view(np.uint32).tolist()
    assert [(lane, row) for lane, row, _ in best] == [(2, 39)]
    assert np.uint32(best[0][2]).view(np.float32) == want.max()


def test_largest_sums_and_bounds_are_exact() -> None:
    """All -128 against all -127 and 127 over the most features; the lowest score that there is."""
    q = np.full((CONFIG.lanes, CONFIG.max_hidden), -128, np.int8)
    rows = np.stack([np.full(CONFIG.max_hidden, v, np.int8) for v in (-128, 127, -127)])
    row_scales = np.float32([1, 1, 3])
    lowest = -2 * 128 * CONFIG.max_hidden * ((1 << screen.SCALE_BITS) - 1)  # of two planes
    best, written, bounds, _ = run(
        q, np.float32([1] * CONFIG.lanes), [(rows, row_scales, [5, 6, 7])], [lowest], np.float32(2), lanes=(0, 1)
    )
    want = head.logits(q[:1], np.float32([1]), rows, row_scales)[0]
    assert [written[0, k][0] for k in range(3)] == want.view(np.uint32).tolist()
    assert best[0][1] == 7 and bounds[0] == int(np.float32((lowest >> screen.BOUND_SHIFT) * 2).view(np.uint32))
