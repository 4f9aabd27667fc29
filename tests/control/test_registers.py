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

from tellme.golden import registers
from tellme.golden.config import TINY
from tellme.golden.registers import BUSY, REGISTERS, STALLS, ErrorCode
from tellme.hw.control.counters import Counters
from tellme.hw.control.registers import ControlRegisters, count
from tellme.hw.control.supervise import Supervisor
from tellme.sim.runner import simulate


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


async def _bus(dut: Any) -> None:
    """Reset, and every input of the bus low."""
    Clock(dut.clk, 10, "ns").start()
    for name in ("awvalid", "wvalid", "bready", "arvalid", "rready"):
        getattr(dut, f"bus__{name}").value = 0
    dut.bus__wstrb.value = 15
    dut.rst.value = 1
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)


async def _offer(dut: Any, channel: str, after: int, **payload: int) -> None:
    """Offers a transfer on a channel after some cycles, and holds it until it is taken."""
    for _ in range(after):
        await RisingEdge(dut.clk)
    for name, value in payload.items():
        getattr(dut, f"bus__{name}").value = value
    getattr(dut, f"bus__{channel}valid").value = 1
    await RisingEdge(dut.clk)
    while not int(getattr(dut, f"bus__{channel}ready").value):
        await RisingEdge(dut.clk)
    getattr(dut, f"bus__{channel}valid").value = 0


async def _accept(dut: Any, channel: str, after: int) -> None:
    """Waits for an answer, leaves it standing for some cycles, in which it must not change, and takes it."""
    valid = getattr(dut, f"bus__{channel}valid")
    await RisingEdge(dut.clk)
    while not int(valid.value):
        await RisingEdge(dut.clk)
    data = int(dut.bus__rdata.value) if channel == "r" else 0
    for _ in range(after):
        await RisingEdge(dut.clk)
        assert int(valid.value), "an answer was withdrawn"
        assert channel == "b" or int(dut.bus__rdata.value) == data, "and must not change"
    getattr(dut, f"bus__{channel}ready").value = 1
    await RisingEdge(dut.clk)
    getattr(dut, f"bus__{channel}ready").value = 0


async def _together(*parts: Any) -> None:
    for task in [cocotb.start_soon(part) for part in parts]:
        await task


@cocotb.test()
async def check_orders(dut: Any) -> None:
    """Address before data, data before address, both at once, answers left standing: each write counts once."""
    await _bus(dut)
    address, value = registers.offset("program_address"), 0x1234_0000
    for address_after in (0, 1, 2, 7):
        for data_after in (0, 1, 2, 7):
            for answer_after in (0, 1, 5):
                value += 1
                await _together(
                    _offer(dut, "aw", address_after, awaddr=address),
                    _offer(dut, "w", data_after, wdata=value),
                    _accept(dut, "b", answer_after),
                )
                assert int(dut.program_address.value) == value, (address_after, data_after, answer_after)
                for _ in range(3):
                    await RisingEdge(dut.clk)
                    assert not int(dut.bus__bvalid.value), "one answer a write"
                await _together(_offer(dut, "ar", address_after, araddr=address), _accept(dut, "r", answer_after))
                assert int(dut.bus__rdata.value) == value


@cocotb.test()
async def check_halves(dut: Any) -> None:
    """Half a write is taken, and waits for the other half; a second one is not taken before."""
    await _bus(dut)
    first, second = registers.offset("program_address"), registers.offset("window_beats")
    for half, other in (("aw", "w"), ("w", "aw")):
        payload = {"aw": {"awaddr": first}, "w": {"wdata": 77}}
        before = int(dut.program_address.value)
        await _offer(dut, half, 0, **payload[half])
        if half == "aw":
            dut.bus__awaddr.value = second
        else:
            dut.bus__wdata.value = 88
        getattr(dut, f"bus__{half}valid").value = 1
        for _ in range(10):
            await RisingEdge(dut.clk)
            assert not int(getattr(dut, f"bus__{half}ready").value)
            assert not int(dut.bus__bvalid.value)
        assert int(dut.program_address.value) == before
        # The other half; then the half that waited, with another.
        more = {"aw": {"awaddr": second}, "w": {"wdata": 88}}

        async def rest(other: str = other, payload: Any = payload, more: Any = more) -> None:
            await _offer(dut, other, 0, **payload[other])
            await _offer(dut, other, 0, **more[other])

        async def waiting(half: str = half) -> None:
            while not int(getattr(dut, f"bus__{half}ready").value):
                await RisingEdge(dut.clk)
            getattr(dut, f"bus__{half}valid").value = 0

        async def answers() -> None:
            await _accept(dut, "b", 4)
            await _accept(dut, "b", 0)

        await _together(rest(), waiting(), answers())
        await RisingEdge(dut.clk)
        assert (int(dut.program_address.value), int(dut.window_beats.value)) == (77, 88)
        for member in (dut.bus__awaddr, dut.bus__wdata):
            member.value = 0
        await _together(_offer(dut, "aw", 0, awaddr=second), _offer(dut, "w", 0, wdata=0), _accept(dut, "b", 0))
        await _together(_offer(dut, "aw", 0, awaddr=first), _offer(dut, "w", 0, wdata=5), _accept(dut, "b", 0))


@cocotb.test()
async def check_pauses(dut: Any) -> None:
    """Someone else's master with random pauses on every channel: what is written is read."""
    Clock(dut.clk, 10, "ns").start()
    rng = random.Random(8)
    bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "bus_"), dut.clk, dut.rst)

    def pauses(likely: float) -> Any:
        while True:
            yield rng.random() < likely

    channels = (bus.write_if.aw_channel, bus.write_if.w_channel, bus.write_if.b_channel)
    for channel, likely in zip(
        (*channels, bus.read_if.ar_channel, bus.read_if.r_channel), (0.7, 0.3, 0.5, 0.5, 0.6), strict=True
    ):
        channel.set_pause_generator(pauses(likely))
    dut.rst.value = 1
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    writable = [r for r in REGISTERS if r.access == "rw" and r.name != "control"]
    for _ in range(60):
        wanted = {}
        for r in rng.sample(writable, 3):
            wanted[registers.offset(r.name, rng.randrange(count(r, TINY)))] = rng.getrandbits(32)
        for task in [cocotb.start_soon(bus.write(a, v.to_bytes(4, "little"))) for a, v in wanted.items()]:
            await task
        for a, v in wanted.items():
            assert int.from_bytes((await bus.read(a, 4)).data, "little") == v, hex(a)


@cocotb.test()
async def check_lock(dut: Any) -> None:
    """While a pass runs, and in the cycle it starts, only the live registers take writes; all are answered with OKAY."""
    Clock(dut.clk, 10, "ns").start()
    bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "bus_"), dut.clk, dut.rst)
    dut.rst.value = 1
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)
    assert int(dut.context.value) == TINY.most_context and int(dut.slots.value) == registers.MAX_SLOTS
    live = {r.name for r in REGISTERS if r.live}
    assert live == {"control", "timeout", "irq_enable"}
    writable = [(r, i) for r in REGISTERS if r.access == "rw" and r.name != "control" for i in range(count(r, TINY))]
    for locked, value in ((0, 3), (1, 4)):
        dut.locked.value = locked
        for r, i in writable:
            answer = await bus.write(registers.offset(r.name, i), value.to_bytes(4, "little"))
            assert answer.resp == 0, r.name
    for r, i in writable:
        got = int.from_bytes((await bus.read(registers.offset(r.name, i), 4)).data, "little")
        assert got == (4 if r.name in live else 3), r.name
    # A soft reset still works, and the cycle between the start and the supervisor's answer is locked, too.
    seen = []

    async def watch() -> None:
        while True:
            await RisingEdge(dut.clk)
            seen.append((int(dut.start.value), int(dut.soft_reset.value)))

    task = cocotb.start_soon(watch())
    await bus.write(registers.offset("control"), (3).to_bytes(4, "little"))
    task.cancel()
    assert (1, 1) in seen


def test_register_file_answers_as_described() -> None:
    simulate(ControlRegisters(TINY), __name__, testcase="check_registers")
    simulate(ControlRegisters(TINY), __name__, testcase="check_pulses")


@pytest.mark.parametrize("check", ["check_orders", "check_halves", "check_pauses", "check_lock"])
def test_register_bus_keeps_to_the_protocol(check: str) -> None:
    simulate(ControlRegisters(TINY), __name__, testcase=check)


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


PORTS = 3


class SupervisorBench(wiring.Component):
    """Supervisor and counters, side by side."""

    def __init__(self) -> None:
        self.supervisor = Supervisor()
        self.counters = Counters(PORTS)
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
        (dut.read_error, ErrorCode.TIMEOUT, ErrorCode.TIMEOUT, 6),
        (dut.write_error, ErrorCode.TIMEOUT, ErrorCode.TIMEOUT, 6),
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
        assert int(dut.busy.value) and int(dut.reset.value), "waits for the masters"
        await _pulse(dut, dut.start_request)
        assert int(dut.error.value) == code, "a start while busy is ignored"
        dut.quiet.value = 1
        await _cycles(dut, 4)
        assert not int(dut.busy.value) and not int(dut.reset.value) and int(dut.error.value) == code
        await _pulse(dut, dut.start_request)
        assert int(dut.busy.value) and int(dut.error.value) == ErrorCode.NONE
        await _pulse(dut, dut.done)
        assert not int(dut.busy.value) and int(dut.finished.value) and int(dut.error.value) == ErrorCode.NONE


@cocotb.test()
async def check_refusals_and_resets(dut: Any) -> None:
    await _supervisor(dut)
    # Nothing starts before the lanes have been looked at; a reset ends the wait.
    for ends_with_reset in (False, True):
        dut.checking.value = 1
        await _pulse(dut, dut.start_request)
        await _cycles(dut, 40)
        assert int(dut.busy.value) and not int(dut.start.value)
        if ends_with_reset:
            await _pulse(dut, dut.reset_request)
            dut.checking.value = 0
            await _cycles(dut, 6)
            assert not int(dut.busy.value) and not int(dut.finished.value)
        else:
            dut.checking.value, dut.bad_lanes.value = 0, 1
            await _cycles(dut, 6)
            dut.bad_lanes.value = 0
            assert int(dut.finished.value) and int(dut.error.value) == ErrorCode.BAD_LANES
            await _cycles(dut, 6)
    for signal, code in ((dut.bad_lanes, ErrorCode.BAD_LANES), (dut.bad_program, ErrorCode.BAD_DESCRIPTOR)):
        signal.value = 1
        await _pulse(dut, dut.start_request)
        signal.value = 0
        await _cycles(dut, 6)
        assert int(dut.finished.value) and int(dut.error.value) == code and not int(dut.busy.value)
    # The index comes with the flag, in one cycle; a time-out before the first descriptor is read says 0.
    for index, address, signal, code in (
        (4, 3, dut.bad_descriptor, ErrorCode.BAD_DESCRIPTOR),
        (129, 128, dut.bad_descriptor, ErrorCode.BAD_DESCRIPTOR),
        (0, 0, dut.read_error, ErrorCode.TIMEOUT),
    ):
        await _pulse(dut, dut.start_request)
        await _cycles(dut, 4)
        dut.descriptor_index.value = index
        signal.value = int(code) if signal is dut.read_error else 1
        await _cycles(dut, 4)
        signal.value = 0
        assert (int(dut.error.value), int(dut.error_address.value)) == (code, address)
        await _cycles(dut, 6)
        dut.descriptor_index.value = 0
    await _pulse(dut, dut.start_request)
    dut.quiet.value = 0
    dut.reset_request.value = 1
    await RisingEdge(dut.clk)
    dut.reset_request.value = 0
    clears = 0
    for _ in range(8):
        await RisingEdge(dut.clk)
        clears += int(dut.clear.value)
    assert clears == 1 and int(dut.reset.value)
    dut.quiet.value = 1
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
    ports = {"port_beat": [0] * PORTS, "port_stall": [0] * PORTS}
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
        for name, counted in ports.items():
            seen = rng.getrandbits(PORTS)
            getattr(dut, name).value = seen
            ports[name] = [n + (seen >> j & 1) for j, n in enumerate(counted)]
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
    for name, counted in ports.items():
        got = int(getattr(dut, f"{name}s").value)
        assert [got >> 32 * i & 0xFFFFFFFF for i in range(PORTS)] == counted
    # What comes outside of a pass is not counted, and the counts stay until the next begins from zero.
    outputs = ("cycles", "beats", "writes", "stall", "unit_counts", "port_beats", "port_stalls")
    before = {name: int(getattr(dut, name).value) for name in outputs}
    await _pulse(dut, dut.done)
    dut.unit_busy.value, dut.port_beat.value, dut.port_stall.value = (1 << len(BUSY)) - 1, *[(1 << PORTS) - 1] * 2
    dut.beat.value = dut.write.value = 1
    await _cycles(dut, 5)
    assert {name: int(getattr(dut, name).value) for name in outputs} == before
    assert all(before.values())
    await _pulse(dut, dut.start_request)
    await _cycles(dut, 4)
    assert not any(int(getattr(dut, name).value) for name in outputs)


def test_supervisor_ends_passes_and_counters_count() -> None:
    simulate(SupervisorBench(), __name__, testcase="check_ends,check_refusals_and_resets,check_timeout,check_counters")
