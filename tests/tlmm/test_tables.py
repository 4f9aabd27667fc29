"""The table builder and memories: every entry of every group, at the extremes of int8."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from tellme.golden.config import TINY, AcceleratorConfig
from tellme.hw.tlmm.tables import TableBuilder, TableMemory, gray_walk, sum_width
from tellme.hw.tlmm.unpack import entries, grouping, index_of

SEED = 2


def sized(group_size: int) -> AcceleratorConfig:
    return replace(TINY, name="t", group_size=group_size, lanes=2)


@pytest.mark.parametrize("group_size", [2, 3, 4, 5])
def test_walk_makes_each_positive_entry_once_by_single_steps(group_size: int) -> None:
    now = np.zeros(group_size, int)
    indices = []
    for weights, digit, by in gray_walk(group_size):
        now[digit] += by
        assert tuple(now) == weights and abs(by) == 1
        index, negate = index_of(weights)
        assert not negate
        indices.append(index)
    assert sorted(indices) == list(range(1, entries(group_size)))


@pytest.mark.parametrize("group_size", [2, 3, 4, 5])
def test_builder_writes_every_signed_sum_also_of_minus_128(group_size: int) -> None:
    config = sized(group_size)
    rng = np.random.default_rng(SEED)
    tiles = rng.integers(-128, 128, (3, config.beat_weights)).astype(np.int8)
    tiles[1] = -128
    tiles[2] = np.where(rng.random(config.beat_weights) < 0.5, -128, 127)
    dut = TableBuilder(config)
    tables = [np.full((config.groups, entries(group_size)), 99999) for _ in tiles]
    count = entries(group_size)

    async def bench(ctx: Any) -> None:
        async def shift(tile: np.ndarray) -> None:
            for w in tile.reshape(-1, config.word):
                ctx.set(dut.word, int.from_bytes(w.tobytes(), "little"))
                ctx.set(dut.shift, 1)
                await ctx.tick()
            ctx.set(dut.shift, 0)

        await shift(tiles[0])
        ctx.set(dut.take, 1)
        await ctx.tick()
        ctx.set(dut.take, 0)
        for n, table in enumerate(tables):
            for step in range(count):
                assert ctx.get(dut.building)
                assert ctx.get(dut.last) == (step == count - 1)
                entry = ctx.get(dut.entry)
                for g, v in enumerate(dut.value):
                    table[g, entry] = ctx.get(v) - (1 << sum_width(group_size) - 1)
                last = step == count - 1 and n + 1 < len(tiles)
                # The next tile arrives during the first steps (all of it in one step: simulated time is not the point).
                ctx.set(dut.take, int(last))
                if step < config.tile_words and n + 1 < len(tiles) and count >= config.tile_words:
                    w = tiles[n + 1].reshape(-1, config.word)[step]
                    ctx.set(dut.word, int.from_bytes(w.tobytes(), "little"))
                    ctx.set(dut.shift, 1)
                else:
                    ctx.set(dut.shift, 0)
                await ctx.tick()
            if n + 1 < len(tiles) and count < config.tile_words:
                # A short walk ends before 20 words have come: take again once they are in place.
                ctx.set(dut.take, 0)
                await shift(tiles[n + 1])
                ctx.set(dut.take, 1)
                await ctx.tick()
                ctx.set(dut.take, 0)
        ctx.set(dut.take, 0)
        assert not ctx.get(dut.building)

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    for tile, table in zip(tiles.astype(int), tables, strict=True):
        for g, columns in enumerate(grouping(config.beat_bytes, group_size)):
            for weights in product((-1, 0, 1), repeat=len(columns)):
                index, negate = index_of(weights)
                wanted = sum(w * tile[c] for w, c in zip(weights, columns, strict=True))
                assert (-table[g, index] if negate else table[g, index]) == wanted


@pytest.mark.parametrize("group_size", [2, 3, 4, 5])
def test_memory_keeps_lanes_and_banks_apart(group_size: int) -> None:
    config = sized(group_size)
    rng = np.random.default_rng(SEED)
    count, width = entries(group_size), sum_width(group_size)
    groups = range(0, config.groups, 7)
    dut = TableMemory(config)
    content = rng.integers(0, 1 << width, (2, count, config.lanes, config.groups))

    async def bench(ctx: Any) -> None:
        for bank, entry, lane in product(range(2), range(count), range(config.lanes)):
            ctx.set(dut.write_bank, bank)
            ctx.set(dut.write_entry, entry)
            ctx.set(dut.write_lane, 1 << lane)
            for g in groups:
                ctx.set(dut.write_value[g], int(content[bank, entry, lane, g]))
            await ctx.tick()
        ctx.set(dut.write_lane, 0)
        for bank, entry in product(range(2), range(count)):
            ctx.set(dut.read_bank, bank)
            for g in groups:
                ctx.set(dut.index[g], (entry + g) % count)
            await ctx.delay(1e-8)
            for g in groups:
                assert [ctx.get(v) for v in dut.value[g]] == list(content[bank, (entry + g) % count, :, g])

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
