"""Row accumulators: the sums of a row block over its K tiles."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig


def row_layout(config: AcceleratorConfig) -> data.ArrayLayout:
    """A row: the accumulators of all lanes."""
    return data.ArrayLayout(signed(config.row_width), config.lanes)


class Accumulator(wiring.Component):
    """Adds the sums of a row's beats. `delay` = 2 cycles from `valid` to `push`.

    The first tile of a block overwrites, the last one's result leaves at `push` and is not stored, so the
    memory (block_rows deep, one read and one write port) is free for the next block at once.

    Interface attributes
    --------------------
    valid, first, last, row : a beat; its `sums` come in the next cycle. The same row comes
        again three cycles later at the earliest (a tile has at least 8 rows).
    sums : one per lane, signed.
    push, result : a finished row.
    """

    delay = 2

    def __init__(self, config: AcceleratorConfig, *, sum_width: int) -> None:
        self._config = config
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "last": In(1),
                "row": In(range(config.block_rows)),
                "sums": In(signed(sum_width)).array(config.lanes),
                "push": Out(1),
                "result": Out(row_layout(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layout = row_layout(self._config)
        m.submodules.memory = memory = Memory(shape=layout, depth=self._config.block_rows, init=[])
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += [read.addr.eq(self.row), read.en.eq(1)]

        valid, store, push = Signal(), Signal(), Signal()
        first, last = Signal(reset_less=True), Signal(reset_less=True)
        row, store_row = Signal.like(self.row, reset_less=True), Signal.like(self.row, reset_less=True)
        m.d.sync += [valid.eq(self.valid), first.eq(self.first), last.eq(self.last), row.eq(self.row)]
        m.d.sync += [store.eq(valid & ~last), push.eq(valid & last), store_row.eq(row)]

        result = Signal(layout, reset_less=True)
        for lane, s in enumerate(self.sums):
            m.d.sync += result[lane].eq(Mux(first, 0, read.data[lane]) + s)
        m.d.comb += [
            write.addr.eq(store_row),
            write.data.eq(result),
            write.en.eq(store),
            self.push.eq(push),
            self.result.eq(result),
        ]
        return m
