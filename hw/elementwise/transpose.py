"""From rows of all lanes to chunks of one lane."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import CHUNK, AcceleratorConfig
from tellme.hw.elementwise.common import count_bits, lane_bits

OCTET = 2 * CHUNK
"""Rows that are transposed together."""


class Transposer(wiring.Component):
    """Collects octets of 8 rows and issues, lane by lane, their two chunks of 4 in consecutive cycles.

    Double-buffered: an octet takes max(8, 2 * lanes) cycles when rows are ready. The outputs `issue...` describe the
    chunk that leaves the memory in this cycle; its `values` follow `delay` cycles later. An octet starts only
    while `go`; once started it runs without a pause.

    Parameters
    ----------
    config : the accelerator.

    Interface attributes
    --------------------
    start : In, pulse; `rows` (a multiple of 8) and `lanes` are taken from then on.
    rows_in : In, stream of rows: an accumulator of every lane.
    go : In, the next octet may start.
    issue, issue_lane, issue_half, issue_first, issue_last : Out. A chunk is read; first and last of its octet.
    values : Out, its accumulators, one cycle later.
    """

    delay = 1

    def __init__(self, config: AcceleratorConfig):
        self._lanes = config.lanes
        self._width = config.row_width
        super().__init__(
            {
                "start": In(1),
                "rows": In(16),
                "lanes": In(count_bits(config)),
                "rows_in": In(stream.Signature(data.ArrayLayout(signed(config.row_width), config.lanes))),
                "go": In(1),
                "issue": Out(1),
                "issue_lane": Out(lane_bits(config)),
                "issue_half": Out(1),
                "issue_first": Out(1),
                "issue_last": Out(1),
                "values": Out(data.ArrayLayout(signed(config.row_width), CHUNK)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        full = Signal(2)
        left = Signal(16 - 3)  # octets still to be collected
        filling = Signal()  # left != 0
        fill_bank, drain_bank = Signal(), Signal()
        fill_row = Signal(3)
        accept = Signal()
        m.d.comb += [
            self.rows_in.ready.eq(filling & ~full.bit_select(fill_bank, 1)),
            accept.eq(self.rows_in.ready & self.rows_in.valid),
        ]
        with m.If(accept):
            m.d.sync += fill_row.eq(fill_row + 1)
            with m.If(fill_row == OCTET - 1):
                m.d.sync += [
                    full.bit_select(fill_bank, 1).eq(1),
                    fill_bank.eq(~fill_bank),
                    left.eq(left - 1),
                    filling.eq(left != 1),
                ]
        with m.If(self.start):
            m.d.sync += [left.eq(self.rows[3:]), filling.eq(self.rows[3:] != 0)]

        lane = Signal(len(self.issue_lane))
        half = Signal()
        running = Signal()  # inside an octet
        last_lane = Signal(len(lane))
        m.d.sync += last_lane.eq(self.lanes - 1)
        m.d.comb += [
            self.issue.eq(full.bit_select(drain_bank, 1) & (running | self.go)),
            self.issue_lane.eq(lane),
            self.issue_half.eq(half),
            self.issue_first.eq(~running),
            self.issue_last.eq(half & (lane == last_lane)),
        ]
        with m.If(self.issue):
            m.d.sync += [half.eq(~half), running.eq(1)]
            with m.If(half):
                m.d.sync += lane.eq(lane + 1)
            with m.If(self.issue_last):
                m.d.sync += [
                    lane.eq(0),
                    running.eq(0),
                    full.bit_select(drain_bank, 1).eq(0),
                    drain_bank.eq(~drain_bank),
                ]

        for i in range(CHUNK):
            # Rows i and i + 4 of both banks.
            ram = memory.Memory(shape=unsigned(self._lanes * self._width), depth=4, init=[])
            m.submodules[f"rows{i}"] = ram
            write, read = ram.write_port(), ram.read_port(domain="comb")
            value = Signal(self._width, name=f"value{i}", reset_less=True)
            m.d.comb += [
                write.addr.eq(Cat(fill_row[2], fill_bank)),
                write.data.eq(self.rows_in.payload.as_value()),
                write.en.eq(accept & (fill_row[:2] == i)),
                read.addr.eq(Cat(half, drain_bank)),
                self.values[i].eq(value.as_signed()),
            ]
            m.d.sync += value.eq(read.data.word_select(lane, self._width))
        return m
