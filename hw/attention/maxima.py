"""Maxima of the first pass of the softmax: what the second pass is relative to."""

from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.attention import LEVEL_FRAC, SCORE_FRAC
from tellme.hw.attention.block import LEVEL_BITS, SCORE_BITS, Sizes, score_layout, statistic_layout
from tellme.hw.pipeline import delay_line

LOWEST = Const(-(1 << SCORE_BITS - 1), signed(SCORE_BITS))
LOWEST_LEVEL = Const(-(1 << LEVEL_BITS - 1), signed(LEVEL_BITS))


class Maxima(wiring.Component):
    """Running maxima, over the phases of a unit, of the scores of `pipes` queries and of their keys' levels.

    A level is the score and the V scale's log2 together (`golden.attention.level`): from the largest follows the power of
    two that the query's weights are in units of.

    A batch's maxima are read `Sizes`-wide at its first beat and written behind its last one; it may come again 5 cycles
    behind its last beat.

    Interface attributes
    --------------------
    valid, scores, value_levels : of a beat of keys; scores with flags of what each query attends to; the share of the
    V scale in a level, unsigned, with LEVEL_FRAC.
    begin, fresh, last : with it: first beat of the batch in this phase; the unit's first phase; last cycle of the batch.
    place : {parity, batch}, a cycle ahead of the rest.
    address : read port of the second pass; answers in a cycle.
    maxima : what `address` asked for.
    """

    delay = 2
    """From a batch's last scores to the cycle that writes its maxima: levels and the largest score of a beat's keys first, then that of all."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        place = 1 + sizes.batch_bits
        super().__init__(
            {
                "valid": In(1),
                "scores": In(data.ArrayLayout(score_layout(sizes), sizes.pipes)),
                "value_levels": In(data.ArrayLayout(LEVEL_BITS - 1, sizes.config.keys_per_beat)),
                "begin": In(1),
                "fresh": In(1),
                "last": In(1),
                "place": In(place),
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
        ]
        begin = delay_line(m, self.begin, 1, "begin")
        fresh = delay_line(m, self.fresh, 1, "fresh")
        compared = delay_line(m, self.valid, 1, "compared", reset_less=False)
        for i in range(self.sizes.pipes):
            score, levels = self._largest_score(m, i), self._levels(m, i)
            before_score = Signal(signed(SCORE_BITS), name=f"before_score_{i}")
            before_level = Signal(signed(LEVEL_BITS), name=f"before_level_{i}")
            m.d.comb += [before_score.eq(statistics[i].m), before_level.eq(statistics[i].level)]
            with m.If(begin):
                m.d.comb += [
                    before_score.eq(Mux(fresh, LOWEST, held[i].m)),
                    before_level.eq(Mux(fresh, LOWEST_LEVEL, held[i].level)),
                ]
            with m.If(compared):
                m.d.sync += statistics[i].m.eq(Mux(score > before_score, score, before_score))
                # Every two of them at once: a comparison behind another would be too long for a cycle.
                for k, level in enumerate(levels):
                    largest: Value = level > before_level
                    for other in levels[:k]:
                        largest &= level > other
                    for other in levels[k + 1 :]:
                        largest &= level >= other
                    with m.If(largest):
                        m.d.sync += statistics[i].level.eq(level)
                with m.If(begin & ~Cat(level > before_level for level in levels).any()):
                    m.d.sync += statistics[i].level.eq(before_level)
        return m

    def _levels(self, m: Module, query: int) -> list[Signal]:
        """Levels of a beat's keys, a register behind; the lowest of keys that the query does not attend to."""
        levels = []
        for k, (score, value_level) in enumerate(zip(self.scores[query], self.value_levels, strict=True)):
            level = Signal(signed(LEVEL_BITS), name=f"level_{query}_{k}", reset_less=True)
            of_key = (score.score >> (SCORE_FRAC - LEVEL_FRAC)) + value_level
            m.d.sync += level.eq(Mux(score.valid, of_key, LOWEST_LEVEL))
            levels.append(level)
        return levels

    def _largest_score(self, m: Module, query: int) -> Signal:
        """Largest score of a beat's keys that the query attends to, a register behind."""
        keys = self.sizes.config.keys_per_beat
        assert keys <= 2  # compared in pairs
        best, some = LOWEST, Const(0, 1)
        for k in range(keys):
            score, valid = self.scores[query][k].score, self.scores[query][k].valid
            next_score = Signal(signed(SCORE_BITS), name=f"score_{query}_{k}")
            m.d.comb += next_score.eq(Mux(valid, score, LOWEST))
            if k > 0:  # the comparison beside the flags, not behind them
                with m.If(some & ~(valid & (score > self.scores[query][k - 1].score))):
                    m.d.comb += next_score.eq(best)
            best, some = next_score, valid
        largest = Signal(signed(SCORE_BITS), name=f"largest_score_{query}", reset_less=True)
        m.d.sync += largest.eq(best)
        return largest
