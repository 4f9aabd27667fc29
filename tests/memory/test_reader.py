"""The stream reader against the simulated memory: every beat, in order, at every stall; its rate; its errors."""

from __future__ import annotations

import os
import random
from typing import Any

import cocotb
import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Component, Out
from cocotb.triggers import RisingEdge

from tellme.golden.config import KV260, AcceleratorConfig
from tellme.golden.registers import ErrorCode
from tellme.hw.memory import StreamReader
from tellme.hw.memory.axi import ADDRESS_WIDTH
from tellme.hw.memory.reader import LEAD
from tellme.sim import harness, runner
from tellme.sim.timing import MemoryTiming, timing
from tests.memory.common import CONFIGS, SMALL, beats_of, cut, fill, pass_through, soft_reset, start

BEATS = 4096


def run(
    config: AcceleratorConfig,
    how: MemoryTiming,
    testcase: str,
    beats: int = BEATS,
    design: Component | None = None,
    **parameters: Any,
) -> None:
    folder = harness.build(design or StreamReader(config))
    with harness.shared_memory(config, beats, how) as memory:
        expected = fill(memory, 5)
        np.save(path := folder / f"expected-{testcase}-{os.getpid()}.npy", expected)
        parameters |= {"beats": beats, "config": config.name, "bases": memory.port_bases, "expected": str(path)}
        try:
            runner.run(folder, __name__, top="tb_top", testcase=testcase, parameters=parameters)
        finally:
            path.unlink()


def segments_of(count: int, seed: int, beats: int = BEATS) -> list[tuple[int, int]]:
    """Random segments after the edges: one beat, a burst, one more, a 4 KiB crossing, the last beats, an empty one, some
    that follow one another; then every other random one goes on where the one before it ends."""
    rng = random.Random(seed)
    edges = [(0, 1), (7, 1), (0, 8), (1, 8), (0, 9), (500, 30), (beats - 1, 1), (beats - 9, 9), (3, 0), (256, 257)]
    edges += [(40, 3), (43, 0), (43, 2), (45, 20), (66, 1)]
    out = [(a := rng.randrange(beats), rng.randint(1, min(120, beats - a))) for _ in range(count)]
    for n in range(1, count, 2):
        if (a := sum(out[n - 1])) < beats:
            out[n] = a, min(out[n][1], beats - a)
    return edges + out


async def stream(
    dut: Any, segments: list[tuple[int, int]], limit: int, take: float = 1.0, gap: float = 0.0, seed: int = 1
) -> tuple[list[int], int]:
    """Feeds segments and takes beats until `limit` came; returns them and the cycles from the first to the last."""
    rng = random.Random(seed)
    todo = list(reversed(segments))
    out: list[int] = []
    offered = False
    first = last = cycle = idle = 0
    while len(out) < limit and idle < 5000:
        # The clock is the test bench's: what is read here is the state after the edge, what is set meets the next edge.
        await RisingEdge(dut.clock)
        cycle += 1
        idle += 1
        ready = rng.random() < take
        dut.beats__ready.value = int(ready)
        if ready and int(dut.beats__valid.value):
            out.append(dut.beats__payload.value.to_unsigned())
            first, last, idle = first or cycle, cycle, 0
        if todo and not offered and rng.random() >= gap:
            address, beats = todo[-1]
            dut.segments__payload.value = address | beats << 32
            offered = True
        dut.segments__valid.value = int(offered)
        if offered and int(dut.segments__ready.value):
            todo.pop()
            offered = False
    await RisingEdge(dut.clock)
    dut.beats__ready.value = 0
    dut.segments__valid.value = 0
    return out, last - first + 1


def as_ints(expected: np.ndarray, segments: list[tuple[int, int]]) -> list[int]:
    return [int.from_bytes(expected[n].tobytes(), "little") for a, b in segments for n in range(a, a + b)]


@cocotb.test()
async def check_contents(dut: Any) -> None:
    p = runner.parameters()
    expected = np.load(p["expected"])
    await start(dut, p["bases"], BEATS)
    segments = segments_of(p["count"], p["seed"])
    want = as_ints(expected, segments)
    got, _ = await stream(dut, segments, len(want), p["take"], p["gap"])
    assert got == want, next(n for n, (g, w) in enumerate(zip(got, want, strict=False)) if g != w)
    for _ in range(20):
        await RisingEdge(dut.clock)
        assert not int(dut.beats__valid.value)
    assert int(dut.quiet.value) and int(dut.error.value) == ErrorCode.NONE and int(dut.level.value) == 0


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize(
    ("how", "take", "gap"), [("ideal", 1.0, 0.0), ("ideal", 0.5, 0.3), ("kv260", 1.0, 0.0), ("stress", 0.7, 0.2)]
)
def test_every_beat_arrives_in_order(config: str, how: str, take: float, gap: float) -> None:
    run(CONFIGS[config], timing(how), "check_contents", take=take, gap=gap, seed=3, count=30)


@cocotb.test()
async def check_slow_consumer(dut: Any) -> None:
    """The FIFO fills, nothing is lost, and no more is asked for than fits."""
    p = runner.parameters()
    expected = np.load(p["expected"])
    await start(dut, p["bases"], BEATS)
    segments = [(0, 1000)]
    dut.segments__payload.value = 1000 << 32
    dut.segments__valid.value = 1
    dut.beats__ready.value = 0
    await RisingEdge(dut.clock)
    dut.segments__valid.value = 0
    for _ in range(300):
        await RisingEdge(dut.clock)
    config = CONFIGS[p["config"]]
    assert config.fifo_beats - config.burst_beats < int(dut.level.value) <= config.fifo_beats and int(dut.quiet.value)
    got, cycles = await stream(dut, [], 1000)
    assert got == as_ints(expected, segments)


def test_full_fifo_stops_the_bursts() -> None:
    run(SMALL, timing("ideal"), "check_slow_consumer")


@cocotb.test()
async def check_rate(dut: Any) -> None:
    p = runner.parameters()
    await start(dut, p["bases"], p["beats"])
    dut.beats__ready.value = 1
    todo = [(a, min(p["segment"], p["beats"] - a)) for a in range(0, p["beats"], p["segment"])][::-1]
    got = first = cycle = 0
    while got < p["beats"]:
        await RisingEdge(dut.clock)
        cycle += 1
        if int(dut.beats__valid.value):
            got += 1
            first = first or cycle
        dut.segments__valid.value = bool(todo)
        if todo:
            address, beats = todo[-1]
            dut.segments__payload.value = address | beats << 32
            if int(dut.segments__ready.value):
                todo.pop()
    rate = got / (cycle - first + 1)
    print(f"reader rate: {got} beats in {cycle - first + 1} cycles = {rate:.4f}, first beat after {first} cycles")
    assert p["low"] <= rate <= p["high"], rate
    assert int(dut.error.value) == ErrorCode.NONE


@pytest.mark.parametrize(
    ("how", "beats", "segment", "low", "high"),
    [
        ("ideal", 20000, 20000, 0.9999, 1.0),
        # 20 of 1,950 cycles are pauses: 0.9897 is all there is.
        ("kv260-ideal", 20000, 20000, 0.985, 0.991),
        ("kv260-ideal", 20000, 64, 0.985, 0.991),
        # Ports 1 and 2 at 80 %, in 1,862 of 1,950 cycles: 0.764. Bursts of 64 beats get 0.736 (0.717 of the first 20,000).
        ("kv260-pessimistic", 80000, 20000, 0.73, 0.78),
    ],
)
def test_reader_sustains_the_memory_rate(how: str, beats: int, segment: int, low: float, high: float) -> None:
    run(KV260, timing(how), "check_rate", beats=beats, segment=segment, low=low, high=high)


class Watched(wiring.Component):
    """A reader, and the bursts of its first port as they are taken."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._reader = StreamReader(config)
        super().__init__(
            dict(self._reader.signature.members.items())
            | {"seen": Out(1), "seen_address": Out(ADDRESS_WIDTH), "seen_length": Out(8)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.reader = reader = self._reader
        pass_through(m, reader, self)
        first = self.m_axi[0]
        m.d.comb += [
            self.seen.eq(first.arvalid & first.arready),
            self.seen_address.eq(first.araddr),
            self.seen_length.eq(first.arlen),
        ]
        return m


@cocotb.test()
async def check_bursts(dut: Any) -> None:
    """Every burst that leaves, its data, and what came before a segment that did not follow in time."""
    p = runner.parameters()
    config = CONFIGS[p["config"]]
    expected = np.load(p["expected"])
    await start(dut, p["bases"], BEATS)
    seen: list[tuple[int, int]] = []

    async def watch() -> None:
        size = config.port_bytes
        while True:
            await RisingEdge(dut.clock)
            if int(dut.seen.value):
                address = int(dut.seen_address.value) - p["bases"][0]
                beats = int(dut.seen_length.value) + 1
                assert address // 4096 == (address + beats * size - 1) // 4096
                seen.append((address // size, beats))

    cocotb.start_soon(watch())
    # What goes on inside a block, at its end, over several segments of a beat, backwards, and over nothing at all.
    first = [
        (0, 2000),
        (2000, 3),
        (2003, 1),
        (2004, 1),
        (2005, 40),
        (2045, 3),
        (2048, 7),
        (2054, 4),
        (2058, 0),
        (2058, 9),
    ]
    first += [(100, 5), (95, 5), (105, 1)] + [(a, 5) for a in range(301, 401, 5)] + [(BEATS - 20, 13), (BEATS - 7, 7)]
    want = as_ints(expected, first)
    got, _ = await stream(dut, first, len(want))
    assert got == want
    assert seen == cut(first, config.burst_beats)
    # Nothing else is on its way: what is asked for leaves at once, not with what may follow.
    seen.clear()
    got, _ = await stream(dut, [(9, 2)], 2)
    again, _ = await stream(dut, [(11, 2)], 2)
    assert got + again == as_ints(expected, [(9, 4)])
    assert seen == cut([(9, 2)], config.burst_beats) + cut([(11, 2)], config.burst_beats)
    # An error drops what was held; the same address is read anew behind it.
    await expect_error(dut, (BEATS, 1), ErrorCode.READ_WINDOW, BEATS)
    await soft_reset(dut)
    got, _ = await stream(dut, [(13, 6)], 6)
    assert got == as_ints(expected, [(13, 6)])


@pytest.mark.parametrize("config", CONFIGS)
def test_bursts_go_on_across_segments(config: str) -> None:
    run(CONFIGS[config], timing("kv260-ideal"), "check_bursts", design=Watched(CONFIGS[config]))


class Counted(wiring.Component):
    """A reader, and how many bursts each of its two ports has sent."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._reader = StreamReader(config)
        super().__init__(dict(self._reader.signature.members.items()) | {"sent0": Out(16), "sent1": Out(16)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.reader = reader = self._reader
        pass_through(m, reader, self)
        for axi, sent in zip(self.m_axi, (self.sent0, self.sent1), strict=True):
            with m.If(axi.arvalid & axi.arready):
                m.d.sync += sent.eq(sent + 1)
        return m


@cocotb.test()
async def check_lead(dut: Any) -> None:
    """How far the fast port gets ahead of the slow one, in bursts; every beat comes all the same."""
    p = runner.parameters()
    expected = np.load(p["expected"])
    await start(dut, p["bases"], BEATS)
    dut.free.value = int(p["free"])
    lead = [0]

    async def watch() -> None:
        while True:
            await RisingEdge(dut.clock)
            lead.append(int(dut.sent0.value) - int(dut.sent1.value))

    cocotb.start_soon(watch())
    segments = [(0, 800), (1000, 5), (1005, 300), (77, 1)]
    got, _ = await stream(dut, segments, 1106)
    assert got == as_ints(expected, segments)
    print(f"fast port ahead by {max(lead)} bursts, free {p['free']}")
    assert p["low"] <= max(lead) <= p["high"]


# One more than LEAD is on its way. A free port is held up by its FIFO of eight bursts alone.
@pytest.mark.parametrize(("free", "low", "high"), [(False, 1, LEAD + 1), (True, LEAD + 2, 8)])
def test_a_fast_port_waits_for_a_slow_one_unless_it_is_free(free: bool, low: int, high: int) -> None:
    slow = timing("kv260-ideal", shared=(((1,), 2.0),))  # a quarter of port 1's width
    run(SMALL, slow, "check_lead", design=Counted(SMALL), free=free, low=low, high=high)


async def expect_error(dut: Any, segment: tuple[int, int], code: ErrorCode, address: int, limit: int = 500) -> None:
    dut.segments__payload.value = segment[0] | segment[1] << 32
    dut.segments__valid.value = 1
    dut.beats__ready.value = 1
    await RisingEdge(dut.clock)
    dut.segments__valid.value = 0
    cycles = 0
    while cycles < limit and (not cycles or not int(dut.error.value)):
        await RisingEdge(dut.clock)
        cycles += 1
    assert (int(dut.error.value), int(dut.error_address.value)) == (code, address)
    if code == ErrorCode.TIMEOUT:  # so many cycles behind the request
        patience = int(dut.timeout.value)
        assert patience <= cycles <= patience + 80, cycles


@cocotb.test()
async def check_errors(dut: Any) -> None:
    """Each error is reported with its address, and after a soft reset the reader works as before."""
    p = runner.parameters()
    expected = np.load(p["expected"])
    window = 2048
    await start(dut, p["bases"], window, timeout=101)
    for segment in ((window, 1), (window - 1, 2), (0, window + 1), (0xFFFF_FFFF, 1), (0xFFFF_FFFF, 0xFFFF_FFFF)):
        await expect_error(dut, segment, ErrorCode.READ_WINDOW, segment[0])
        await soft_reset(dut)
        assert int(dut.error.value) == 0
    for segment, code, address in (
        ((990, 20), ErrorCode.READ_SLVERR, 1000),
        ((1100, 4), ErrorCode.READ_DECERR, 1101),
        ((1200, 8), ErrorCode.TIMEOUT, 1200),
    ):
        await expect_error(dut, segment, code, address)
        # Segments after an error are taken and dropped.
        got, _ = await stream(dut, [(0, 8), (8, 8)], 1 << 30)
        if code != ErrorCode.TIMEOUT:  # a memory that never answers cannot be waited for
            await soft_reset(dut)
            got, _ = await stream(dut, segments := [(5, 40), (1990, 58)], 98)
            assert got == as_ints(expected, segments)


def test_errors_are_reported_and_cleared() -> None:
    width = SMALL.port_bytes
    how = timing(
        "kv260",
        errors=((1000 * width, 1001 * width, 2), (1101 * width, 1102 * width, 3)),
        hangs=((1200 * width, 1208 * width),),
    )
    run(SMALL, how, "check_errors")


@cocotb.test()
async def check_clear(dut: Any) -> None:
    """A soft reset at any moment of a busy reader loses nothing that is asked for afterwards."""
    p = runner.parameters()
    expected = np.load(p["expected"])
    await start(dut, p["bases"], BEATS)
    rng = random.Random(11)
    for _ in range(25):
        n = rng.randint(1, 60)
        await stream(dut, [(rng.randrange(2000), 200), (rng.randrange(2000), 200)], n, take=0.8, seed=n)
        await soft_reset(dut)
        a = rng.randrange(2000)
        got, _ = await stream(dut, [(a, 30)], 30)
        assert got == as_ints(expected, [(a, 30)])
        assert not int(dut.error.value)


@pytest.mark.parametrize("how", ["kv260", "stress"])
def test_soft_reset_recovers_at_any_moment(how: str) -> None:
    run(SMALL, timing(how), "check_clear")


def test_no_bytes_are_written_by_reading() -> None:
    folder = harness.build(StreamReader(SMALL))
    with harness.shared_memory(SMALL, 64, timing("ideal")) as memory:
        before = fill(memory, 9)
        np.save(path := folder / "expected.npy", before)
        runner.run(
            folder,
            __name__,
            top="tb_top",
            testcase="check_errors_none",
            parameters={"bases": memory.port_bases, "expected": str(path)},
        )
        assert np.array_equal(beats_of(memory), before)


@cocotb.test()
async def check_errors_none(dut: Any) -> None:
    p = runner.parameters()
    await start(dut, p["bases"], 64)
    got, _ = await stream(dut, [(0, 64)], 64)
    assert got == as_ints(np.load(p["expected"]), [(0, 64)])
