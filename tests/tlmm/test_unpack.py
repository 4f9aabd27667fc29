"""Unpacking: every byte, every group size, against base-3 arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from amaranth.sim import Simulator

from tellme.golden.config import TINY
from tellme.hw.tlmm.unpack import Unpacker, entries, grouping, index_of

SEED = 1


@pytest.mark.parametrize("group_size", [2, 3, 4, 5])
@pytest.mark.parametrize("beat_bytes", [16, 32, 64])
def test_groups_hold_every_column_once(beat_bytes: int, group_size: int) -> None:
    groups = grouping(beat_bytes, group_size)
    assert sorted(c for g in groups for c in g) == list(range(5 * beat_bytes))
    assert len(groups) == -(-5 * beat_bytes // group_size)
    assert all(len(g) == group_size for g in groups[:-1]) and 1 <= len(groups[-1]) <= group_size


@pytest.mark.parametrize("group_size", [2, 3, 4, 5])
def test_every_byte_gives_its_groups_and_bad_bytes_are_flagged_as_zeros(group_size: int) -> None:
    config = replace(TINY, name="t", group_size=group_size)
    rng = np.random.default_rng(SEED)
    # Every code in every byte position, bad ones too.
    beats = np.stack([rng.permutation(256) for _ in range(config.beat_bytes)], axis=1).astype(np.uint8)
    good = np.stack([rng.permutation(243) for _ in range(config.beat_bytes)], axis=1).astype(np.uint8)
    beats = np.concatenate([beats, good])
    dut = Unpacker(config)
    seen: list[tuple[list[int], list[int], int]] = []

    async def bench(ctx: Any) -> None:
        for b in [*beats, *[beats[0]] * Unpacker.delay]:
            ctx.set(dut.beat, int.from_bytes(b.tobytes(), "little"))
            await ctx.tick()
            seen.append(([ctx.get(i) for i in dut.index], [ctx.get(n) for n in dut.negate], ctx.get(dut.bad)))

    simulator = Simulator(dut)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    for b, (index, negate, bad) in zip(beats, seen[Unpacker.delay - 1 :], strict=False):
        valid = np.where(b > 242, 121, b)
        weights = (valid[:, None] // 3 ** np.arange(5) % 3).reshape(-1) - 1
        wanted = [index_of(tuple(int(weights[c]) for c in g)) for g in grouping(config.beat_bytes, group_size)]
        assert [i for i, _ in wanted] == index
        assert [n for _, n in wanted] == negate
        assert max(index) < entries(group_size)
        assert bad == int((b > 242).any())
