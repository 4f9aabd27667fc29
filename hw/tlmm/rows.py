"""The FIFO between the accumulators and whoever takes the rows."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig
from tellme.hw.tlmm.accumulate import row_layout


class RowFifo(wiring.Component):
    """block_rows finished rows, in block RAM. Room is promised before a row is computed, so a push always fits.

    `delay` = 2 cycles from a push into the empty FIFO to `rows.valid`.

    Interface attributes
    --------------------
    room : one more row may be promised.
    reserve : a row is promised (only with `room`).
    push, row : a promised row arrives.
    rows : the rows, oldest first.
    """

    delay = 2

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "room": Out(1),
                "reserve": In(1),
                "push": In(1),
                "row": In(row_layout(config)),
                "rows": Out(stream.Signature(row_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = self._config.block_rows
        m.submodules.memory = memory = Memory(shape=row_layout(self._config), depth=depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        head, tail = Signal(range(depth)), Signal(range(depth))
        stored, some = (
            Signal(range(depth + 1)),
            Signal(),
        )  # rows in the memory, not the one at the output; whether there are
        # Rows under way, stored, or at the output, without what the latest cycle reserved and took.
        promised = Signal(range(depth + 1))
        reserved, taken = Signal(), Signal()
        last_place = Signal()  # promised == depth - 1
        valid = Signal()
        fetch = Signal()
        m.d.comb += [
            fetch.eq(some & (~valid | self.rows.ready)),
            self.room.eq(~promised[-1] & ~(last_place & reserved)),
            self.rows.valid.eq(valid),
            self.rows.payload.eq(read.data),
            write.addr.eq(head),
            write.data.eq(self.row),
            write.en.eq(self.push),
            read.addr.eq(tail),
            read.en.eq(fetch),
        ]
        m.d.sync += [
            stored.eq(stored + self.push - fetch),
            some.eq(self.push | (stored[1:] != 0) | (stored[0] & ~fetch)),
            reserved.eq(self.reserve),
            taken.eq(valid & self.rows.ready),
            promised.eq(promised + reserved - taken),
        ]
        with m.If(reserved & ~taken):
            m.d.sync += last_place.eq(promised == depth - 2)
        with m.If(taken & ~reserved):
            m.d.sync += last_place.eq(promised[-1])
        with m.If(self.push):
            m.d.sync += head.eq(head + 1)
        with m.If(fetch):
            m.d.sync += [tail.eq(tail + 1), valid.eq(1)]
        with m.Elif(self.rows.ready):
            m.d.sync += valid.eq(0)
        return m
