"""Query operands: read from the int8 buffer ahead of the runs that use them."""

from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import clog2
from tellme.hw.attention.block import Sizes
from tellme.hw.attention.signatures import OperandPort
from tellme.hw.interfaces import Int8ReadPort
from tellme.hw.pipeline import delay_line


class QueryLoader(wiring.Component):
    """Loads the array's query operands for each (cell, set): a word a cycle, only of active queries.

    From `swap` to `ready`: `reload` + active queries * cell words - 1 + `delay` cycles.

    Interface attributes
    --------------------
    head_mode, cells, group, split : see AttentionUnit.
    phases : K phases.
    swap : pulse, the player takes the operands.
    ready : they are complete.
    int8 : read port of the int8 buffer.
    load : write port of the array.
    """

    delay = 3
    """From the read of a set's last word to `ready`."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        config = sizes.config
        self.hold = max(0, sizes.depth - sizes.cell_words + 1)
        """Cycles that keep a load from overtaking the array's rows, which swap one after the other."""
        self.reload = max(1, self.hold) + 1
        """From `swap` to the read of the next set's first word; one more between two phases."""
        super().__init__(
            {
                "head_mode": In(1),
                "cells": In(16),
                "group": In(8),
                "split": In(1),
                "phases": In(stream.Signature(sizes.phase)),
                "swap": In(1),
                "ready": Out(1),
                "int8": Out(Int8ReadPort(config)),
                "load": Out(OperandPort(sizes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sizes = self.sizes
        config = sizes.config
        phase = self.phases.payload
        cell = Signal(16)
        query = Signal(sizes.query_bits + 1)
        lane = Signal(clog2(config.lanes))
        head = Signal(8)
        last_head = Signal(8)
        m.d.sync += last_head.eq(self.group - 1)
        head_cell = Signal(16)
        word = Signal(range(max(2, sizes.cell_words)))
        place = Signal(clog2(config.attention_lanes))
        hold = Signal(range(self.hold + 2))

        reading = Signal()
        end_word, end_query, end_set, end_group = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            end_word.eq(word == sizes.cell_words - 1),
            end_query.eq(query == phase.last_query),
            end_set.eq((place == Mux(self.split, sizes.set_queries - 1, config.attention_lanes - 1)) | end_query),
            end_group.eq(head == last_head),
            place.eq(query & Mux(self.split, sizes.set_queries - 1, config.attention_lanes - 1)),
        ]
        done = Signal()
        m.d.sync += [
            self.int8.en.eq(reading),
            self.int8.lane.eq(lane),
            self.int8.word.eq(
                ((head_cell + cell) * sizes.cell_words + word)
                + Mux(self.head_mode, 0, config.query_offset // config.word)
            ),
        ]
        finished = delay_line(m, done, self.delay - 1, "finished", reset_less=False)
        m.d.comb += [
            self.load.en.eq(delay_line(m, reading, 2, "load_en", reset_less=False)),
            self.load.lane.eq(delay_line(m, place, 2, "load_lane")),
            self.load.both.eq(self.split),
            self.load.word.eq(delay_line(m, word, 2, "load_word")),
            self.load.data.eq(self.int8.data),
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
                    lane.eq(phase.lane_lo),
                    head.eq(0),
                    head_cell.eq(phase.head_cell),
                    word.eq(0),
                ]
                with m.If(self.phases.valid & (hold == 0)):
                    m.next = "Read"
            with m.State("Read"):
                m.d.comb += reading.eq(1)
                m.d.sync += word.eq(word + 1)
                with m.If(end_word):
                    m.d.sync += [
                        word.eq(0),
                        query.eq(query + 1),
                        head.eq(head + 1),
                        head_cell.eq(head_cell + self.cells),
                    ]
                    with m.If(end_group):
                        m.d.sync += [head.eq(0), lane.eq(lane + 1), head_cell.eq(phase.head_cell)]
                    with m.If(end_query):
                        m.d.sync += [
                            query.eq(0),
                            head.eq(0),
                            lane.eq(phase.lane_lo),
                            head_cell.eq(phase.head_cell),
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
