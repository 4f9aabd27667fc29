"""Exact logits of the candidates of a screened head."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.screen import BOUND_SHIFT
from tellme.hw.fp import IntToFloat, Multiplier
from tellme.hw.fp.dsp import multiply_add
from tellme.hw.head.select import CANDIDATE_BITS, INDEX_BITS, score_bits
from tellme.hw.interfaces import Int8ReadPort, QueryScalePort, count_bits
from tellme.hw.pipeline import delay_line
from tellme.hw.queues import Queue

WORDS = 4
"""Words of the int8 buffer in a beat of int8."""
RESULTS = 16
"""Logits that wait to be written; a row begins while fewer than half of them do."""

CANDIDATE = data.StructLayout({"logit": 32, "row": 32})
"""What is written of a candidate: binary32, and its row."""


def candidate_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A candidate to write: lane, number within the lane, and what is written."""
    return data.StructLayout({"lane": clog2(config.lanes), "number": CANDIDATE_BITS, "candidate": CANDIDATE})


class RowScorer(wiring.Component):
    """Dot products of rows of the head with a lane's activations, as logits; their largest. Golden: `golden.screen.screened`.

    A row comes as int8 in whole beats, then a beat with its scale and number (`golden.layout.pack_rows`): four cycles a beat
    of int8, one for the last. Lane by lane, `candidates` rows each; behind them the lane's bound.

    Interface attributes
    --------------------
    start : pulse; head_first, head_count, candidates, inputs, bound_unit, write stay stable until not busy.
    busy : from the cycle after `start` on.
    beats : rows.
    int8, query_scales : read ports of the activations and their scale.
    root_lane, root_score : of the selector.
    best : pulse for each lane: best_lane, best_row, best_value.
    bound : binary32 by lane, kept until the next job.
    written : candidates to write, if `write`.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        lane = clog2(config.lanes)
        self.dot_bits = (config.max_hidden << 14).bit_length() + 1
        levels = exact_log2(config.word)
        self.dot_delay = 1 + 3 + levels + 1
        """From the issue of a row's last word to its dot product: operands, products (three), sums, accumulator."""
        self.to_float = IntToFloat(self.dot_bits)
        self.delay = self.dot_delay + self.to_float.delay + Multiplier.delay
        """From a row's last beat to its logit."""
        super().__init__(
            {
                "start": In(1),
                "busy": Out(1),
                "head_first": In(lane),
                "head_count": In(count_bits(config)),
                "candidates": In(CANDIDATE_BITS),
                "inputs": In(16),
                "bound_unit": In(32),
                "write": In(1),
                "beats": In(stream.Signature(8 * config.beat_bytes)),
                "int8": Out(Int8ReadPort(config)),
                "query_scales": Out(QueryScalePort(config)),
                "root_lane": Out(lane),
                "root_score": In(signed(score_bits(config))),
                "best": Out(1),
                "best_lane": Out(lane),
                "best_row": Out(INDEX_BITS),
                "best_value": Out(32),
                "bound": Out(data.ArrayLayout(32, config.lanes)),
                "written": Out(stream.Signature(candidate_layout(config))),
            }
        )

    @staticmethod
    def expected_cycles(config: AcceleratorConfig, *, inputs: int, rows: int, lanes: int) -> int:
        """Cycles of `busy` for so many rows of so many lanes, if beats are always there."""
        scorer = RowScorer(config)
        return rows * (WORDS * ceil_div(inputs, config.beat_bytes) + 2) + lanes * (scorer.delay + 4)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        layout = candidate_layout(config)
        m.submodules.results = results = Queue(width=layout.size, depth=RESULTS)
        m.d.comb += [
            self.written.payload.as_value().eq(results.o.payload),
            self.written.valid.eq(results.o.valid),
            results.o.ready.eq(self.written.ready),
        ]

        lane, actual = Signal(clog2(config.lanes)), Signal(clog2(config.lanes))
        last_lane = Signal(clog2(config.lanes))
        number, last_number = Signal(CANDIDATE_BITS), Signal(CANDIDATE_BITS)
        beat, row_beats = Signal(16), Signal(16)
        part = Signal(exact_log2(WORDS))
        words, tail, bounding = Signal(), Signal(), Signal()
        word_bits = exact_log2(config.beat_bytes)
        m.d.sync += [
            last_lane.eq(self.head_count - 1),
            last_number.eq(self.candidates - 1),
            row_beats.eq((self.inputs + (config.beat_bytes - 1)) >> word_bits),
        ]
        m.d.comb += [
            self.root_lane.eq(lane),
            self.query_scales.lane.eq(actual),
            self.query_scales.head.eq(0),
            self.int8.lane.eq(actual),
            self.int8.word.eq(Cat(part, beat)),
            self.int8.en.eq(words),
        ]
        with m.FSM() as fsm:
            with m.State("Idle"):
                m.d.sync += [lane.eq(0), actual.eq(self.head_first), number.eq(0), beat.eq(0), part.eq(0)]
                with m.If(self.start):
                    m.next = "Row"
            with m.State("Row"):
                with m.If(~results.level[exact_log2(RESULTS) - 1 :].any()):
                    m.next = "Beats"
            with m.State("Beats"):
                m.d.comb += words.eq(self.beats.valid)
                with m.If(self.beats.valid):
                    m.d.sync += part.eq(part + 1)
                with m.If(part == WORDS - 1):
                    m.d.comb += self.beats.ready.eq(1)
                    with m.If(self.beats.valid):
                        m.d.sync += beat.eq(beat + 1)
                        with m.If(beat + 1 == row_beats):
                            m.next = "Tail"
            with m.State("Tail"):
                m.d.comb += [self.beats.ready.eq(1), tail.eq(self.beats.valid)]
                m.d.sync += beat.eq(0)
                with m.If(tail):
                    m.d.sync += number.eq(number + 1)
                    m.next = "Row"
                    with m.If(number == last_number):
                        m.next = "Bound"
            with m.State("Bound"):
                m.d.comb += bounding.eq(1)
                m.d.sync += number.eq(0)
                m.next = "Settle"
            # The lane stays until its last logit is out: what is asked by lane is not carried along.
            settled = Signal()
            with m.State("Settle"):
                with m.If(settled):
                    m.d.sync += [lane.eq(lane + 1), actual.eq(actual + 1)]
                    m.next = "Row"
                    with m.If(lane == last_lane):
                        m.next = "Empty"
            with m.State("Empty"):
                with m.If(~results.o.valid):
                    m.next = "Idle"
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))

        # Operands, products, their sum, accumulated over the row.
        word = Signal(8 * config.word, reset_less=True)
        m.d.sync += word.eq(self.beats.payload.word_select(part, 8 * config.word))
        terms = []
        for i in range(config.word):
            product, _ = multiply_add(
                m,
                platform,
                f"product_{i}",
                word[8 * i : 8 * i + 8].as_signed(),
                self.int8.data[8 * i : 8 * i + 8].as_signed(),
                width=16,
            )
            terms.append(product)
        level = 0
        while len(terms) > 1:
            following = []
            for a, b in zip(terms[::2], terms[1::2], strict=True):
                total = Signal(signed(len(a) + 1), name=f"sum_{level}_{len(following)}", reset_less=True)
                m.d.sync += total.eq(a + b)
                following.append(total)
            terms, level = following, level + 1
        dot = Signal(signed(self.dot_bits), reset_less=True)
        adding = delay_line(m, words, self.dot_delay - 1, "adding", reset_less=False)
        fresh = delay_line(m, (beat == 0) & (part == 0), self.dot_delay - 1, "fresh")
        with m.If(adding):
            m.d.sync += dot.eq(terms[0] + Mux(fresh, 0, dot))

        # Logits: dot * (activations' scale * row's scale). A bound goes the same way.
        last = self.beats.payload
        done = delay_line(m, tail, self.dot_delay, "done", reset_less=False)
        bound_done = delay_line(m, bounding, self.dot_delay, "bound_done", reset_less=False)
        row = delay_line(m, last[32 : 32 + INDEX_BITS], self.dot_delay, "row")
        which = delay_line(m, number, self.dot_delay, "which")
        m.submodules.to_float = to_float = self.to_float
        m.submodules.scale = factor = Multiplier()
        m.submodules.multiply = multiply = Multiplier()
        act = Signal(32, reset_less=True)
        m.d.sync += act.eq(self.query_scales.data)
        # The factor begins as much earlier as it takes longer.
        early = self.dot_delay + to_float.delay - Multiplier.delay
        assert 0 <= early <= self.dot_delay
        m.d.comb += [
            to_float.i.eq(Mux(bound_done, self.root_score >> BOUND_SHIFT, dot)),
            factor.a.eq(act),
            factor.b.eq(delay_line(m, Mux(bounding, self.bound_unit, last[:32]), early, "early_scale")),
            multiply.a.eq(to_float.o),
            multiply.b.eq(factor.o),
        ]
        after = to_float.delay + Multiplier.delay
        valid = delay_line(m, done, after, "valid", reset_less=False)
        bound_valid = delay_line(m, bound_done, after, "bound_valid", reset_less=False)
        row = delay_line(m, row, after, "row_late")
        which = delay_line(m, which, after, "which_late")
        value = multiply.o
        m.d.comb += settled.eq(delay_line(m, bound_valid, 2, "settled", reset_less=False))
        for i in range(config.lanes):
            with m.If(bound_valid & (actual == i)):
                m.d.sync += self.bound[i].eq(value)

        # Unsigned integers in the order of the values; both zeros are one.
        order = Signal(32)
        best_order = Signal(32, reset_less=True)
        m.d.comb += order.eq(Mux(value[:31] == 0, 1 << 31, Mux(value[31], ~value, value | (1 << 31)))[:32])
        new = Signal(32, reset_less=True)
        new_value, new_row, new_first = Signal(32, reset_less=True), Signal(INDEX_BITS, reset_less=True), Signal()
        new_valid = Signal()
        m.d.sync += [
            new.eq(order),
            new_value.eq(value),
            new_row.eq(row),
            new_first.eq(which == 0),
            new_valid.eq(valid),
        ]
        with m.If(new_valid & (new_first | (new > best_order) | ((new == best_order) & (new_row < self.best_row)))):
            m.d.sync += [best_order.eq(new), self.best_value.eq(new_value), self.best_row.eq(new_row)]
        m.d.comb += [self.best.eq(settled), self.best_lane.eq(actual)]

        entry = Signal(layout)
        m.d.comb += [
            entry.lane.eq(actual),
            entry.number.eq(which),
            entry.candidate.logit.eq(value),
            entry.candidate.row.eq(row),
            results.i.payload.eq(entry),
            results.i.valid.eq(valid & self.write),
        ]
        return m
