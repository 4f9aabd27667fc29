"""Softmax, second pass: integer weights relative to the maxima of the first."""

from __future__ import annotations

from amaranth import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden import attention
from tellme.golden.attention import SCORE_FRAC, VALUE_FRAC
from tellme.hw.attention.block import (
    EXPONENT_BITS,
    LEVEL_BITS,
    SCORE_BITS,
    Sizes,
    score_layout,
    unit_layout,
    value_scale_layout,
)
from tellme.hw.attention.factors import Factors
from tellme.hw.attention.signatures import FactorPort, StatisticPort
from tellme.hw.fp import Exp2Mantissa
from tellme.hw.pipeline import delay_line


class _Issue:
    """keys_per_beat scores each for a batch of queries: what is issued in a cycle."""

    def __init__(self, sizes: Sizes):
        self.active = Signal()
        self.unit = Signal(unit_layout(sizes))
        self.index = Signal(sizes.row_bits)
        """Of keys_per_beat keys, of the set: of a score word, or of half of one when attention is split."""
        self.word = Signal(sizes.word_bits)
        """Score word of the unit."""
        self.set_word = Signal(sizes.word_bits)
        self.column = Signal(range(max(2, sizes.config.attention_lanes // sizes.pipes)))
        """Of the batch in its set."""
        self.half_column = Signal.like(self.column)
        """Where the keys are: when attention is split, every other time in the upper half of the lanes."""
        self.batch = Signal(sizes.batch_bits)
        self.last_row = Signal()
        self.last_batch = Signal()
        self.left = Signal(sizes.query_bits + 1)
        """Queries, this batch's included."""
        self.real = Signal()
        """There are such keys, not the rest that makes a batch long enough."""


class WeightPass(wiring.Component):
    """Second pass, over the scores of a unit: integer weights Pq, their sum L, and the factor of the unit's results.

    `pipes` queries x keys_per_beat keys a cycle; a unit takes batches * max(rows, pipes) cycles (rows of keys_per_beat keys) and one more, then
    `settle` until its weights and factors can be read.

    Interface attributes
    --------------------
    split : see AttentionUnit.
    unit : see ScorePass.
    hold : level, do not begin a unit (the factors of the one before last are still in use).
    begun : pulse, a unit is.
    ready_units : pulse, a unit's weights and factors are complete.
    score_address, scores : read port of the score RAM, one cycle of latency.
    value_address, value_scales : that of the V scale RAM; the address is of the unit's first set.
    statistics : read port of the maxima.
    weight_en, weight_address, weight_data : write port of the weight RAM: enables of a query each, word.
    factor : read port of the factors.
    """

    _mantissa_delay = 4 + Exp2Mantissa.delay
    """From the issue to 2**fraction: score read, chosen, subtracted and cut into whole and fraction; 2**fraction."""
    _power_delay = _mantissa_delay + 1
    """From the issue to P: shifted."""
    _exponent_delay = 3
    """From the issue to e: maxima read, registered; e."""
    delay = _mantissa_delay + 4
    """Cycles from the issue to the weight: multiplied in two, shifted, rounded."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        config = sizes.config
        self.factors = Factors(sizes)
        self.settle = max(self._power_delay + 2 + self.factors.delay, self.delay + 1)
        """Cycles from a unit's last issue to `ready_units`."""
        super().__init__(
            {
                "split": In(1),
                "unit": In(stream.Signature(unit_layout(sizes))),
                "hold": In(1),
                "begun": Out(1),
                "ready_units": Out(1),
                "score_address": Out(sizes.word_bits),
                "scores": In(data.ArrayLayout(score_layout(sizes), config.attention_lanes)),
                "value_address": Out(sizes.row_bits),
                "value_scales": In(value_scale_layout(sizes)),
                "statistics": Out(StatisticPort(sizes)),
                "weight_en": Out(config.attention_lanes),
                "weight_address": Out(sizes.word_bits),
                "weight_data": Out(data.ArrayLayout(16, config.attention_lanes * config.keys_per_beat)),
                "factor": In(FactorPort(sizes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sizes = self.sizes
        columns = range(sizes.config.attention_lanes // sizes.pipes)
        keys = sizes.config.keys_per_beat
        issue = _Issue(sizes)
        self._issue(m, issue)
        column = delay_line(m, issue.half_column, 1, "column")
        value_scales = delay_line(m, self.value_scales, 1, "value_scales")
        powers: list[list[Signal]] = []
        exponents = []
        for i in range(sizes.pipes):
            maximum = Signal(signed(SCORE_BITS), name=f"maximum_{i}", reset_less=True)
            level = Signal(signed(LEVEL_BITS), name=f"level_{i}", reset_less=True)
            exponent = Signal(EXPONENT_BITS, name=f"exponent_{i}", reset_less=True)
            m.d.sync += [
                maximum.eq(self.statistics.maxima[i].m),
                level.eq(self.statistics.maxima[i].level),
                exponent.eq(attention.exponent(level, maximum)),
            ]
            exponents.append(exponent)
            powers.append([])
            for k in range(keys):
                name = f"{i}_{k}"
                score = self._score(m, i, k, column)
                whole, mantissa = self._split(m, name, score, maximum)
                powers[i].append(self._power(m, name, score, whole, mantissa))
                shift = self._shift(m, name, score, whole, exponent, value_scales[k].exponent)
                weight = self._weight(m, name, mantissa, value_scales[k].fraction, shift)
                m.d.comb += [self.weight_data[(s * sizes.pipes + i) * keys + k].eq(weight) for s in columns]
            write = delay_line(m, issue.real & (issue.left > i), self.delay, f"write_{i}", reset_less=False)
            write_column = delay_line(m, issue.half_column, self.delay, f"write_column_{i}")
            m.d.comb += [self.weight_en[s * sizes.pipes + i].eq(write & (write_column == s)) for s in columns]
        m.d.comb += self.weight_address.eq(delay_line(m, issue.word, self.delay, "weight_word"))
        self._total(m, issue, powers, exponents)
        return m

    def _issue(self, m: Module, issue: _Issue) -> None:
        """Units, batches of queries, words."""
        unit = issue.unit
        m.d.comb += [
            issue.last_row.eq(issue.index == unit.last_row),
            issue.last_batch.eq(issue.batch == unit.batches),
            issue.real.eq(issue.active & (issue.index < unit.rows)),
            issue.word.eq(issue.set_word + Mux(self.split, issue.index >> 1, issue.index)),
            issue.half_column.eq(issue.column),
            self.unit.ready.eq(~self.hold & ~issue.active),
            self.begun.eq(self.unit.valid & self.unit.ready),
            self.score_address.eq(issue.word),
            self.value_address.eq(Cat(issue.index[:-1], unit.parity)),
            self.statistics.address.eq(Cat(issue.batch, unit.parity)),
        ]
        with m.If(self.split):
            m.d.comb += issue.half_column[-1].eq(issue.index[0])
        pipes = self.sizes.pipes
        last_column = Mux(
            self.split, self.sizes.set_queries // pipes - 1, self.sizes.config.attention_lanes // pipes - 1
        )
        with m.If(issue.active):
            m.d.sync += issue.index.eq(issue.index + 1)
            with m.If(issue.last_row):
                m.d.sync += [
                    issue.index.eq(0),
                    issue.batch.eq(issue.batch + 1),
                    issue.column.eq(issue.column + 1),
                    issue.left.eq(issue.left - self.sizes.pipes),
                ]
                with m.If(issue.column == last_column):
                    m.d.sync += [issue.column.eq(0), issue.set_word.eq(issue.set_word + unit.words)]
                with m.If(issue.last_batch):
                    m.d.sync += issue.active.eq(0)
        with m.If(self.begun):
            m.d.sync += [
                issue.active.eq(1),
                unit.eq(self.unit.payload),
                issue.index.eq(0),
                issue.batch.eq(0),
                issue.column.eq(0),
                issue.left.eq(self.unit.payload.queries),
                issue.set_word.eq(Cat(Const(0, self.sizes.word_bits - 1), self.unit.payload.parity)),
            ]

    def _score(self, m: Module, query: int, key: int, column: Signal) -> Signal:
        """A key's score with its flag, two cycles behind the issue: read and chosen."""
        pipes = self.sizes.pipes
        columns = range(self.sizes.config.attention_lanes // pipes)
        score = Signal(self.scores[0][0].shape(), name=f"score_{query}_{key}", reset_less=True)
        m.d.sync += score.eq(Array(self.scores[s * pipes + query][key].as_value() for s in columns)[column])
        return score

    def _split(self, m: Module, name: str, score: Signal, maximum: Signal) -> tuple[Signal, Value]:
        """2**(T - maximum) as a right shift, four cycles behind the issue, and a mantissa of 1.23 bits, `_mantissa_delay`
        behind it."""
        difference = Signal(SCORE_BITS + 1, name=f"difference_{name}", reset_less=True)
        whole = Signal(SCORE_BITS + 2 - SCORE_FRAC, name=f"whole_{name}", reset_less=True)
        fraction = Signal(SCORE_FRAC, name=f"fraction_{name}", reset_less=True)
        m.d.sync += [
            difference.eq(maximum - score.score),
            whole.eq((difference + ((1 << SCORE_FRAC) - 1)) >> SCORE_FRAC),
            fraction.eq(-difference),
        ]
        m.submodules[f"exp2_{name}"] = exp2 = Exp2Mantissa()
        m.d.comb += exp2.f.eq(Cat(Const(0, 20 - SCORE_FRAC), fraction))
        return whole, exp2.o

    def _power(self, m: Module, name: str, score: Signal, whole: Signal, mantissa: Value) -> Signal:
        """P, 1.24 bits, `_power_delay` behind the issue; 0 for keys that are not attended to."""
        none = Signal(name=f"none_{name}")
        m.d.comb += none.eq((whole > 25) | ~delay_line(m, score.valid, 2, f"valid_{name}"))
        none_late = delay_line(m, none, Exp2Mantissa.delay, f"none_{name}")
        shift = delay_line(m, whole[:5], Exp2Mantissa.delay, f"shift_{name}")
        power = Signal(25, name=f"power_{name}", reset_less=True)
        m.d.sync += power.eq(Mux(none_late, 0, Cat(Const(0, 1), mantissa) >> shift))
        return power

    def _shift(
        self, m: Module, name: str, score: Signal, whole: Signal, exponent: Signal, value_exponent: Value
    ) -> Signal:
        """Places by which the product of mantissas is shifted to the right, six cycles behind the issue: 31, which leaves
        nothing, where they are more, the V scale is 0, or the key is not attended to."""
        biased = delay_line(m, value_exponent, 1, f"biased_{name}")
        some = score.valid & (value_exponent != 0)
        places = Signal(signed(EXPONENT_BITS + 1), name=f"places_{name}", reset_less=True)
        right = Signal(EXPONENT_BITS + 1, name=f"right_{name}", reset_less=True)
        shift = Signal(5, name=f"right_shift_{name}", reset_less=True)
        m.d.sync += [
            # less the biased exponent, less one: the least shift is by 25 places, of which the product's cut is 24.
            places.eq(exponent + ~Cat(biased, 0).as_signed()),
            right.eq(whole + places),
            shift.eq(Mux(delay_line(m, some, 3, f"some_{name}"), Mux(right > 31, 31, right), 31)),
        ]
        return shift

    def _weight(self, m: Module, name: str, mantissa: Value, fraction: Value, shift: Signal) -> Signal:
        """Pq: the product of P's and the V scale's mantissas, shifted and rounded, `delay` behind the issue. It needs no
        limit: e is such that none is above 16 bits."""
        value = Cat(delay_line(m, fraction, self._mantissa_delay - 2, f"value_{name}"), 1)
        product = Signal(24 + VALUE_FRAC + 1, name=f"product_{name}", reset_less=True)
        product_late = Signal.like(product, name=f"product_late_{name}", reset_less=True)
        shifted = Signal(17, name=f"shifted_{name}", reset_less=True)
        weight = Signal(16, name=f"weight_{name}", reset_less=True)
        m.d.sync += [
            product.eq(mantissa * value),
            product_late.eq(product),
            shifted.eq(product_late[23:] >> delay_line(m, shift, self._mantissa_delay - 4, f"places_{name}")),
            weight.eq((shifted + 1) >> 1),
        ]
        return weight

    def _total(self, m: Module, issue: _Issue, powers: list[list[Signal]], exponents: list[Signal]) -> None:
        """L, the sum of P, and what follows from it."""
        sizes, factors = self.sizes, self.factors
        m.submodules.factors = factors
        added = self._power_delay + 1  # the keys of a beat are
        begin = delay_line(m, issue.index == 0, added, "begin")
        counts = delay_line(m, issue.real, added, "counts", reset_less=False)
        for i in range(sizes.pipes):
            of_beat = Signal(25 + exact_log2(sizes.config.keys_per_beat), name=f"sum_{i}", reset_less=True)
            total = Signal(sizes.total_bits, name=f"total_{i}", reset_less=True)
            m.d.sync += of_beat.eq(sum(powers[i]))
            with m.If(counts):
                m.d.sync += total.eq(of_beat + Mux(begin, 0, total))
            exponent = delay_line(m, exponents[i], added + 1 - self._exponent_delay, f"exponent_{i}")
            m.d.comb += [factors.totals[i].eq(total), factors.exponents[i].eq(exponent)]
        first_query = Signal(sizes.query_bits + 1)
        place = Cat(first_query[: sizes.query_bits], issue.unit.parity)
        last = issue.active & issue.last_row
        settled = delay_line(m, last & issue.last_batch, self.settle, "settled", reset_less=False)
        m.d.comb += [
            first_query.eq(issue.batch * sizes.pipes),
            factors.start.eq(delay_line(m, last, added + 1, "start", reset_less=False)),
            factors.place.eq(delay_line(m, place, added + 1, "place")),
            self.ready_units.eq(settled),
        ]
        wiring.connect(m, wiring.flipped(self.factor), factors.factor)
