"""AXI4-Lite register file, made from `golden.registers`."""

from __future__ import annotations

from amaranth import Module, Signal, ValueLike
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.config import AcceleratorConfig
from golden.registers import ADDRESS_BITS, BUSY, REGISTERS, STALLS, Register
from hw.memory.axi import AxiLite


def count(register: Register, config: AcceleratorConfig) -> int:
    """Entries of a register that this accelerator has."""
    limits = {"base_low": config.ports, "base_high": config.ports, "stall": len(STALLS), "busy": len(BUSY)}
    lanes = ("position", "slot", "best_index", "best_value")
    return config.lanes if register.name in lanes else limits.get(register.name, register.count)


class ControlRegisters(wiring.Component):
    """Register file. Each register of `golden.registers.REGISTERS` is a member of its name: an output if it is
    read-write, else an input, of 32 bits or an array of them. `control` is not stored: its bits come out as the
    pulses `start` and `soft_reset`.

    Reads and writes take 32-bit words; unknown addresses read 0, and writes to them (or with partial strobes) do
    nothing.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        members: dict[str, wiring.Member] = {
            "bus": In(AxiLite(address_width=ADDRESS_BITS)),
            "start": Out(1),
            "soft_reset": Out(1),
        }
        for r in REGISTERS:
            if r.name != "control":
                shape = 32 if r.count == 1 else data.ArrayLayout(32, count(r, config))
                members[r.name] = Out(shape) if r.access == "rw" else In(shape)
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus = self.bus
        words: list[tuple[Register, int, ValueLike]] = []
        for r in REGISTERS:
            if r.name != "control":
                member = getattr(self, r.name)
                words += [(r, i, member if r.count == 1 else member[i]) for i in range(count(r, self.config))]

        write = Signal()
        m.d.comb += [
            write.eq(bus.awvalid & bus.wvalid & ~bus.bvalid),
            bus.awready.eq(write),
            bus.wready.eq(write),
        ]
        m.d.sync += [self.start.eq(0), self.soft_reset.eq(0)]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(write):
            m.d.sync += bus.bvalid.eq(1)
            with m.If(bus.wstrb.all()), m.Switch(bus.awaddr[2:]):
                for r, i, value in words:
                    if r.access == "rw":
                        with m.Case(r.offset // 4 + i):
                            m.d.sync += value.eq(bus.wdata)
                control = next(r for r in REGISTERS if r.name == "control")
                with m.Case(control.offset // 4):
                    m.d.sync += [self.start.eq(bus.wdata[0]), self.soft_reset.eq(bus.wdata[1])]

        # Two cycles from address to data, so that the wide multiplexer has registers on both sides.
        address = Signal(ADDRESS_BITS - 2)
        pending = Signal()
        m.d.comb += bus.arready.eq(~pending & ~bus.rvalid)
        with m.If(bus.arvalid & bus.arready):
            m.d.sync += [address.eq(bus.araddr[2:]), pending.eq(1)]
        with m.If(pending):
            m.d.sync += [pending.eq(0), bus.rvalid.eq(1), bus.rdata.eq(0)]
            with m.Switch(address):
                for r, i, value in words:
                    with m.Case(r.offset // 4 + i):
                        m.d.sync += bus.rdata.eq(value)
        with m.Elif(bus.rready):
            m.d.sync += bus.rvalid.eq(0)
        return m
