"""The beat writer against the simulated memory: every strobed byte and no other, at every stall; its errors."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, RisingEdge

from tellme.golden.config import AcceleratorConfig, ConfigError
from tellme.golden.registers import ErrorCode
from tellme.hw.memory import BeatWriter
from tellme.sim import harness, runner
from tellme.sim.timing import MemoryTiming, timing
from tests.memory.common import CONFIGS, SMALL, beats_of, fill, soft_reset, start

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
    config: AcceleratorConfig, how: MemoryTiming, testcase: str, want: Any = None, low: int = 0, **parameters: Any
) -> None:
    folder = harness.build(BeatWriter(config))
    with harness.shared_memory(config, BEATS, how) as memory:
        expected = fill(memory, 5)
        for address, beat, strobe in want or []:
            for j in range(config.beat_bytes):
                if strobe >> j & 1:
                    expected[address, j] = beat[j]
        parameters |= {"config": config.name, "bases": [b | low for b in memory.port_bases]}
        runner.run(folder, __name__, top="tb_top", testcase=testcase, parameters=parameters)
        assert np.array_equal(beats_of(memory), expected)


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


@cocotb.test()
async def check_errors(dut: Any) -> None:
    p = runner.parameters()
    full = (1 << SMALL.beat_bytes) - 1
    await start(dut, p["bases"], 512, timeout=300)
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
        for _ in range(800):
            await RisingEdge(dut.clock)
            if int(dut.error.value):
                break
        assert (int(dut.error.value), int(dut.error_address.value)) == (code, address)
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


def test_one_write_in_flight_is_refused() -> None:
    with pytest.raises(ConfigError, match="outstanding must be at least 2, not 1"):
        BeatWriter(replace(SMALL, outstanding=1))
