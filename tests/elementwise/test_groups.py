"""Largest magnitudes of groups and their exponents are golden's: whatever order lanes come in, and at every step of a power of two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from tellme.golden import elementwise, ternary
from tellme.golden.config import CHUNK, TINY
from tellme.golden.elementwise import Statistics
from tellme.hw.elementwise.groups import GroupExponent, GroupMaxima

CONFIG = replace(TINY, name="groups", weight_format="grouped")
WORDS = ternary.GROUP // CONFIG.word


@pytest.mark.parametrize("order", ["lane by lane", "chunk by chunk", "with gaps"])
def test_the_largest_magnitude_of_each_group(order: str) -> None:
    """Three runs, the second and third smaller than the one before, so that nothing of it may stay; signs, zeros, infinities and NaN."""
    dut = GroupMaxima(CONFIG)
    rng = np.random.default_rng(1)
    features = CONFIG.max_features
    chunks = features // CHUNK
    runs = []
    for scale in (1e9, 1.0, 1e-9):
        u = (rng.normal(size=(CONFIG.lanes, features)) * scale).astype(np.float32)
        u[0, :64] = 0
        u[1, 70], u[2, 3], u[3, -1] = -np.inf, np.nan, -50 * scale
        runs.append(u)
    places = [(lane, chunk) for lane in range(CONFIG.lanes) for chunk in range(chunks)]
    if order == "chunk by chunk":
        places.sort(key=lambda p: p[1])

    async def bench(ctx: Any) -> None:
        for u in runs:
            patterns = u.view(np.uint32)
            for lane, chunk in places:
                ctx.set(dut.write, 1)
                ctx.set(dut.lane, lane)
                ctx.set(dut.chunk, chunk)
                for i in range(CHUNK):
                    ctx.set(dut.u[i], int(patterns[lane, chunk * CHUNK + i]))
                await ctx.tick()
                if order == "with gaps":
                    ctx.set(dut.write, 0)
                    for i in range(CHUNK):
                        ctx.set(dut.u[i], 0x7FFFFFFF)  # nobody's
                    for _ in range(int(rng.integers(0, 3))):
                        await ctx.tick()
            ctx.set(dut.write, 0)
            for _ in range(GroupMaxima.delay):
                await ctx.tick()
            want = (patterns & 0x7FFFFFFF).reshape(CONFIG.lanes, -1, ternary.GROUP).max(axis=2)
            seen: list[int] = []
            asked = [(lane, word) for lane in range(CONFIG.lanes) for word in range(features // CONFIG.word)]
            for i in range(len(asked) + 2):
                if i < len(asked):
                    ctx.set(dut.read, 1)
                    ctx.set(dut.read_lane, asked[i][0])
                    ctx.set(dut.read_word, asked[i][1])
                if i >= 2:
                    seen.append(ctx.get(dut.largest))
                await ctx.tick()
            ctx.set(dut.read, 0)
            assert seen == [int(want[lane, word // WORDS]) for lane, word in asked]

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


def test_exponents_at_every_step() -> None:
    """Groups just at, above and below each power of two under the token's largest magnitude."""
    amax = np.float32(1.75 * 2.0**40)
    magnitudes = [np.float32(amax * np.float32(2.0**-k)) for k in range(12)]
    groups = [np.float32(0), amax]
    for m in magnitudes[1:]:
        groups += [m, np.nextafter(m, np.float32(0)), np.nextafter(m, amax)]
    u = np.zeros((len(groups), ternary.GROUP), np.float32)
    u[:, 5] = groups
    u[:, 7] = -np.float32(1e-20)
    token = u.reshape(1, -1)
    want = elementwise.exponents(Statistics(np.zeros(1, np.float32), np.float32([amax]), token))[0]
    assert set(want.tolist()) == {0, 2, 4, 6}
    dut = GroupExponent()

    async def bench(ctx: Any) -> None:
        largest = int(amax.view(np.uint32))
        got = []
        rows = [(int(np.abs(g).max().view(np.uint32)), 1) for g in u] + [(0, 0)]
        for i in range(len(rows) + dut.delay):
            if i < len(rows):
                ctx.set(dut.largest, largest)
                ctx.set(dut.group, rows[i][0])
                ctx.set(dut.enable, rows[i][1])
            if i >= dut.delay:
                got.append(ctx.get(dut.code) * ternary.EXPONENT_STEP)
            await ctx.tick()
        assert got == [*want.tolist(), 0]  # the last is not enabled

    sim = Simulator(dut)
    sim.add_clock(1e-6)
    sim.add_testbench(bench)
    sim.run()


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 3, 4])
def test_the_largest_magnitude_of_a_group_is_found_whatever_comes_between(groups: int, gaps: bool) -> None:
    """Chunks of so many groups in any order: one after the other, every second, every third."""
    rng = np.random.default_rng(groups)
    dut = GroupMaxima(CONFIG)
    chunks = ternary.GROUP // CHUNK
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
                ctx.set(dut.read_word, group * (ternary.GROUP // CONFIG.word))
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
