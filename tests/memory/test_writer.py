"""The beat writer against the simulated memory: every strobed byte and no other, at every stall; its errors."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from cocotb.triggers import FallingEdge, RisingEdge

from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import ErrorCode
from tellme.hw.memory import BeatWriter
from tellme.hw.memory.axi import ADDRESS_WIDTH
from tellme.hw.memory.writer import LONGEST
from tellme.sim import harness, runner
from tellme.sim.timing import MemoryTiming, timing
from tests.memory.common import CONFIGS, SMALL, beats_of, cut, fill, pass_through, soft_reset, start

BEATS = 1024


def writes_of(config: AcceleratorConfig, count: int, seed: int) -> list[tuple[int, bytes, int]]:
    """(address, beat, strobe): the edges first (nothing, one byte, one port's part, everything), then anything."""
    rng = random.Random(seed)
    size, full = config.beat_bytes, (1 << config.beat_bytes) - 1
    strobes = [0, 1, 1 << size - 1, (1 << config.port_bytes) - 1, full, full]
    strobes += [rng.choice((full, rng.getrandbits(size))) for _ in range(count)]
    edges = [0, BEATS - 1, 7, 7, 7, 8]
    return [
        (edges[n] if n < len(edges) else rng.randrange(64 if n % 2 else BEATS), rng.randbytes(size), s)
        for n, s in enumerate(strobes)
    ]


def run(
    config: AcceleratorConfig,
    how: MemoryTiming,
    testcase: str,
    want: Any = None,
    low: int = 0,
    design: wiring.Component | None = None,
    ignored: int = 0,
    **parameters: Any,
) -> None:
    """Runs a test, then compares the memory from beat `ignored` on."""
    folder = harness.build(design or BeatWriter(config))
    with harness.shared_memory(config, BEATS, how) as memory:
        expected = fill(memory, 5)
        for address, beat, strobe in want or []:
            for j in range(config.beat_bytes):
                if strobe >> j & 1:
                    expected[address, j] = beat[j]
        parameters |= {"config": config.name, "bases": [b | low for b in memory.port_bases]}
        runner.run(folder, __name__, top="tb_top", testcase=testcase, parameters=parameters)
        assert np.array_equal(beats_of(memory)[ignored:], expected[ignored:])


async def feed(dut: Any, config: AcceleratorConfig, writes: list[tuple[int, bytes, int]], gap: float = 0.0) -> int:
    """Hands the writes over and waits until idle; returns how many were counted."""
    rng = random.Random(1)
    todo, counted, offered = list(reversed(writes)), 0, False
    for _ in range(60_000):
        await RisingEdge(dut.clock)
        if todo and not offered and rng.random() >= gap:
            address, beat, strobe = todo[-1]
            payload = address | int.from_bytes(beat, "little") << 32 | strobe << 32 + 8 * config.beat_bytes
            dut.writes__payload.value = payload
            offered = True
        dut.writes__valid.value = int(offered)
        await FallingEdge(dut.clock)
        counted += int(dut.writes_count.value)
        if offered and int(dut.writes__ready.value):
            todo.pop()
            offered = False
        elif not todo and not offered and int(dut.idle.value):
            return counted
    raise AssertionError("the writer did not become idle")


@cocotb.test()
async def check_contents(dut: Any) -> None:
    p = runner.parameters()
    config = CONFIGS[p["config"]]
    await start(dut, p["bases"], BEATS, timeout=3000)
    writes = writes_of(config, p["count"], p["seed"])
    assert await feed(dut, config, writes, p["gap"]) == len(writes)
    # Idle promises that memory holds everything: the host compares right after this.
    assert int(dut.error.value) == ErrorCode.NONE and int(dut.quiet.value)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(("how", "gap"), [("ideal", 0.0), ("kv260", 0.0), ("stress", 0.3)])
def test_strobed_bytes_and_no_others_are_written(config: str, how: str, gap: float) -> None:
    c = CONFIGS[config]
    run(c, timing(how), "check_contents", writes_of(c, 200, 4), count=200, seed=4, gap=gap)


@pytest.mark.parametrize("low", [1, 8, 0x7F0, 0xFFF])
def test_low_bits_of_a_base_count_as_zero(low: int) -> None:
    run(SMALL, timing("ideal"), "check_contents", writes_of(SMALL, 20, 6), low=low, count=20, seed=6, gap=0.0)


class Watched(wiring.Component):
    """A writer, and the bursts of its first port as they are taken."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._writer = BeatWriter(config)
        members = dict(self._writer.signature.members.items())
        super().__init__(members | {"seen": Out(1), "seen_address": Out(ADDRESS_WIDTH), "seen_length": Out(8)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.writer = self._writer
        pass_through(m, self._writer, self)
        first = self.m_axi[0]
        m.d.comb += [
            self.seen.eq(first.awvalid & first.awready),
            self.seen_address.eq(first.awaddr),
            self.seen_length.eq(first.awlen),
        ]
        return m


def consecutive(config: AcceleratorConfig, where: list[tuple[int, int]], seed: int) -> list[tuple[int, bytes, int]]:
    """Whole beats, for each (address, beats) one after the other."""
    rng = random.Random(seed)
    size = config.beat_bytes
    return [(n, rng.randbytes(size), (1 << size) - 1) for a, b in where for n in range(a, a + b)]


RUNS = [(0, 100), (200, 5), (205, 1), (206, 50), (310, 3), (309, 2), (309, 1), (BEATS - 40, 40)]


@cocotb.test()
async def check_bursts(dut: Any) -> None:
    p = runner.parameters()
    config = CONFIGS[p["config"]]
    await start(dut, p["bases"], BEATS, timeout=3000)
    longest = min(config.burst_beats, LONGEST)
    seen: list[tuple[int, int]] = []

    async def watch() -> None:
        while True:
            await RisingEdge(dut.clock)
            if int(dut.seen.value):
                address = int(dut.seen_address.value) - p["bases"][0]
                seen.append((address // config.port_bytes, int(dut.seen_length.value) + 1))

    cocotb.start_soon(watch())
    # The writer of these says that there is more to come: pauses do not cut a burst.
    dut.more.value = 1
    writes = consecutive(config, RUNS, 8)
    rng = random.Random(2)
    for address, beat, strobe in writes:
        dut.writes__payload.value = (
            address | int.from_bytes(beat, "little") << 32 | strobe << 32 + 8 * config.beat_bytes
        )
        dut.writes__valid.value = 1
        await FallingEdge(dut.clock)
        while not int(dut.writes__ready.value):
            await FallingEdge(dut.clock)
        await RisingEdge(dut.clock)
        if rng.random() < 0.1:
            dut.writes__valid.value = 0
            for _ in range(rng.randint(1, 60)):
                await RisingEdge(dut.clock)
    dut.writes__valid.value = 0
    for _ in range(300):
        await RisingEdge(dut.clock)
    last = seen and seen[-1] == (BEATS - longest, longest)
    assert last, seen[-3:]  # whole, so it does not wait
    dut.more.value = 0
    assert await feed(dut, config, [(1, bytes(config.beat_bytes), 0)]) == 1
    assert seen == cut(RUNS, longest)


@pytest.mark.parametrize("how", ["kv260", "stress"])
@pytest.mark.parametrize("config", CONFIGS)
def test_writes_that_follow_one_another_are_one_burst(config: str, how: str) -> None:
    c = CONFIGS[config]
    run(c, timing(how), "check_bursts", consecutive(c, RUNS, 8), design=Watched(c))


@cocotb.test()
async def check_clear(dut: Any) -> None:
    """A soft reset at any moment: bursts that have begun are completed (the memory counts their beats), nothing hangs."""
    p = runner.parameters()
    config = CONFIGS[p["config"]]
    await start(dut, p["bases"], BEATS)
    rng = random.Random(3)
    full = (1 << config.beat_bytes) - 1
    for n in range(40):
        dut.more.value = rng.getrandbits(1)
        address = rng.randrange(400)
        for _ in range(rng.randint(1, 40)):
            dut.writes__payload.value = address | full << 32 + 8 * config.beat_bytes
            dut.writes__valid.value = 1
            await FallingEdge(dut.clock)
            address += int(dut.writes__ready.value)
            await RisingEdge(dut.clock)
        dut.writes__valid.value = 0
        await soft_reset(dut)
        dut.more.value = 0
        beat = random.Random(n).randbytes(config.beat_bytes)
        assert await feed(dut, config, [(500 + n, beat, full), (501 + n, beat, full)]) == 2


@pytest.mark.parametrize("how", ["kv260", "stress"])
def test_soft_reset_recovers_at_any_moment(how: str) -> None:
    c = SMALL
    full = (1 << c.beat_bytes) - 1
    after = [(500 + n + k, random.Random(n).randbytes(c.beat_bytes), full) for n in range(40) for k in range(2)]
    run(c, timing(how), "check_clear", after, ignored=440)


@cocotb.test()
async def check_errors(dut: Any) -> None:
    p = runner.parameters()
    full = (1 << SMALL.beat_bytes) - 1
    await start(dut, p["bases"], 512, timeout=301)
    beat = bytes(SMALL.beat_bytes)
    for address, code in (
        (512, ErrorCode.WRITE_WINDOW),
        (0xFFFF_FFFF, ErrorCode.WRITE_WINDOW),
        (100, ErrorCode.WRITE_SLVERR),
        (101, ErrorCode.WRITE_DECERR),
        (102, ErrorCode.TIMEOUT),
    ):
        dut.writes__payload.value = address | full << 32 + 8 * SMALL.beat_bytes
        dut.writes__valid.value = 1
        await RisingEdge(dut.clock)
        dut.writes__valid.value = 0
        cycles = 0
        while cycles < 800 and (not cycles or not int(dut.error.value)):
            await RisingEdge(dut.clock)
            cycles += 1
        assert (int(dut.error.value), int(dut.error_address.value)) == (code, address)
        assert code != ErrorCode.TIMEOUT or 301 <= cycles <= 331, cycles
        # What follows an error is taken and dropped: the memory must not change.
        dut.writes__payload.value = 5 | full << 32 + 8 * SMALL.beat_bytes
        dut.writes__valid.value = 1
        for _ in range(50):
            await RisingEdge(dut.clock)
            assert int(dut.writes__ready.value)
        dut.writes__valid.value = 0
        if code != ErrorCode.TIMEOUT:  # a memory that never answers cannot be waited for
            await soft_reset(dut)
            assert not int(dut.error.value)
            assert await feed(dut, SMALL, [(9, beat, 0)]) == 1


def test_errors_are_reported_and_nothing_is_written() -> None:
    width = SMALL.port_bytes
    how = timing(
        "kv260",
        errors=tuple(
            (r * 8192 + n * width, r * 8192 + (n + 1) * width, k) for r in range(2) for n, k in ((100, 2), (101, 3))
        ),
        hangs=tuple((r * 8192 + 102 * width, r * 8192 + 103 * width) for r in range(2)),
    )
    run(SMALL, how, "check_errors")
