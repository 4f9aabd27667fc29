"""Weighted sums of runs added up over the blocks of a unit, and its results given out."""

from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.config import clog2
from tellme.hw.attention.block import Sizes, log2
from tellme.hw.fp import IntToFloat, Multiplier
from tellme.hw.pipeline import delay_line


class SumAccumulator(wiring.Component):
    """Adds the array's weighted sums to those of the unit's earlier blocks; after the last block turns them into
    results.

    A run is added in ceil(active queries / `Sizes.pair`) * `Sizes.depth` cycles, 4 dims of a pair at a time; a unit's
    results take queries * head_dim / 4 cycles and `delay` more. Two units' sums are kept (by parity): a unit's results
    are read while the runs of the next unit's first block, which are added to nothing, are written; later blocks hold
    the results up. Results: lane by lane, heads of a lane ascending, dims ascending.

    Interface attributes
    --------------------
    phases : V phases. summed : pulse, a run's sums can be read. dumped : pulse, they are read.
    sum_half, sum_pair, sum_step -> sums : of the array, 1 cycle. They come a cycle late: up to the one behind `dumped`.
    factor_address -> factor : {parity, query}, 1 cycle.
    emitted : pulse, the factors of a unit are no longer needed. finished : pulse, the job's last result is out.
    att_* : chunks of 4 results: lane, chunk of the lane's features, 4 binary32.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        c = sizes.config
        self.to_float = [IntToFloat(sizes.sum_bits) for _ in range(4)]
        self.delay = 2 + self.to_float[0].delay + Multiplier.delay
        """From reading a sum to the result."""
        super().__init__(
            {
                "cells": In(16),
                "group": In(8),
                "phases": In(stream.Signature(sizes.phase)),
                "summed": In(1),
                "dumped": Out(1),
                "sum_half": Out(1),
                "sum_pair": Out(clog2(c.attention_lanes // sizes.pair)),
                "sum_step": Out(log2(sizes.depth)),
                "sums": In(data.ArrayLayout(signed(sizes.run_bits), 4 * sizes.pair)),
                "factor_address": Out(1 + sizes.query_bits),
                "factor": In(32),
                "emitted": Out(1),
                "finished": Out(1),
                "att_valid": Out(1),
                "att_lane": Out(clog2(c.lanes)),
                "att_chunk": Out(clog2(c.max_features // 4)),
                "att_data": Out(data.ArrayLayout(32, 4)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        z = self.sizes
        c = z.config
        depth = log2(z.depth)
        p = self.phases.payload
        index_bits = clog2(c.max_head_dim // 4)
        pairs = c.attention_lanes // z.pair
        low = log2(z.pair)

        runs = Signal(2)
        m.d.sync += runs.eq(runs + self.summed - self.dumped)
        half = Signal()
        step = Signal(depth)
        pair = Signal(z.query_bits + 1 - low)
        cell = Signal(16)
        lane = Signal(clog2(c.lanes))
        g = Signal(8)
        head_cell = Signal(16)
        reading = Signal()
        adding = Signal()
        emitting = Signal()
        end_query, end_set, end_cell = Signal(), Signal(), Signal()
        last_cell = Signal(16)
        last_g = Signal(8)
        m.d.sync += [
            last_cell.eq(self.cells - 1),
            last_g.eq(self.group - 1),
            # Asked for in the last of a pair's `depth` steps: they may come a cycle late.
            end_query.eq(pair == p.last_query >> low),
            end_set.eq(((pair & (pairs - 1)) == pairs - 1) | (pair == p.last_query >> low)),
            end_cell.eq(cell == last_cell),
            # The array's memory answers in a cycle, the one here in two.
            self.sum_half.eq(half),
            self.sum_pair.eq(pair & (pairs - 1)),
            self.sum_step.eq(step),
        ]
        m.d.comb += adding.eq(reading & ~p.first)

        # ---- runs are added as they come -----------------------------------------------------------
        unit = Signal(z.phase, reset_less=True)
        wait = Signal(range(4))
        emit_busy = Signal()
        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [pair.eq(0), cell.eq(0), step.eq(0)]
                with m.If(self.phases.valid):
                    m.next = "Add"
            with m.State("Add"):
                with m.If(runs != 0):
                    m.d.comb += reading.eq(1)
                    m.d.sync += step.eq(step + 1)
                    with m.If(step.all()):
                        m.d.sync += pair.eq(pair + 1)
                        with m.If(end_set):
                            m.d.comb += self.dumped.eq(1)
                            m.d.sync += half.eq(~half)
                            with m.If(end_query):
                                m.d.sync += [pair.eq(0), cell.eq(cell + 1)]
                                with m.If(end_cell):
                                    m.d.sync += cell.eq(0)
                                    with m.If(p.last):
                                        m.next = "Give"
                                    with m.Else():
                                        m.d.comb += self.phases.ready.eq(1)
                                        m.next = "Idle"
            with m.State("Give"):
                with m.If(~emit_busy):
                    m.d.comb += self.phases.ready.eq(1)
                    m.d.sync += [unit.eq(p), wait.eq(2), emit_busy.eq(1)]
                    m.next = "Idle"

        # ---- results are given out while nothing is added ------------------------------------------
        # The last sums are on their way to the memory for three cycles, of which "Give" is the first.
        out_query = Signal(z.query_bits + 1)
        out_cell = Signal(16)
        out_step = Signal(depth)
        m.d.comb += emitting.eq(emit_busy & (wait == 0) & ~adding)
        with m.If(wait != 0):
            m.d.sync += [
                wait.eq(wait - 1),
                out_query.eq(0),
                out_cell.eq(0),
                out_step.eq(0),
                lane.eq(unit.lane_lo),
                g.eq(0),
                head_cell.eq(unit.head_cell),
            ]
        with m.If(emitting):
            m.d.sync += out_step.eq(out_step + 1)
            with m.If(out_step.all()):
                m.d.sync += out_cell.eq(out_cell + 1)
                with m.If(out_cell == last_cell):
                    m.d.sync += [
                        out_cell.eq(0),
                        out_query.eq(out_query + 1),
                        g.eq(g + 1),
                        head_cell.eq(head_cell + self.cells),
                    ]
                    with m.If(g == last_g):
                        m.d.sync += [g.eq(0), lane.eq(lane + 1), head_cell.eq(unit.head_cell)]
                    with m.If(out_query == unit.last_query):
                        m.d.comb += self.emitted.eq(1)
                        m.d.sync += emit_busy.eq(0)

        # ---- sums ----------------------------------------------------------------------------------
        layout = data.ArrayLayout(signed(z.sum_bits), 4 * z.pair)
        m.submodules.memory = memory = Memory(shape=layout, depth=2 << (z.query_bits - low + index_bits), init=[])
        write, read = memory.write_port(), memory.read_port()
        # The output register of an UltraRAM. A word is added to again after z.depth + 1 cycles at the earliest, the states' time
        # between two phases; it is written after three.
        assert z.depth + 1 > 3
        before = Signal(layout, reset_less=True)
        m.d.sync += before.eq(read.data)
        address = Signal(1 + z.query_bits - low + index_bits)
        out_address = Signal.like(address)
        m.d.comb += [
            address.eq(Cat(Cat(step, cell)[:index_bits], pair[: z.query_bits - low], p.parity)),
            out_address.eq(Cat(Cat(out_step, out_cell)[:index_bits], out_query[low : z.query_bits], unit.parity)),
            self.factor_address.eq(Cat(out_query[: z.query_bits], unit.parity)),
            read.addr.eq(Mux(adding, address, out_address)),
            write.addr.eq(delay_line(m, address, 3, "address")),
            write.en.eq(delay_line(m, reading, 3, "write_en", reset_less=False)),
        ]
        first = delay_line(m, p.first, 2, "first")
        total = Signal(layout, reset_less=True)
        for i in range(4 * z.pair):
            m.d.sync += total[i].eq(self.sums[i] + Mux(first, 0, before[i]))
        m.d.comb += write.data.eq(total)

        # ---- results -------------------------------------------------------------------------------
        factor = delay_line(m, self.factor, 1 + self.to_float[0].delay, "factor")
        second = delay_line(m, out_query[0] if low else Const(0), 2, "second")
        for i in range(4):
            m.submodules[f"to_float_{i}"] = to_float = self.to_float[i]
            m.submodules[f"multiply_{i}"] = multiply = Multiplier()
            m.d.comb += [
                to_float.i.eq(Mux(second, before[4 * (z.pair - 1) + i], before[i])),
                multiply.a.eq(to_float.o),
                multiply.b.eq(factor),
                self.att_data[i].eq(multiply.o),
            ]
        chunk = Signal(len(self.att_chunk))
        m.d.comb += chunk.eq(Cat(out_step, (head_cell + out_cell)[: len(chunk)]))
        m.d.comb += [
            self.att_valid.eq(delay_line(m, emitting, self.delay, "att_valid", reset_less=False)),
            self.att_lane.eq(delay_line(m, lane, self.delay, "att_lane")),
            self.att_chunk.eq(delay_line(m, chunk, self.delay, "att_chunk")),
            self.finished.eq(delay_line(m, self.emitted & unit.final, self.delay + 1, "finished", reset_less=False)),
        ]
        return m
