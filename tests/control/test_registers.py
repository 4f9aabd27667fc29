"""The register file answers AXI4-Lite as golden.registers describes; the supervisor ends and stops passes."""

from __future__ import annotations

import random
from typing import Any

import cocotb
import pytest
from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster

from golden import registers
from golden.config import TINY
from golden.registers import BUSY, REGISTERS, STALLS, ErrorCode
from hw.control.counters import Counters
from hw.control.registers import ControlRegisters, count
from hw.control.supervise import Supervisor
from sim.runner import simulate


@cocotb.test()
async def check_registers(dut: Any) -> None:
    Clock(dut.clk, 10, "ns").start()
    rng = random.Random(3)
    bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "bus_"), dut.clk, dut.rst)
    dut.rst.value = 1
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    expected: dict[int, int] = {}
    for r in REGISTERS:
        n = count(r, TINY)
        if r.name == "control":
            continue
        values = [rng.getrandbits(32) for _ in range(n)]
        if r.access == "ro":
            getattr(dut, r.name).value = sum(v << 32 * i for i, v in enumerate(values))
        for i, v in enumerate(values):
            address = registers.offset(r.name, i)
            await bus.write(address, (rng.getrandbits(32) if r.access == "ro" else v).to_bytes(4, "little"))
            expected[address] = v
    for address in range(0, 1 << registers.ADDRESS_BITS, 4):
        got = int.from_bytes((await bus.read(address, 4)).data, "little")
        assert got == expected.get(address, 0), hex(address)
    for r in REGISTERS:
        if r.access == "rw" and r.name != "control":
            got = int(getattr(dut, r.name).value)
            assert got == sum(expected[registers.offset(r.name, i)] << 32 * i for i in range(count(r, TINY))), r.name
    # Partial strobes change nothing.
    await bus.write(registers.offset("timeout") + 1, b"\xff")
    assert int(dut.timeout.value) == expected[registers.offset("timeout")]


@cocotb.test()
async def check_pulses(dut: Any) -> None:
    Clock(dut.clk, 10, "ns").start()
    bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "bus_"), dut.clk, dut.rst)
    dut.rst.value = 1
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    seen = []

    async def watch() -> None:
        while True:
            await RisingEdge(dut.clk)
            seen.append((int(dut.start.value), int(dut.soft_reset.value)))

    task = cocotb.start_soon(watch())
    for value in (1, 2, 3, 0):
        seen.clear()
        await bus.write(registers.offset("control"), value.to_bytes(4, "little"))
        for _ in range(4):
            await RisingEdge(dut.clk)
        assert sum(s for s, _ in seen) == value & 1
        assert sum(r for _, r in seen) == value >> 1
        assert int.from_bytes((await bus.read(registers.offset("control"), 4)).data, "little") == 0
    task.cancel()


def test_register_file_answers_as_described() -> None:
    simulate(ControlRegisters(TINY), __name__, testcase="check_registers")
    simulate(ControlRegisters(TINY), __name__, testcase="check_pulses")


def test_offsets_do_not_overlap() -> None:
    taken: set[int] = set()
    for r in REGISTERS:
        for i in range(r.count):
            assert registers.offset(r.name, i) not in taken
            assert registers.offset(r.name, i) < 1 << registers.ADDRESS_BITS
            taken.add(registers.offset(r.name, i))


def test_unknown_registers_are_refused() -> None:
    with pytest.raises(KeyError, match="no register named 'speed'"):
        registers.offset("speed")
    with pytest.raises(IndexError, match="position has 32 entries, not 33"):
        registers.offset("position", 32)


class SupervisorBench(wiring.Component):
    """Supervisor and counters, side by side."""

    def __init__(self) -> None:
        self.supervisor = Supervisor()
        self.counters = Counters()
        super().__init__(
            {
                name: member
                for unit in (self.counters, self.supervisor)
                for name, member in unit.signature.members.items()
                if name not in ("restart", "running", "busy", "error")
            }
            | {"busy": Out(1), "error": Out(8), "unit_counts": Out(self.counters.busy.shape()), "running": In(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.supervisor = s = self.supervisor
        m.submodules.counters = c = self.counters
        for unit in (s, c):
            for name, member in unit.signature.members.items():
                if name in ("restart", "running", "busy", "error"):
                    continue
                mine, theirs = getattr(self, name), getattr(unit, name)
                m.d.comb += theirs.eq(mine) if member.flow is In else mine.eq(theirs)
        m.d.comb += [
            self.busy.eq(s.busy),
            self.error.eq(s.error),
            self.unit_counts.eq(c.busy),
            c.restart.eq(s.start),
            c.running.eq(self.running),
        ]
        return m


SUPERVISOR_INPUTS = [n for n, mb in SupervisorBench().signature.members.items() if mb.flow is In]


async def _supervisor(dut: Any) -> None:
    Clock(dut.clk, 10, "ns").start()
    for name in SUPERVISOR_INPUTS:
        getattr(dut, name).value = 0
    dut.quiet.value = 1
    dut.rst.value = 1
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)


async def _cycles(dut: Any, n: int) -> None:
    for _ in range(n):
        await RisingEdge(dut.clk)


async def _pulse(dut: Any, signal: Any) -> None:
    signal.value = 1
    await RisingEdge(dut.clk)
    signal.value = 0
    await _cycles(dut, 2)


@cocotb.test()
async def check_ends(dut: Any) -> None:
    """A pass ends with done; each error stops it with its code, clears the masters and leaves the next pass free."""
    await _supervisor(dut)
    causes = [
        (dut.read_error, ErrorCode.READ_DECERR, ErrorCode.READ_DECERR, 0x1234),
        (dut.write_error, ErrorCode.WRITE_WINDOW, ErrorCode.WRITE_WINDOW, 0x4321),
        (dut.bad_weight, 1, ErrorCode.BAD_WEIGHT, 6),
        (dut.bad_descriptor, 1, ErrorCode.BAD_DESCRIPTOR, 6),
    ]
    dut.read_error_address.value = 0x1234
    dut.write_error_address.value = 0x4321
    dut.descriptor_index.value = 7
    for signal, value, code, address in causes:
        await _pulse(dut, dut.start_request)
        assert int(dut.busy.value) and not int(dut.finished.value)
        dut.quiet.value = 0
        signal.value = int(value)
        await _cycles(dut, 10)
        signal.value = 0
        assert int(dut.finished.value) and int(dut.error.value) == code and int(dut.error_address.value) == address
        assert int(dut.busy.value) and int(dut.clear.value) and int(dut.reset.value), "waits for the masters"
        await _pulse(dut, dut.start_request)
        assert int(dut.error.value) == code, "a start while busy is ignored"
        dut.quiet.value = 1
        await _cycles(dut, 4)
        assert not int(dut.busy.value) and not int(dut.clear.value) and int(dut.error.value) == code
        await _pulse(dut, dut.start_request)
        assert int(dut.busy.value) and int(dut.error.value) == ErrorCode.NONE
        await _pulse(dut, dut.done)
        assert not int(dut.busy.value) and int(dut.finished.value) and int(dut.error.value) == ErrorCode.NONE


@cocotb.test()
async def check_refusals_and_resets(dut: Any) -> None:
    await _supervisor(dut)
    for signal, code in ((dut.bad_lanes, ErrorCode.BAD_LANES), (dut.bad_program, ErrorCode.BAD_DESCRIPTOR)):
        signal.value = 1
        await _pulse(dut, dut.start_request)
        signal.value = 0
        await _cycles(dut, 6)
        assert int(dut.finished.value) and int(dut.error.value) == code and not int(dut.busy.value)
    await _pulse(dut, dut.start_request)
    await _pulse(dut, dut.reset_request)
    assert int(dut.clear.value)
    await _cycles(dut, 6)
    assert not int(dut.busy.value) and not int(dut.finished.value) and int(dut.error.value) == ErrorCode.NONE


@cocotb.test()
async def check_timeout(dut: Any) -> None:
    await _supervisor(dut)
    dut.timeout.value = 20
    await _pulse(dut, dut.start_request)
    for _ in range(10):
        await _cycles(dut, 15)
        assert int(dut.busy.value)
        await _pulse(dut, dut.progress)
    await _cycles(dut, 30)
    assert int(dut.error.value) == ErrorCode.TIMEOUT and int(dut.finished.value)
    dut.timeout.value = 0
    await _pulse(dut, dut.start_request)
    await _cycles(dut, 500)
    assert int(dut.busy.value) and int(dut.error.value) == ErrorCode.NONE


@cocotb.test()
async def check_counters(dut: Any) -> None:
    """Every running cycle is a beat or has one cause; causes follow their order."""
    await _supervisor(dut)
    rng = random.Random(11)
    await _pulse(dut, dut.start_request)
    causes = ["memory", "epilogue", "attention", "elementwise", "drain"]
    stall = dict.fromkeys(STALLS, 0)
    beats = writes = 0
    busy = [0] * len(BUSY)
    cycles = 400
    for _ in range(cycles):
        # `running` goes a cycle behind nothing: causes are sampled with it.
        bits = {c: int(rng.random() < 0.2) for c in causes}
        beat, write, units = int(rng.random() < 0.5), int(rng.random() < 0.3), rng.getrandbits(len(BUSY))
        dut.running.value = 1
        dut.beat.value = beat
        dut.write.value = write
        dut.unit_busy.value = units
        for c in causes:
            getattr(dut, c).value = bits[c]
        beats += beat
        writes += write
        busy = [b + (units >> j & 1) for j, b in enumerate(busy)]
        if not beat:
            stall[next((c for c in causes if bits[c]), "control")] += 1
        await RisingEdge(dut.clk)
    dut.running.value = 0
    await _cycles(dut, 4)
    assert int(dut.cycles.value) == cycles
    assert int(dut.beats.value) == beats and int(dut.writes.value) == writes
    got = int(dut.stall.value)
    assert [got >> 32 * i & 0xFFFFFFFF for i in range(len(STALLS))] == [stall[s] for s in STALLS]
    got = int(dut.unit_counts.value)
    assert [got >> 32 * i & 0xFFFFFFFF for i in range(len(BUSY))] == busy
    assert beats + sum(stall.values()) == cycles


def test_supervisor_ends_passes_and_counters_count() -> None:
    simulate(SupervisorBench(), __name__, testcase="check_ends,check_refusals_and_resets,check_timeout,check_counters")
