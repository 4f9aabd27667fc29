"""Query operands: read from the int8 buffer ahead of the runs that use them."""

from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import clog2
from tellme.hw.attention.block import Sizes, log2
from tellme.hw.pipeline import delay_line


class QueryLoader(wiring.Component):
    """Loads the array's query operands for each (cell, set): a word a cycle, only of active queries.

    From `swap` to `ready`: `hold` + 3 + active queries * cell words cycles. (The array's rows swap one after the
    other; `hold` keeps
    a load from overtaking them.)

    Interface attributes
    --------------------
    phases : K phases. swap : pulse, the player takes the operands. ready : they are complete.
    q_lane, q_word, q_en -> q_data : read port of the int8 buffer, 1 cycle. load_* : write port of the array.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        c = sizes.config
        self.hold = max(0, sizes.depth - sizes.cell_words + 1)
        super().__init__(
            {
                "head_mode": In(1),
                "cells": In(16),
                "group": In(8),
                "phases": In(stream.Signature(sizes.phase)),
                "swap": In(1),
                "ready": Out(1),
                "q_lane": Out(clog2(c.lanes)),
                "q_word": Out(clog2(c.max_features // c.word)),
                "q_en": Out(1),
                "q_data": In(8 * c.word),
                "load_en": Out(1),
                "load_lane": Out(clog2(c.attention_lanes)),
                "load_word": Out(range(max(2, sizes.cell_words))),
                "load_data": Out(8 * c.word),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        z = self.sizes
        c = z.config
        p = self.phases.payload
        cell = Signal(16)
        query = Signal(z.query_bits + 1)
        lane = Signal(clog2(c.lanes))
        g = Signal(8)
        last_g = Signal(8)
        m.d.sync += last_g.eq(self.group - 1)
        head_cell = Signal(16)
        word = Signal(range(max(2, z.cell_words)))
        a = Signal(clog2(c.attention_lanes))
        hold = Signal(range(self.hold + 2))

        reading = Signal()
        end_word, end_query, end_set, end_group = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            end_word.eq(word == z.cell_words - 1),
            end_query.eq(query == p.last_query),
            end_set.eq((a == c.attention_lanes - 1) | end_query),
            end_group.eq(g == last_g),
            a.eq(query & (c.attention_lanes - 1)),
        ]
        done = Signal()
        m.d.sync += [
            self.q_en.eq(reading),
            self.q_lane.eq(lane),
            self.q_word.eq(
                ((head_cell + cell) * z.cell_words + word) + Mux(self.head_mode, 0, c.query_offset // c.word)
            ),
        ]
        finished = delay_line(m, done, 2, "finished", reset_less=False)
        m.d.comb += [
            self.load_en.eq(delay_line(m, reading, 2, "load_en", reset_less=False)),
            self.load_lane.eq(delay_line(m, a, 2, "load_lane")),
            self.load_word.eq(delay_line(m, word, 2, "load_word")),
            self.load_data.eq(self.q_data),
        ]
        with m.If(finished):
            m.d.sync += self.ready.eq(1)
        with m.If(self.swap):
            m.d.sync += self.ready.eq(0)
        with m.If(hold != 0):
            m.d.sync += hold.eq(hold - 1)
        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [
                    cell.eq(0),
                    query.eq(0),
                    lane.eq(p.lane_lo),
                    g.eq(0),
                    head_cell.eq(p.head_cell),
                    word.eq(0),
                ]
                with m.If(self.phases.valid & (hold == 0)):
                    m.next = "Read"
            with m.State("Read"):
                m.d.comb += reading.eq(1)
                m.d.sync += word.eq(word + 1)
                with m.If(end_word):
                    m.d.sync += [word.eq(0), query.eq(query + 1), g.eq(g + 1), head_cell.eq(head_cell + self.cells)]
                    with m.If(end_group):
                        m.d.sync += [g.eq(0), lane.eq(lane + 1), head_cell.eq(p.head_cell)]
                    with m.If(end_query):
                        m.d.sync += [
                            query.eq(0),
                            g.eq(0),
                            lane.eq(p.lane_lo),
                            head_cell.eq(p.head_cell),
                            cell.eq(cell + 1),
                        ]
                    with m.If(end_set):
                        m.d.comb += done.eq(1)
                        m.next = "Wait"
            with m.State("Wait"):
                # Until the player takes these operands; then until its rows have.
                with m.If(self.swap):
                    m.d.sync += hold.eq(self.hold)
                    m.next = "Hold"
            with m.State("Hold"):
                with m.If(hold <= 1):
                    m.next = "Read"
                    with m.If(cell == self.cells):
                        m.d.comb += self.phases.ready.eq(1)
                        m.next = "Idle"
        return m


def q_words(z: Sizes) -> int:
    """Address bits of a lane's part of the int8 buffer."""
    return log2(z.config.max_features // z.config.word)
