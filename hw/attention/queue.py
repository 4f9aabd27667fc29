"""The short queue between the parts of the attention unit."""

from __future__ import annotations

from typing import Any

from amaranth import Module, Shape, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out


class ShortQueue(wiring.Component):
    """First-in first-out queue whose `out.ready` may come late in the cycle: one LUT behind it are clock enables only.

    `depth` entries in a memory and one in its output register; an entry written in cycle t can be taken in cycle t+2.

    Parameters
    ----------
    shape : of an entry. depth : a power of two of at least 4.

    Interface attributes
    --------------------
    write, payload : an entry is added; who writes keeps account of the room.
    room : an entry may be written, whatever was written in the cycle before (which it does not count yet).
    out : stream.
    """

    def __init__(self, shape: Any, depth: int):
        self._shape = shape
        self._depth = depth
        super().__init__({"write": In(1), "payload": In(shape), "room": Out(1), "out": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = Shape.cast(self._shape).width
        m.submodules.memory = memory = Memory(shape=bits, depth=self._depth, init=[])
        write = memory.write_port()
        read = memory.read_port()
        # A bit more than an address: full and empty differ.
        put, get = Signal(range(2 * self._depth)), Signal(range(2 * self._depth))
        fetch = Signal()
        m.d.comb += [
            fetch.eq((put != get) & (~self.out.valid | self.out.ready)),
            write.en.eq(self.write),
            write.addr.eq(put),
            write.data.eq(self.payload),
            read.en.eq(fetch),
            read.addr.eq(get),
        ]
        payload = self.out.payload
        m.d.comb += (payload.as_value() if isinstance(payload, data.View) else payload).eq(read.data)
        m.d.sync += self.room.eq((put - get)[: len(put)] < self._depth - 1)
        with m.If(self.write):
            m.d.sync += put.eq(put + 1)
        with m.If(fetch):
            m.d.sync += [get.eq(get + 1), self.out.valid.eq(1)]
        with m.Elif(self.out.ready):
            m.d.sync += self.out.valid.eq(0)
        return m
