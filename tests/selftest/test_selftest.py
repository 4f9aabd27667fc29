"""The self-test as it stands in the bitstream: its text, decoded from the serial line, says what golden says."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge, Timer, with_timeout

from tellme.golden.registers import build_hash
from tellme.golden.selftest import SELFTEST, checksum, expected, jobs
from tellme.golden.ternary import linear
from tellme.hw.selftest import BAUD, SelfTest, UartTransmitter
from tellme.hw.tlmm.engine import expected_cycles
from tellme.sim.runner import parameters, simulate

PERIOD_NS = 10
"""The simulated clock is faster than the board's; a bit takes as many cycles."""
BIT_NS = PERIOD_NS * round(SELFTEST.clock_hz / BAUD)
LINE = re.compile(r"tellme TLMM self-test (\w{8}) rows (\w{8}) cycles (\w{8}) checksum (\w{16}) (PASS|FAIL)\r\n")


async def receive(dut: Any, count: int) -> bytes:
    """Letters from the serial line, sampled in the middle of each bit; a bad stop bit fails."""
    out = bytearray()
    for _ in range(count):
        await with_timeout(FallingEdge(dut.tx), 40 * BIT_NS, "ns")
        await Timer(BIT_NS // 2, "ns")
        assert dut.tx.value == 0
        byte = 0
        for i in range(8):
            await Timer(BIT_NS, "ns")
            byte |= int(dut.tx.value) << i
        await Timer(BIT_NS, "ns")
        assert dut.tx.value == 1, "no stop bit"
        out.append(byte)
    return bytes(out)


async def reset(dut: Any) -> None:
    dut.rst.value = 1
    cocotb.start_soon(Clock(dut.clk, PERIOD_NS, "ns").start())
    for _ in range(4):
        await RisingEdge(dut.clk)
    await Timer(1, "ns")
    dut.rst.value = 0


@cocotb.test()
async def check_reports(dut: Any) -> None:
    p = parameters()
    await reset(dut)
    length = len("tellme TLMM self-test 01234567 rows 01234567 cycles 01234567 checksum 0123456701234567 PASS\r\n")
    for _ in range(p["lines"]):
        text = (await receive(dut, length)).decode("ascii")
        match = LINE.fullmatch(text)
        assert match, text
        build, rows, cycles, sum_, outcome = match.groups()
        assert outcome == p["outcome"], text
        assert build == f"{build_hash(SELFTEST):08x}"
        assert (int(dut.passed.value), int(dut.failed.value)) == ((1, 0) if outcome == "PASS" else (0, 1))
        if p["sum"] is not None:
            assert sum_ == p["sum"], text
            assert int(rows, 16) == p["rows"]
            least, most = p["cycles"]
            assert least <= int(cycles, 16) <= most, text


def run(test: SelfTest, outcome: str, *, sum_: int | None, lines: int = 1) -> None:
    """Simulates a self-test and compares its report."""
    c = test.config
    engine = sum(
        expected_cycles(c, tiles=j.tiles(c), rows=len(j.weights), block_rows=j.block_rows, lanes=len(j.activations))
        for j in test.work
    )
    simulate(
        test,
        __name__,
        testcase="check_reports",
        parameters={
            "outcome": outcome,
            "sum": None if sum_ is None else f"{sum_:016x}",
            "rows": test.rows,
            "cycles": [engine, engine + 16 * len(test.work)],
            "lines": lines,
        },
        name=f"selftest-{outcome}",
    )


def test_two_runs_report_the_golden_checksum_and_the_engine_s_cycles() -> None:
    test = SelfTest(SELFTEST)
    run(test, "PASS", sum_=expected(SELFTEST, jobs(SELFTEST)), lines=2)


def test_one_wrong_weight_fails() -> None:
    """The checksum is the good jobs'; one weight of the memory is another."""
    work = jobs(SELFTEST)
    good = expected(SELFTEST, work)
    work[1].weights[3, 7] = 1 if work[1].weights[3, 7] < 1 else 0
    run(SelfTest(SELFTEST, work, checksum=good), "FAIL", sum_=expected(SELFTEST, work))


def test_a_run_that_hangs_is_reported() -> None:
    """A job that asks for more rows than there are beats never ends; the report comes all the same."""
    test = SelfTest(SELFTEST)
    test.limit = 50
    run(test, "FAIL", sum_=None)


def test_the_checksum_knows_every_weight() -> None:
    """Any one weight changed changes it."""
    good = expected(SELFTEST, jobs(SELFTEST))
    rng = np.random.default_rng(3)
    for _ in range(50):
        work = jobs(SELFTEST)
        w = work[rng.integers(len(work))].weights
        place = tuple(rng.integers(n) for n in w.shape)
        w[place] = (w[place] + 2) % 3 - 1
        assert expected(SELFTEST, work) != good


def test_checksum_is_that_of_its_definition() -> None:
    values = [np.array([[3], [-5]]), np.array([[1 << 21]])]
    a, b = 0, 0
    for v in (3, -5, 1 << 21):
        a = (a + v) % (1 << 32)
        b = (b + a) % (1 << 32)
    assert checksum(values) == b << 32 | a


def test_jobs_reach_the_largest_accumulators_and_every_width() -> None:
    work = jobs(SELFTEST)
    results = [linear(j.weights, j.activations) for j in work]
    k = work[-1].weights.shape[1]
    assert max(r.max() for r in results) == 128 * k == -min(r.min() for r in results)
    assert any(len(j.weights) > SELFTEST.block_rows for j in work), "more than one row block"
    assert len({j.tiles(SELFTEST) for j in work}) > 1
    assert len({expected(SELFTEST, jobs(SELFTEST, seed)) for seed in range(5)}) == 5


def test_a_line_that_is_too_fast_is_refused() -> None:
    with pytest.raises(ValueError, match="divisor must be at least 2, not 1"):
        UartTransmitter(divisor=1)


def test_more_lanes_pass_too() -> None:
    config = replace(SELFTEST, lanes=2)
    work = jobs(config)
    assert {len(j.activations) for j in work} == {1, 2}
    assert work[0].results(config).shape[1] == 2
