"""Row accumulators: the sums of a row block over its K tiles."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig
from tellme.hw.pipeline import register


def row_layout(config: AcceleratorConfig) -> data.ArrayLayout:
    """A row: the accumulators of all lanes."""
    return data.ArrayLayout(signed(config.row_width), config.lanes)


_CHAIN = 32
"""Bits of a sum that fit behind the memory's clock-to-out in a cycle; wider ones have a register between."""


def accumulator_lead(config: AcceleratorConfig) -> int:
    """Cycles from a beat's flags to its sums."""
    return 1 if config.row_width <= _CHAIN else 2


class Accumulator(wiring.Component):
    """Adds the sums of a row's beats.

    The first tile of a block overwrites, the last one's result leaves at `push` and is not stored, so the
    memory (block_rows deep, one read and one write port) is free for the next block at once.

    Interface attributes
    --------------------
    valid, first, last, row : a beat; its `sums` come `accumulator_lead` cycles later. The same row comes
        again four cycles later at the earliest (a tile has at least 8 rows).
    sums : one per lane, signed.
    push, result : a finished row.

    Attributes
    ----------
    delay : cycles from `valid` to `push`: 2, or 3 where rows are wider than 32 bits.
    """

    def __init__(self, config: AcceleratorConfig, *, sum_width: int) -> None:
        self._config = config
        self.delay = accumulator_lead(config) + 1
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

        told, place, before = self.valid, (self.first, self.last, self.row), read.data
        if accumulator_lead(self._config) > 1:
            told = register(m, told, "told", reset_less=False)
            place = tuple(
                register(m, p, n) for p, n in zip(place, ("first_told", "last_told", "row_told"), strict=True)
            )
            before = Signal(layout, name="before", reset_less=True)
            m.d.sync += before.eq(read.data)
        valid, store, push = Signal(), Signal(), Signal()
        first, last = Signal(reset_less=True), Signal(reset_less=True)
        row, store_row = Signal.like(self.row, reset_less=True), Signal.like(self.row, reset_less=True)
        m.d.sync += [valid.eq(told), first.eq(place[0]), last.eq(place[1]), row.eq(place[2])]
        m.d.sync += [store.eq(valid & ~last), push.eq(valid & last), store_row.eq(row)]

        result = Signal(layout, reset_less=True)
        for lane, s in enumerate(self.sums):
            m.d.sync += result[lane].eq(Mux(first, 0, before[lane]) + s)
        m.d.comb += [
            write.addr.eq(store_row),
            write.data.eq(result),
            write.en.eq(store),
            self.push.eq(push),
            self.result.eq(result),
        ]
        return m
