"""Exact logits of the candidates of a screened head."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect
from amaranth.utils import exact_log2

from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.screen import BOUND_SHIFT
from tellme.hw.fp import IntToFloat, Multiplier
from tellme.hw.fp.dsp import multiply_add
from tellme.hw.head.heap import CANDIDATE_BITS, INDEX_BITS, score_bits
from tellme.hw.interfaces import Int8ReadPort, QueryScalePort, count_bits
from tellme.hw.pipeline import delay_line
from tellme.hw.queues import Queue, RegisterSlice

WAITS = 3
"""Cycles before a candidate of a ternary head, in which its lane's scale comes."""
WORDS = 4
"""Words of the int8 buffer in a beat of int8."""
RESULTS = 16
"""Logits that wait to be written; a row begins while fewer than half of them do."""
GATHERED = 4
"""Neighbouring logits of a lane that are written together, of every logit of a ternary head."""
GATHERED_RESULTS = 32
"""As RESULTS, of those; rows go on while fewer than a quarter of them wait: the pipeline holds up to 20 cycles' more."""

CANDIDATE = data.StructLayout({"logit": 32, "row": 32})
"""What is written of a candidate: binary32, and its row."""


def given_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A candidate whose score is its logit."""
    return data.StructLayout({"row": INDEX_BITS, "score": signed(score_bits(config))})


def issue_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A row for a lane, as its score is begun."""
    return data.StructLayout({"valid": 1, "lane": clog2(config.lanes), "row": INDEX_BITS})


def candidate_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A candidate to write: lane, number within the lane, and what is written, eight bytes.

    With `ternary_head` also `GATHERED` logits, `both`: the `second` eight bytes behind the first; else those are the same, and one of the two is
    written.
    """
    lane = clog2(config.lanes)
    if not config.ternary_head:
        return data.StructLayout({"lane": lane, "number": CANDIDATE_BITS, "candidate": CANDIDATE})
    return data.StructLayout(
        {"lane": lane, "number": INDEX_BITS - 1, "candidate": CANDIDATE, "second": CANDIDATE, "both": 1}
    )


class _Place:
    """Where the scorer is, and what it takes in a cycle."""

    def __init__(self, config: AcceleratorConfig) -> None:
        lane = clog2(config.lanes)
        self.lane, self.actual = Signal(lane), Signal(lane)
        """Ordinal among the head lanes, and the lane itself."""
        self.number = Signal(CANDIDATE_BITS)
        self.beat, self.part = Signal(16), Signal(exact_log2(WORDS))
        """Of the row; word of the beat."""
        self.word, self.tail, self.bound = Signal(), Signal(), Signal()
        """A word of int8, a row's last beat, or the lane's bound."""
        self.given = Signal()
        """A candidate of a ternary head."""
        self.idle = Signal()


class RowScorer(wiring.Component):
    """Dot products of rows of the head with a lane's activations, as logits; their largest. Golden: `golden.screen.screened`.

    A row comes as int8 in whole beats, then a beat with its scale and number (`golden.layout.pack_rows`): four cycles a beat
    of int8, one for the last. Lane by lane, `candidates` rows each; behind them the lane's bound.

    Of a ternary head (`exact`) no rows come: scores of candidates are their logits, and where every logit is to be written, so is the score of each
    row as it is made; `GATHERED` neighbours of a lane are written together. Golden: `golden.screen.exact`.

    Interface attributes
    --------------------
    start : pulse; what follows stays stable until not busy.
    head_first, head_count, candidates, inputs, bound_unit, write : the head lanes, candidates of each, features, what a bound is a
        multiple of; whether candidates are to be written.
    busy : from the cycle after `start` on.
    beats : rows.
    int8, query_scales : read ports of the activations and their scale.
    root_lane, root_score : of the selector.
    best : pulse for each lane.
    best_lane, best_row, best_value : then; the row of the largest logit, and that.
    bound : binary32 by lane, kept until the next job.
    written : candidates to write, if `write`.
    exact, vocabulary, every, given, issued, score, room : only with `ternary_head`. The head is ternary, and its rows; `every` logit is written,
        not those of candidates. given : candidates, lane by lane, the smallest score first. issued : a row for a lane whose `score` comes
        `score_delay` cycles later; room : such may come.
    """

    score_delay = 6
    """Cycles from the issue of a row's accumulator to its score, of a ternary head (`Selector`)."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        lane = clog2(config.lanes)
        self.dot_bits = (config.max_hidden << 14).bit_length() + 1
        levels = exact_log2(config.word)
        self.dot_delay = 1 + 3 + levels + 1
        """From the issue of a row's last word to its dot product: operands, products (three), sums, accumulator."""
        self.to_float = IntToFloat(max(self.dot_bits, score_bits(config)) if config.ternary_head else self.dot_bits)
        self.delay = self.dot_delay + self.to_float.delay + Multiplier.delay
        """From a row's last beat to its logit."""
        ternary = {
            "exact": In(1),
            "vocabulary": In(32),
            "every": In(1),
            "given": In(stream.Signature(given_layout(config))),
            "issued": In(issue_layout(config)),
            "score": In(signed(score_bits(config))),
            "room": Out(1),
        }
        super().__init__(
            (ternary if config.ternary_head else {})
            | {
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

    @staticmethod
    def exact_cycles(config: AcceleratorConfig, *, rows: int, lanes: int) -> int:
        """Cycles of `busy` for so many candidates of a ternary head, of so many lanes."""
        return rows * (2 + WAITS) + lanes * (RowScorer(config).delay + 4)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        place = _Place(self.config)
        settled, written = Signal(), Signal()
        depth = GATHERED_RESULTS if self.config.ternary_head else RESULTS
        m.submodules.results = results = Queue(width=candidate_layout(self.config).size, depth=depth)
        # Whether one comes is a register: what is busy and what is written depend on it.
        m.submodules.offered = offered = RegisterSlice(width=candidate_layout(self.config).size)
        connect(m, results.o, offered.i)
        m.d.comb += [
            self.written.payload.as_value().eq(offered.o.payload),
            self.written.valid.eq(offered.o.valid),
            offered.o.ready.eq(self.written.ready),
            written.eq(~results.o.valid & ~offered.o.valid),
        ]
        self._walk(m, place, results, settled, written)
        dot = self._dot(m, platform, place)
        self._logits(m, place, dot, results, settled)
        return m

    def _walk(self, m: Module, place: _Place, results: Queue, settled: Signal, written: Signal) -> None:
        """Beat by beat, row by row, lane by lane."""
        config = self.config
        last_lane, last_number = Signal.like(place.lane), Signal(CANDIDATE_BITS)
        last_beat, accept, waits = Signal(16), Signal(), Signal(range(WAITS))
        m.d.sync += [
            last_lane.eq(self.head_count - 1),
            last_number.eq(self.candidates - 1),
            last_beat.eq((self.inputs - 1) >> exact_log2(config.beat_bytes)),
        ]
        m.d.comb += [
            self.root_lane.eq(place.lane),
            self.query_scales.lane.eq(place.actual),
            self.query_scales.head.eq(0),
            place.idle.eq(~self.busy),
            self.int8.lane.eq(place.actual),
            self.int8.word.eq(Cat(place.part, place.beat)),
            self.int8.en.eq(place.word),
            self.beats.ready.eq(accept),
        ]
        with m.FSM() as fsm:
            with m.State("Idle"):
                m.d.sync += [
                    place.lane.eq(0),
                    place.actual.eq(self.head_first),
                    place.number.eq(0),
                    place.beat.eq(0),
                    place.part.eq(0),
                ]
                with m.If(self.start):
                    m.next = "Row"
            # `accept` is the ready of the beats, of a register: the whole stream waits for it.
            with m.State("Row"):
                with m.If(~results.level[exact_log2(RESULTS) - 1 :].any()):
                    m.next = "Beats"
                    if config.ternary_head:
                        m.d.sync += waits.eq(0)
                        with m.If(self.exact):
                            m.next = "Wait"
            if config.ternary_head:
                # The lane's scale has been asked for since its first candidate's turn.
                with m.State("Wait"):
                    m.d.sync += waits.eq(waits + 1)
                    with m.If(waits == WAITS - 1):
                        m.next = "Given"
                with m.State("Given"):
                    m.d.comb += [self.given.ready.eq(1), place.given.eq(self.given.valid)]
                    with m.If(place.given):
                        m.d.sync += place.number.eq(place.number + 1)
                        m.next = "Row"
                        with m.If(place.number == last_number):
                            m.next = "Bound"
            with m.State("Beats"):
                m.d.comb += place.word.eq(self.beats.valid)
                with m.If(self.beats.valid):
                    m.d.sync += [place.part.eq(place.part + 1), accept.eq(place.part == WORDS - 2)]
                    with m.If(accept):
                        m.d.sync += place.beat.eq(place.beat + 1)
                        with m.If(place.beat == last_beat):
                            m.d.sync += accept.eq(1)
                            m.next = "Tail"
            with m.State("Tail"):
                m.d.comb += place.tail.eq(self.beats.valid)
                m.d.sync += place.beat.eq(0)
                with m.If(place.tail):
                    m.d.sync += [accept.eq(0), place.number.eq(place.number + 1)]
                    m.next = "Row"
                    with m.If(place.number == last_number):
                        m.next = "Bound"
            with m.State("Bound"):
                m.d.comb += place.bound.eq(1)
                m.d.sync += place.number.eq(0)
                m.next = "Settle"
            # The lane stays until its last logit is out: what is asked by lane is not carried along.
            with m.State("Settle"):
                with m.If(settled):
                    m.d.sync += [place.lane.eq(place.lane + 1), place.actual.eq(place.actual + 1)]
                    m.next = "Row"
                    with m.If(place.lane == last_lane):
                        m.next = "Empty"
            with m.State("Empty"):
                with m.If(written):
                    m.next = "Idle"
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))

    def _dot(self, m: Module, platform: object, place: _Place) -> Signal:
        """Operands, products, their sum, accumulated over the row; `dot_delay` cycles behind its last word."""
        elements = self.config.word
        word = Signal(8 * elements, reset_less=True)
        m.d.sync += word.eq(self.beats.payload.word_select(place.part, 8 * elements))
        terms: list[Value] = []
        for i in range(elements):
            own = slice(8 * i, 8 * i + 8)
            a, b = word[own].as_signed(), self.int8.data[own].as_signed()
            terms.append(multiply_add(m, platform, f"product_{i}", a, b, width=16)[0])
        level = 0
        while len(terms) > 1:
            following: list[Value] = []
            for a, b in zip(terms[::2], terms[1::2], strict=True):
                total = Signal(signed(len(a) + 1), name=f"sum_{level}_{len(following)}", reset_less=True)
                m.d.sync += total.eq(a + b)
                following.append(total)
            terms, level = following, level + 1
        dot = Signal(signed(self.dot_bits), reset_less=True)
        adding = delay_line(m, place.word, self.dot_delay - 1, "adding", reset_less=False)
        fresh = delay_line(m, (place.beat == 0) & (place.part == 0), self.dot_delay - 1, "fresh")
        with m.If(adding):
            m.d.sync += dot.eq(terms[0] + Mux(fresh, 0, dot))
        return dot

    def _logits(self, m: Module, place: _Place, dot: Signal, results: Queue, settled: Signal) -> None:
        """dot * (activations' scale * row's scale). A bound goes the same way, with its own unit; so do scores of a ternary head."""
        m.submodules.to_float = to_float = self.to_float
        m.submodules.scale = factor = Multiplier()
        m.submodules.multiply = multiply = Multiplier()
        # The factor begins as much earlier as it takes longer.
        early = self.dot_delay + to_float.delay - Multiplier.delay
        assert early >= 0
        last = self.beats.payload
        scale = delay_line(m, Mux(place.bound, self.bound_unit, last[:32]), early, "scale")
        bound_next = delay_line(m, place.bound, self.dot_delay, "bound_next", reset_less=False)
        act_scale = Signal(32, reset_less=True)
        integer = Mux(bound_next, self.root_score >> BOUND_SHIFT, dot)
        if self.config.ternary_head:
            integer = Mux(self.exact, Mux(place.idle, self.score, self.given.payload.score), integer)
            scale = Mux(self.exact, self.bound_unit, scale)
        m.d.sync += act_scale.eq(self.query_scales.data)
        m.d.comb += [
            to_float.i.eq(integer),
            factor.a.eq(act_scale),
            factor.b.eq(scale),
            multiply.a.eq(to_float.o),
            multiply.b.eq(factor.o),
        ]
        value = multiply.o
        bound = delay_line(m, place.bound, self.delay, "bound_valid", reset_less=False)
        scored = self.dot_delay if self.config.ternary_head else self.delay
        valid = delay_line(m, place.tail, scored, "valid", reset_less=False)
        row = delay_line(m, last[32 : 32 + INDEX_BITS], scored, "row")
        number = delay_line(m, place.number, scored, "number")
        bounding = bound
        if self.config.ternary_head:
            left = self.delay - self.dot_delay
            valid = delay_line(m, valid | place.given, left, "logit_valid", reset_less=False)
            row = delay_line(m, Mux(self.exact, self.given.payload.row, row), left, "logit_row")
            number = delay_line(m, Mux(self.exact, place.number, number), left, "logit_number")
            bounding = Mux(self.exact, valid & (number == 0), bound)
        for i in range(self.config.lanes):
            with m.If(bounding & (place.actual == i)):
                m.d.sync += self.bound[i].eq(value)
        self._largest(m, valid, value, row, number == 0)
        entry = Signal(candidate_layout(self.config))
        m.d.comb += [
            settled.eq(delay_line(m, bound, 2, "settled", reset_less=False)),
            self.best.eq(settled),
            self.best_lane.eq(place.actual),
            entry.lane.eq(place.actual),
            entry.number.eq(number),
            entry.candidate.logit.eq(value),
            entry.candidate.row.eq(row),
            results.i.payload.eq(entry),
            results.i.valid.eq(valid & self.write),
        ]
        if self.config.ternary_head:
            m.d.comb += [entry.second.eq(entry.candidate), results.i.valid.eq(valid & self.write & ~self.every)]
            self._every(m, place, value, results)

    def _every(self, m: Module, place: _Place, value: Value, results: Queue) -> None:
        """Every logit of a ternary head: scores go through the pipeline as they are made, before the candidates."""
        config, issued = self.config, self.issued
        to_logit = self.delay - self.dot_delay
        # What multiplies a score is there before its float; it is asked for two cycles before.
        asked = self.score_delay + self.to_float.delay - Multiplier.delay - 2
        assert asked >= 0
        last_row, row_bits = Signal(INDEX_BITS), exact_log2(GATHERED)
        m.d.sync += [
            last_row.eq(self.vocabulary - 1),
            self.room.eq(~results.level[exact_log2(GATHERED_RESULTS) - 2 :].any()),
        ]
        lane = delay_line(m, issued.lane, asked, "asked_lane")
        with m.If(self.every & place.idle):
            m.d.comb += self.query_scales.lane.eq(lane)
        rest = self.score_delay + to_logit
        lane = delay_line(m, lane, rest - asked, "every_lane")
        row = delay_line(m, issued.row, rest, "every_row")
        last = delay_line(m, issued.row == last_row, rest, "every_last")
        valid = delay_line(m, issued.valid & self.every, rest, "every_valid", reset_less=False)
        place_in = row[:row_bits]
        logits: list[Value] = []
        for j in range(GATHERED - 1):
            memory = Memory(shape=32, depth=max(2, config.lanes), init=[])
            m.submodules[f"gathered_{j}"] = memory
            write, read = memory.write_port(), memory.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(lane),
                write.data.eq(value),
                write.en.eq(valid & (place_in == j)),
                read.addr.eq(lane),
            ]
            logits.append(Mux(place_in > j, read.data, value))
        entry = Signal(candidate_layout(config), name="gathered")
        m.d.comb += [
            entry.lane.eq(lane),
            entry.number.eq(row[row_bits:] << 1),
            Cat(entry.candidate.as_value(), entry.second.as_value()).eq(Cat(*logits, value)),
            entry.both.eq(1),
        ]
        with m.If(valid):
            m.d.comb += [
                results.i.payload.eq(entry),
                results.i.valid.eq(last | place_in.all()),
            ]

    def _largest(self, m: Module, valid: Value, value: Value, row: Value, first: Value) -> None:
        """The lane's best so far, of equal ones the lowest row."""
        # Unsigned integers in the order of the values; both zeros are one.
        order, best_order = Signal(32, reset_less=True), Signal(32, reset_less=True)
        new_value, new_row = Signal(32, reset_less=True), Signal(INDEX_BITS, reset_less=True)
        new, new_first = Signal(), Signal()
        m.d.sync += [
            order.eq(Mux(value[:31] == 0, 1 << 31, Mux(value[31], ~value, value | (1 << 31)))[:32]),
            new_value.eq(value),
            new_row.eq(row),
            new_first.eq(first),
            new.eq(valid),
        ]
        larger = (order > best_order) | ((order == best_order) & (new_row < self.best_row))
        with m.If(new & (new_first | larger)):
            m.d.sync += [best_order.eq(order), self.best_value.eq(new_value), self.best_row.eq(new_row)]
