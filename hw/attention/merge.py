"""Weighted sums of runs added up over the blocks of a unit, and its results given out."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import clog2
from tellme.hw.attention.block import Sizes
from tellme.hw.attention.signatures import FactorPort, SumPort
from tellme.hw.fp import IntToFloat, Multiplier
from tellme.hw.interfaces import AttentionChunks
from tellme.hw.pipeline import delay_line


class _Adding:
    """The run that is added: where in it."""

    def __init__(self, sizes: Sizes):
        self.half = Signal()
        self.step = Signal(exact_log2(sizes.depth))
        self.pair = Signal(sizes.query_bits + 1 - exact_log2(sizes.pair))
        self.upper = Signal()
        """When attention is split, each pair is added twice: from the lower and from the upper half of the lanes."""
        self.cell = Signal(16)
        self.reading = Signal()
        self.to_sums = Signal()
        """It is added to something: the memory is read."""


class _Giving:
    """The unit whose results are given out: where in it."""

    def __init__(self, sizes: Sizes):
        self.unit = Signal(sizes.phase, reset_less=True)
        self.wait = Signal(range(4))
        self.busy = Signal()
        self.emitting = Signal()
        self.step = Signal(exact_log2(sizes.depth))
        self.cell = Signal(16)
        self.query = Signal(sizes.query_bits + 1)
        self.lane = Signal(clog2(sizes.config.lanes))
        self.head = Signal(8)
        self.head_cell = Signal(16)


class SumAccumulator(wiring.Component):
    """Adds the array's weighted sums to those of the unit's earlier blocks; after the last block turns them into
    results.

    A run is added in ceil(active queries / `Sizes.pair`) * `Sizes.depth` cycles, 4 dims of a pair at a time, in twice as
    many when attention is split; a unit's
    results take queries * head_dim / 4 cycles and `delay` more. Two units' sums are kept (by parity): a unit's results
    are read while the runs of the next unit's first block, which are added to nothing, are written; later blocks hold
    the results up. Results: lane by lane, heads of a lane ascending, dims ascending.

    Interface attributes
    --------------------
    cells, group, split : see AttentionUnit.
    phases : V phases.
    summed : pulse, a run's sums can be read.
    dumped : pulse, they are read.
    sums : read port of the array's sums, which come a cycle late: up to the one behind `dumped`.
    factor : read port of the factors.
    emitted : pulse, the factors of a unit are no longer needed.
    finished : pulse, the job's last result is out.
    chunks : results.
    """

    settle = 2
    """Cycles behind the one that ends a unit ("Give") until its last sums are in the memory."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.to_float = [IntToFloat(sizes.sum_bits) for _ in range(4)]
        self.delay = 2 + self.to_float[0].delay + Multiplier.delay
        """From reading a sum to the result."""
        self.finish_delay = self.delay + 1
        """From `emitted` of the job's last unit to `finished`."""
        super().__init__(
            {
                "cells": In(16),
                "group": In(8),
                "split": In(1),
                "phases": In(stream.Signature(sizes.phase)),
                "summed": In(1),
                "dumped": Out(1),
                "sums": Out(SumPort(sizes)),
                "factor": Out(FactorPort(sizes)),
                "emitted": Out(1),
                "finished": Out(1),
                "chunks": Out(AttentionChunks(sizes.config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        adding = _Adding(self.sizes)
        giving = _Giving(self.sizes)
        last_cell = Signal(16)
        m.d.sync += last_cell.eq(self.cells - 1)
        self._add_runs(m, adding, giving, last_cell)
        self._give(m, adding, giving, last_cell)
        before = self._memory(m, adding, giving)
        self._results(m, giving, before)
        return m

    def _add_runs(self, m: Module, adding: _Adding, giving: _Giving, last_cell: Signal) -> None:
        """Runs are added as they come, set by set, cell by cell; a unit is handed over behind its last."""
        sizes = self.sizes
        phase = self.phases.payload
        pair_bits = exact_log2(sizes.pair)
        pairs = sizes.config.attention_lanes // sizes.pair
        # Less one: of a set, at its place in the array.
        last_pair, place = Signal(range(max(2, pairs))), Signal(range(max(2, pairs)))
        m.d.comb += [
            last_pair.eq(Mux(self.split, sizes.set_queries // sizes.pair - 1, pairs - 1)),
            place.eq((adding.pair & last_pair) | Mux(adding.upper, pairs >> 1, 0)),
        ]
        runs = Signal(2)
        end_query, end_set, end_cell = Signal(), Signal(), Signal()
        m.d.sync += [
            runs.eq(runs + self.summed - self.dumped),
            # Asked for in the last of a pair's `depth` steps: they may come a cycle late.
            end_query.eq(adding.pair == phase.last_query >> pair_bits),
            end_set.eq(((adding.pair & last_pair) == last_pair) | (adding.pair == phase.last_query >> pair_bits)),
            end_cell.eq(adding.cell == last_cell),
            # The array's memory answers in a cycle, the one here in two.
            self.sums.half.eq(adding.half),
            self.sums.pair.eq(place),
            self.sums.step.eq(adding.step),
        ]
        m.d.comb += adding.to_sums.eq(adding.reading & (~phase.first | adding.upper))
        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [adding.pair.eq(0), adding.cell.eq(0), adding.step.eq(0), adding.upper.eq(0)]
                with m.If(self.phases.valid):
                    m.next = "Add"
            with m.State("Add"):
                with m.If(runs != 0):
                    m.d.comb += adding.reading.eq(1)
                    m.d.sync += adding.step.eq(adding.step + 1)
                    with m.If(adding.step.all()):
                        m.d.sync += adding.upper.eq(self.split & ~adding.upper)
                    with m.If(adding.step.all() & (adding.upper | ~self.split)):
                        m.d.sync += adding.pair.eq(adding.pair + 1)
                        with m.If(end_set):
                            m.d.comb += self.dumped.eq(1)
                            m.d.sync += adding.half.eq(~adding.half)
                            with m.If(end_query):
                                m.d.sync += [adding.pair.eq(0), adding.cell.eq(adding.cell + 1)]
                                with m.If(end_cell):
                                    m.d.sync += adding.cell.eq(0)
                                    with m.If(phase.last):
                                        m.next = "Give"
                                    with m.Else():
                                        m.d.comb += self.phases.ready.eq(1)
                                        m.next = "Idle"
            with m.State("Give"):
                with m.If(~giving.busy):
                    m.d.comb += self.phases.ready.eq(1)
                    m.d.sync += [giving.unit.eq(phase), giving.wait.eq(self.settle), giving.busy.eq(1)]
                    m.next = "Idle"

    def _give(self, m: Module, adding: _Adding, giving: _Giving, last_cell: Signal) -> None:
        """Results are given out while nothing is added to sums."""
        unit = giving.unit
        last_head = Signal(8)
        m.d.sync += last_head.eq(self.group - 1)
        m.d.comb += giving.emitting.eq(giving.busy & (giving.wait == 0) & ~adding.to_sums)
        # The last sums are on their way to the memory for three cycles, of which "Give" is the first.
        with m.If(giving.wait != 0):
            m.d.sync += [
                giving.wait.eq(giving.wait - 1),
                giving.query.eq(0),
                giving.cell.eq(0),
                giving.step.eq(0),
                giving.lane.eq(unit.lane_lo),
                giving.head.eq(0),
                giving.head_cell.eq(unit.head_cell),
            ]
        with m.If(giving.emitting):
            m.d.sync += giving.step.eq(giving.step + 1)
            with m.If(giving.step.all()):
                m.d.sync += giving.cell.eq(giving.cell + 1)
                with m.If(giving.cell == last_cell):
                    m.d.sync += [
                        giving.cell.eq(0),
                        giving.query.eq(giving.query + 1),
                        giving.head.eq(giving.head + 1),
                        giving.head_cell.eq(giving.head_cell + self.cells),
                    ]
                    with m.If(giving.head == last_head):
                        m.d.sync += [
                            giving.head.eq(0),
                            giving.lane.eq(giving.lane + 1),
                            giving.head_cell.eq(unit.head_cell),
                        ]
                    with m.If(giving.query == unit.last_query):
                        m.d.comb += self.emitted.eq(1)
                        m.d.sync += giving.busy.eq(0)

    def _memory(self, m: Module, adding: _Adding, giving: _Giving) -> Any:
        """Sums of two units. Returns what is read, two cycles behind the address."""
        sizes = self.sizes
        phase = self.phases.payload
        pair_bits = exact_log2(sizes.pair)
        index_bits = clog2(sizes.config.max_head_dim // 4)
        address_bits = sizes.query_bits - pair_bits + index_bits
        layout = data.ArrayLayout(signed(sizes.sum_bits), 4 * sizes.pair)
        m.submodules.memory = memory = Memory(shape=layout, depth=2 << address_bits, init=[])
        write, read = memory.write_port(), memory.read_port()
        # The output register of an UltraRAM. A word is added to again after sizes.depth cycles at the earliest, from the
        # other half of the lanes; it is written after three.
        assert sizes.depth > 3
        before = Signal(layout, reset_less=True)
        m.d.sync += before.eq(read.data)
        address = Signal(1 + address_bits)
        out_address = Signal.like(address)
        index = Cat(adding.step, adding.cell)[:index_bits]
        out_index = Cat(giving.step, giving.cell)[:index_bits]
        m.d.comb += [
            address.eq(Cat(index, adding.pair[: sizes.query_bits - pair_bits], phase.parity)),
            out_address.eq(Cat(out_index, giving.query[pair_bits : sizes.query_bits], giving.unit.parity)),
            read.addr.eq(Mux(adding.to_sums, address, out_address)),
            write.addr.eq(delay_line(m, address, 3, "address")),
            write.en.eq(delay_line(m, adding.reading, 3, "write_en", reset_less=False)),
        ]
        first = delay_line(m, ~adding.to_sums, 2, "first")
        total = Signal(layout, reset_less=True)
        for i in range(4 * sizes.pair):
            m.d.sync += total[i].eq(self.sums.data[i] + Mux(first, 0, before[i]))
        m.d.comb += write.data.eq(total)
        return before

    def _results(self, m: Module, giving: _Giving, before: Any) -> None:
        """Sums as binary32, times the query's factor."""
        sizes = self.sizes
        second: Value = giving.query[0] if sizes.pair > 1 else Const(0)
        second = delay_line(m, second, 2, "second")
        m.d.comb += self.factor.address.eq(Cat(giving.query[: sizes.query_bits], giving.unit.parity))
        factor = delay_line(m, self.factor.data, 1 + self.to_float[0].delay, "factor")
        for i in range(4):
            m.submodules[f"to_float_{i}"] = to_float = self.to_float[i]
            m.submodules[f"multiply_{i}"] = multiply = Multiplier()
            m.d.comb += [
                to_float.i.eq(Mux(second, before[4 * (sizes.pair - 1) + i], before[i])),
                multiply.a.eq(to_float.o),
                multiply.b.eq(factor),
                self.chunks.data[i].eq(multiply.o),
            ]
        chunk = Signal(len(self.chunks.chunk))
        ended = self.emitted & giving.unit.final
        m.d.comb += [
            chunk.eq(Cat(giving.step, (giving.head_cell + giving.cell)[: len(chunk)])),
            self.chunks.valid.eq(delay_line(m, giving.emitting, self.delay, "valid", reset_less=False)),
            self.chunks.lane.eq(delay_line(m, giving.lane, self.delay, "lane")),
            self.chunks.chunk.eq(delay_line(m, chunk, self.delay, "chunk")),
            self.finished.eq(delay_line(m, ended, self.finish_delay, "finished", reset_less=False)),
        ]
