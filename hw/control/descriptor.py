"""Descriptors in hardware: views of the fields, and the memory that holds a program."""

from __future__ import annotations

from collections.abc import Iterable

from amaranth import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.fields import Field
from tellme.golden.program import DESCRIPTOR_BYTES, FIELDS, SHARED


def _layout(fields: Iterable[Field]) -> data.FlexibleLayout:
    return data.FlexibleLayout(8 * DESCRIPTOR_BYTES, {f.name: data.Field(f.width, f.start) for f in fields})


DESCRIPTOR = data.UnionLayout(
    {"shared": _layout(SHARED), **{opcode.name.lower(): _layout(own) for opcode, own in FIELDS.items()}}
)
"""A descriptor: a view of each opcode's fields (`load`, `linear`, ...), and of those that several have at one place (`shared`)."""


class ProgramMemory(wiring.Component):
    """Program store: filled by beats, read by the fetcher and the executor.

    The two readers share the read port in alternate cycles: a reader holds `request` and its `index` until `valid`
    (2 to 3 cycles later), when `descriptor` is what it asked for.

    Interface attributes
    --------------------
    restart : pulse before filling; `beat`, `write`: one beat in.
    fetch_*, execute_* : the two readers.
    descriptor : what was asked for, for both.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        bits = clog2(config.max_descriptors)
        members = {
            "restart": In(1),
            "write": In(1),
            "beat": In(8 * config.beat_bytes),
            "descriptor": Out(DESCRIPTOR),
        }
        for reader in ("fetch", "execute"):
            members |= {f"{reader}_request": In(1), f"{reader}_index": In(bits), f"{reader}_valid": Out(1)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        parts = DESCRIPTOR_BYTES // c.beat_bytes
        m.submodules.memory = memory = Memory(shape=8 * DESCRIPTOR_BYTES, depth=c.max_descriptors, init=[])
        write = memory.write_port(granularity=8 * c.beat_bytes)
        read = memory.read_port()
        count = Signal(clog2(c.max_descriptors) + clog2(max(parts, 2)) + 1)
        part_bits = exact_log2(parts)
        m.d.comb += [
            write.data.eq(self.beat.replicate(parts)),
            write.addr.eq(count >> part_bits),
            write.en.eq((self.write << count[:part_bits]) if parts > 1 else self.write),
        ]
        with m.If(self.restart):
            m.d.sync += count.eq(0)
        with m.Elif(self.write):
            m.d.sync += count.eq(count + 1)

        turn = Signal()
        was_fetch = Signal()
        was_execute = Signal()
        m.d.sync += [
            turn.eq(~turn),
            was_fetch.eq(turn & self.fetch_request & ~self.fetch_valid & ~was_fetch),
            was_execute.eq(~turn & self.execute_request & ~self.execute_valid & ~was_execute),
        ]
        m.d.comb += [
            read.en.eq(1),
            read.addr.eq(self.execute_index),
            self.fetch_valid.eq(was_fetch),
            self.execute_valid.eq(was_execute),
            self.descriptor.eq(read.data),
        ]
        with m.If(turn):
            m.d.comb += read.addr.eq(self.fetch_index)
        return m
