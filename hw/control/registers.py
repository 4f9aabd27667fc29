"""AXI4-Lite register file, made from `golden.registers`."""

from __future__ import annotations

from amaranth import Module, ShapeLike, Signal, ValueLike
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import ADDRESS_BITS, BUSY, MAX_SLOTS, REGISTERS, STALLS, Register, register
from tellme.hw.memory.axi import AxiLite

PORTS = ("base_low", "base_high", "owed", "port_beats", "port_stalls")
"""Registers with an entry for each port."""


def count(register: Register, config: AcceleratorConfig) -> int:
    """Entries of a register that this accelerator has."""
    limits = {"stall": len(STALLS), "busy": len(BUSY)} | dict.fromkeys(PORTS, config.ports)
    lanes = ("position", "slot", "best_index", "best_value", "bound")
    return config.lanes if register.name in lanes else limits.get(register.name, register.count)


def layout(r: Register) -> data.FlexibleLayout:
    """View of a register's word by its fields."""
    return data.FlexibleLayout(32, {f.name: data.Field(f.width, f.start) for f in r.fields})


class ControlRegisters(wiring.Component):
    """Register file. Each register of `golden.registers.REGISTERS` is a member of its name: an output if it is
    read-write, else an input: a view of its fields if it has any, else 32 bits, or an array of these. `control` is not
    stored: its fields come out as pulses, `start` and `soft_reset`.

    Reads and writes take 32-bit words; unknown addresses read 0, and writes to them (or with partial strobes) do
    nothing. So do those to registers that are not `live` while `locked`, or in the cycle of `start`: a pass keeps what
    it began with. The bus always answers OKAY.

    No input of the bus reaches an output of it but through a register (IHI 0022, A3.2.1). Address and data of a write
    come in any order. From the later of them to the register: 2 cycles; from a read's address to its data: 2.

    Interface attributes
    --------------------
    bus : the registers' bus.
    locked : a pass runs.
    start, soft_reset : pulses, fields of `control`.
    identity, version, build, geometry : registers that are read: what this accelerator is.
    status, error_address, owed, best_index, best_value, bound : what it does, and what a pass gave.
    cycles, beats, writes, stall, busy, port_beats, port_stalls : counters of the last pass.
    lanes, head_lanes, position, slot, write_logits, candidates : registers that are written, too: a pass.
    program_address, program_length, context, slots : its program.
    base_low, base_high, window_beats, timeout, irq_enable, port_lead : memory and time.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        members: dict[str, wiring.Member] = {
            "bus": In(AxiLite(address_width=ADDRESS_BITS)),
            "locked": In(1),
            **{f.name: Out(f.width) for f in register("control").fields},
        }
        for r in REGISTERS:
            if r.name != "control":
                shape: ShapeLike = layout(r) if r.fields else 32
                if r.count > 1:
                    shape = data.ArrayLayout(shape, count(r, config))
                init = {"context": config.most_context, "slots": MAX_SLOTS}.get(r.name)
                members[r.name] = Out(shape, init=init) if r.access == "rw" else In(shape)
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bus = self.bus
        words: list[tuple[Register, int, ValueLike]] = []
        for r in REGISTERS:
            if r.name != "control":
                member = getattr(self, r.name)
                words += [(r, i, member if r.count == 1 else member[i]) for i in range(count(r, self.config))]

        # A register for each half of a write. What is ready depends on them alone.
        have_address, have_data = Signal(), Signal()
        write_address = Signal(ADDRESS_BITS - 2)
        write_data = Signal(32)
        whole_word = Signal()
        write, free = Signal(), Signal()
        m.d.comb += [
            bus.awready.eq(~have_address),
            bus.wready.eq(~have_data),
            write.eq(have_address & have_data & ~bus.bvalid),
            free.eq(~self.locked & ~self.start),
        ]
        with m.If(bus.awvalid & ~have_address):
            m.d.sync += [have_address.eq(1), write_address.eq(bus.awaddr[2:])]
        with m.If(bus.wvalid & ~have_data):
            m.d.sync += [have_data.eq(1), write_data.eq(bus.wdata), whole_word.eq(bus.wstrb.all())]
        m.d.sync += [self.start.eq(0), self.soft_reset.eq(0)]
        with m.If(bus.bready):
            m.d.sync += bus.bvalid.eq(0)
        with m.If(write):
            m.d.sync += [bus.bvalid.eq(1), have_address.eq(0), have_data.eq(0)]
            with m.If(whole_word), m.Switch(write_address):
                for r, i, value in words:
                    if r.access == "rw":
                        with m.Case(r.offset // 4 + i), m.If(1 if r.live else free):
                            m.d.sync += value.eq(write_data)
                control = register("control")
                with m.Case(control.offset // 4):
                    pulses = data.View(layout(control), write_data)
                    m.d.sync += [getattr(self, f.name).eq(pulses[f.name]) for f in control.fields]

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
