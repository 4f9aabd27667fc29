"""Maxima of the first pass of the softmax: what the second pass is relative to."""

from __future__ import annotations

from amaranth import Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.attention import RATIO_MAX
from tellme.hw.attention.block import SCORE_BITS, Sizes, score_layout, statistic_layout
from tellme.hw.fp import Multiplier, Reciprocal
from tellme.hw.fp.format import float_const
from tellme.hw.pipeline import delay_line

LOWEST = Const(-(1 << SCORE_BITS - 1), signed(SCORE_BITS))


class Maxima(wiring.Component):
    """Running maxima, over the phases of a unit, of the scores of `pipes` queries and of the V scales of their keys.

    A batch's maxima are read `Sizes`-wide at its first beat and written behind its last one; it may come again 5 cycles
    behind its last beat.

    Interface attributes
    --------------------
    valid, scores, value_scales : of a beat of keys; scores with flags of what each query attends to.
    begin, fresh, last : with it: first beat of the batch in this phase; the unit's first phase; last cycle of the batch.
    place : {parity, batch}, a cycle ahead of the rest.
    done, done_place, current : pulse, a batch's maxima are complete in this phase; its place; they.
    address : read port of the second pass; answers in a cycle.
    maxima : what `address` asked for.
    """

    delay = 2
    """From a batch's last scores to `done`: the largest of a beat's keys first, then that of all."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        place = 1 + sizes.batch_bits
        super().__init__(
            {
                "valid": In(1),
                "scores": In(data.ArrayLayout(score_layout(sizes), sizes.pipes)),
                "value_scales": In(data.ArrayLayout(32, sizes.config.keys_per_beat)),
                "begin": In(1),
                "fresh": In(1),
                "last": In(1),
                "place": In(place),
                "done": Out(1),
                "done_place": Out(place),
                "current": Out(statistic_layout(sizes)),
                "address": In(place),
                "maxima": Out(statistic_layout(sizes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layout = statistic_layout(self.sizes)
        m.submodules.statistics = memory = Memory(shape=layout, depth=2 << self.sizes.batch_bits, init=[])
        write, own, other = memory.write_port(), memory.read_port(), memory.read_port()
        # Read again five cycles behind the last beat at the earliest (the states of QueryBatches), and there after four.
        done_place = delay_line(m, self.place, 3, "done_place")
        done = delay_line(m, self.last, self.delay, "done", reset_less=False)
        held = Signal(layout, reset_less=True)
        statistics = Signal(layout, reset_less=True)
        m.d.sync += held.eq(own.data)
        m.d.comb += [
            own.addr.eq(self.place),
            other.addr.eq(self.address),
            self.maxima.eq(other.data),
            write.addr.eq(done_place),
            write.data.eq(statistics),
            write.en.eq(done),
            self.done.eq(done),
            self.done_place.eq(done_place),
            self.current.eq(statistics),
        ]
        begin = delay_line(m, self.begin, 1, "begin")
        fresh = delay_line(m, self.fresh, 1, "fresh")
        compared = delay_line(m, self.valid, 1, "compared", reset_less=False)
        for i in range(self.sizes.pipes):
            score, scale = self._largest(m, i)
            before_score = Signal(signed(SCORE_BITS), name=f"before_score_{i}")
            before_scale = Signal(32, name=f"before_scale_{i}")
            m.d.comb += [before_score.eq(statistics[i].m), before_scale.eq(statistics[i].vmax)]
            with m.If(begin):
                m.d.comb += [
                    before_score.eq(Mux(fresh, LOWEST, held[i].m)),
                    before_scale.eq(Mux(fresh, 0, held[i].vmax)),
                ]
            with m.If(compared):
                m.d.sync += [
                    statistics[i].m.eq(Mux(score > before_score, score, before_score)),
                    statistics[i].vmax.eq(Mux(scale > before_scale, scale, before_scale)),
                ]
        return m

    def _largest(self, m: Module, query: int) -> tuple[Signal, Signal]:
        """Largest score and V scale of a beat's keys that the query attends to, a register behind."""
        keys = self.sizes.config.keys_per_beat
        assert keys <= 2  # compared in pairs
        best_score, best_scale, some = LOWEST, Const(0, 32), Const(0, 1)
        for k in range(keys):
            score, valid = self.scores[query][k].score, self.scores[query][k].valid
            scale = self.value_scales[k]
            next_score = Signal(signed(SCORE_BITS), name=f"score_{query}_{k}")
            next_scale = Signal(32, name=f"scale_{query}_{k}")
            m.d.comb += [next_score.eq(Mux(valid, score, LOWEST)), next_scale.eq(Mux(valid, scale, 0))]
            if k > 0:  # the comparison beside the flags, not behind them
                with m.If(some & ~(valid & (score > self.scores[query][k - 1].score))):
                    m.d.comb += next_score.eq(best_score)
                with m.If(some & ~(valid & (scale > self.value_scales[k - 1]))):
                    m.d.comb += next_scale.eq(best_scale)
            best_score, best_scale, some = next_score, next_scale, valid
        largest_score = Signal(signed(SCORE_BITS), name=f"largest_score_{query}", reset_less=True)
        largest_scale = Signal(32, name=f"largest_scale_{query}", reset_less=True)
        m.d.sync += [largest_score.eq(best_score), largest_scale.eq(best_scale)]
        return largest_score, largest_scale


class InverseScales(wiring.Component):
    """65535 / vmax of `pipes` queries, one after the other, kept by batch for the second pass.

    Interface attributes
    --------------------
    start, place, vmax : pulse with {parity, batch} and the largest V scales; at most every `pipes` cycles.
    address : read port; answers in a cycle.
    inverse : what `address` asked for.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self.delay = 1 + Reciprocal.delay + Multiplier.delay + sizes.pipes
        """From `start` to the cycle from which all can be read."""
        place = 1 + sizes.batch_bits
        scales = data.ArrayLayout(32, sizes.pipes)
        super().__init__(
            {
                "start": In(1),
                "place": In(place),
                "vmax": In(scales),
                "address": In(place),
                "inverse": Out(scales),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipes = self.sizes.pipes
        left = Signal(pipes)
        vmax = [Signal(32, name=f"vmax_{i}", reset_less=True) for i in range(pipes)]
        place = Signal.like(self.place, reset_less=True)
        with m.If(self.start):
            m.d.sync += [left.eq((1 << pipes) - 1), place.eq(self.place)]
            m.d.sync += [vmax[i].eq(self.vmax[i]) for i in range(pipes)]
        with m.Else():
            m.d.sync += left.eq(left >> 1)
            m.d.sync += [vmax[i].eq(vmax[i + 1]) for i in range(pipes - 1)]
        m.submodules.reciprocal = reciprocal = Reciprocal()
        m.submodules.multiply = multiply = Multiplier()
        m.d.comb += [
            reciprocal.i.eq(vmax[0]),
            multiply.a.eq(float_const(RATIO_MAX)),
            multiply.b.eq(reciprocal.o),
        ]
        spread = reciprocal.delay + multiply.delay
        left_late = delay_line(m, left, spread, "left", reset_less=False)
        place_late = delay_line(m, place, spread, "place")
        for i in range(pipes):
            m.submodules[f"inverse_{i}"] = memory = Memory(shape=32, depth=2 << self.sizes.batch_bits, init=[])
            write, read = memory.write_port(), memory.read_port()
            # Query i leaves when i shifts of the flags are done: pipes - i of them are left.
            here = left_late[pipes - 1 - i] & ((left_late >> (pipes - i)) == 0)
            m.d.comb += [
                write.en.eq(here),
                write.addr.eq(place_late),
                write.data.eq(multiply.o),
                read.addr.eq(self.address),
                self.inverse[i].eq(read.data),
            ]
        return m
