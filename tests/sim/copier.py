"""A small accelerator for the tests of the simulation: copies beats from one place of its buffer to another."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import IDENTITY, offset
from tellme.hw.memory import Axi, AxiLite, BeatWriter, StreamReader

SOURCE = offset("program_address")
COUNT = offset("program_length")
TARGET = offset("lanes")


class Copier(wiring.Component):
    """COUNT beats from SOURCE to TARGET (TARGET = 2**32-1: read only), with the project's own offsets for the rest."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "s_axi": In(AxiLite(address_width=12)),
                "m_axi": Out(Axi(data_bytes=config.port_bytes)).array(config.ports),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        cfg = self._config
        m = Module()
        m.submodules.reader = reader = StreamReader(cfg)
        m.submodules.writer = writer = BeatWriter(cfg)
        for i in range(cfg.ports):
            for part in (reader.m_axi[i], writer.m_axi[i]):
                for name, member in part.signature.members.items():
                    ours, theirs = getattr(self.m_axi[i], name), getattr(part, name)
                    m.d.comb += ours.eq(theirs) if member.flow is Out else theirs.eq(ours)

        registers: dict[int, Signal] = {}
        for name in (
            "irq_enable",
            "lanes",
            "program_address",
            "program_length",
            "window_beats",
            "timeout",
            "port_lead",
        ):
            registers[offset(name)] = Signal(32, name=name)
        for i in range(cfg.ports):
            registers[offset("base_low", i)] = Signal(32, name=f"base_low{i}")
            registers[offset("base_high", i)] = Signal(32, name=f"base_high{i}")
        busy, done, start, cycles = Signal(), Signal(), Signal(), Signal(32)
        clear = Signal()
        error = Mux(reader.error != 0, reader.error, writer.error)
        views = dict(registers) | {
            offset("identity"): IDENTITY,
            offset("status"): Cat(busy, done, *[0] * 6, error),
            offset("error_address"): Mux(reader.error != 0, reader.error_address, writer.error_address),
            offset("cycles"): cycles,
        }
        counted = {"port_beats": reader.port_beat, "port_stalls": reader.port_stall}
        for name, events in counted.items():
            for i in range(cfg.ports):
                views[offset(name, i)] = counter = Signal(32, name=f"{name}{i}")
                with m.If(start):
                    m.d.sync += counter.eq(0)
                with m.Elif(events[i]):
                    m.d.sync += counter.eq(counter + 1)
        s = self.s_axi
        addressed, given = Signal(), Signal()
        address, content = Signal(len(s.awaddr)), Signal(32)
        m.d.comb += [s.awready.eq(~addressed), s.wready.eq(~given), s.arready.eq(~s.rvalid)]
        with m.If(s.awvalid & ~addressed):
            m.d.sync += [addressed.eq(1), address.eq(s.awaddr)]
        with m.If(s.wvalid & ~given):
            m.d.sync += [given.eq(1), content.eq(s.wdata)]
        m.d.sync += [start.eq(0), clear.eq(0)]
        with m.If(s.bready):
            m.d.sync += s.bvalid.eq(0)
        with m.If(s.rready):
            m.d.sync += s.rvalid.eq(0)
        with m.If(addressed & given & ~s.bvalid):
            m.d.sync += [s.bvalid.eq(1), s.bresp.eq(0), addressed.eq(0), given.eq(0)]
            with m.Switch(address):
                for where, register in registers.items():
                    with m.Case(where):
                        m.d.sync += register.eq(content)
                with m.Case(offset("control")):
                    m.d.sync += [start.eq(content[0]), clear.eq(content[1])]
                with m.Default():
                    m.d.sync += s.bresp.eq(2)
        with m.If(s.arvalid & s.arready):
            m.d.sync += [s.rvalid.eq(1), s.rresp.eq(0)]
            with m.Switch(s.araddr):
                for where, value in views.items():
                    with m.Case(where):
                        m.d.sync += s.rdata.eq(value)
                with m.Default():
                    m.d.sync += [s.rresp.eq(2), s.rdata.eq(0)]

        for unit in (reader, writer):
            bases = Cat(
                Cat(registers[offset("base_low", i)], registers[offset("base_high", i)]) for i in range(cfg.ports)
            )
            m.d.comb += [
                unit.base.eq(data.View(unit.base.shape(), bases)),
                unit.window_beats.eq(registers[offset("window_beats")]),
                unit.timeout.eq(registers[offset("timeout")]),
                unit.clear.eq(clear),
            ]
        target, left = Signal(32), Signal(32)
        write = Signal()
        m.d.comb += [
            reader.free.eq(registers[offset("port_lead")][0]),
            reader.segments.valid.eq(start),
            reader.segments.payload.address.eq(registers[SOURCE]),
            reader.segments.payload.beats.eq(registers[COUNT]),
            write.eq(registers[TARGET] != 0xFFFF_FFFF),
            writer.writes.valid.eq(reader.beats.valid & busy & write),
            writer.writes.payload.address.eq(target),
            writer.writes.payload.data.eq(reader.beats.payload),
            writer.writes.payload.strobe.eq(~0),
            reader.beats.ready.eq(busy & (writer.writes.ready | ~write)),
            self.irq.eq(done & registers[offset("irq_enable")][0]),
        ]
        with m.If(busy):
            m.d.sync += cycles.eq(cycles + 1)
        with m.If(reader.beats.valid & reader.beats.ready):
            m.d.sync += [target.eq(target + 1), left.eq(left - 1)]
        with m.If(busy & ((left == 0) & writer.idle | (error != 0)) | clear):
            m.d.sync += [busy.eq(0), done.eq(~clear)]
        with m.If(start):
            m.d.sync += [busy.eq(1), done.eq(0), cycles.eq(0), target.eq(registers[TARGET]), left.eq(registers[COUNT])]
        return m
