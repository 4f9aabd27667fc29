"""Scores of a screened head's rows, and the candidates that they make."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.layout import ROW_MULTIPLE
from tellme.golden.screen import MAX_PLANES, MAX_ROWS, SCALE_BITS
from tellme.hw.fp.dsp import multiply_add, positive
from tellme.hw.head.heap import (
    CANDIDATE_BITS,
    CHOSEN,
    INDEX_BITS,
    CandidateHeaps,
    entry_layout,
    key_bits,
    score_bits,
)
from tellme.hw.head.score import RowScorer, issue_layout
from tellme.hw.interfaces import count_bits
from tellme.hw.pipeline import delay_line
from tellme.hw.queues import Queue
from tellme.hw.tlmm.accumulate import row_layout

MATRIX_BITS = clog2(MAX_ROWS * MAX_PLANES + 1)
"""Of a number of rows of the ternary matrix."""
PENDING = 32
"""Candidates that wait to be sorted in; rows go on while fewer than this less what the pipeline holds do."""


def matrix_rows(m: Module, planes: Value, vocabulary: Value) -> Signal:
    """Rows of the ternary matrix, two cycles late. Golden: `golden.layout.screen_rows`."""
    rows, whole = Signal(MATRIX_BITS + 1, name="planed_rows"), Signal(MATRIX_BITS + 1, name="matrix_rows")
    low = exact_log2(ROW_MULTIPLE)
    m.d.sync += [
        rows.eq(vocabulary[:MATRIX_BITS] << (planes == MAX_PLANES)),
        whole[low:].eq((rows + (ROW_MULTIPLE - 1)) >> low),
    ]
    return whole


class _Issue:
    """A row for a lane: what is issued in a cycle."""

    def __init__(self, config: AcceleratorConfig) -> None:
        lane = clog2(config.lanes)
        self.go = Signal()
        self.lane, self.actual = Signal(lane), Signal(lane)
        """Ordinal among the head lanes, and the lane itself."""
        self.last = Signal()
        """It is the row's last lane."""
        self.matrix_row = Signal(MATRIX_BITS)
        self.row = Signal(INDEX_BITS + 1)
        """Of the head."""
        self.second = Signal()
        """The plane, and `whole`: the row's last."""
        self.whole = Signal()
        self.complete = Signal()
        """The last plane of a row of the head."""


class Selector(wiring.Component):
    """Scores rows of the ternary matrix and keeps the best of each head lane. Golden: `golden.screen.scores`, `select`.

    A row a cycle for one head lane, a cycle a lane for more. What is better than a lane's worst candidate so far waits in a
    queue until it is sorted in (`CandidateHeaps`).

    Parameters
    ----------
    config : lanes, block rows, accumulator width, entries.

    Interface attributes
    --------------------
    start : pulse; head_first, head_count (the head lanes), candidates (of each), planes, vocabulary and matrix_rows stay stable
        until the next.
    head_first, head_count, candidates, planes, vocabulary, matrix_rows : see there.
    busy : from the cycle after `start` until every row is in, and every candidate in its place.
    scale_write, scale_address, scales : scales of the next row block, a beat at a time; two blocks are held.
    block_done : pulse, the rows of a block have come: its scales are used.
    rows : accumulators of all lanes, in row order; the planes of a row are neighbours.
    give : pulse, once not busy: the candidates are wanted.
    chosen : their rows, lane by lane.
    root_lane, root_score : the smallest score of a candidate of a lane (its ordinal), while not busy; no latency.
    exact, chosen_score, issued, score, room : only with `ternary_head`. Of a head that is ternary: a row with scales of groups has its sum as score; scores
        of the rows chosen; rows as they are begun, and `score_delay` cycles later their scores; room : a row may be begun.
    """

    score_delay = RowScorer.score_delay
    """Cycles from the issue of a row's accumulator to its score: registers (two), product (three), sum of planes."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.heaps = CandidateHeaps(config)
        self.scale_words = 2 * (config.block_rows * SCALE_BITS // 8 // config.beat_bytes)
        lane = clog2(config.lanes)
        ternary = {
            "exact": In(1),
            "chosen_score": Out(signed(score_bits(config))),
            "issued": Out(issue_layout(config)),
            "score": Out(signed(score_bits(config))),
            "room": In(1),
        }
        super().__init__(
            (ternary if config.ternary_head else {})
            | {
                "start": In(1),
                "busy": Out(1),
                "head_first": In(lane),
                "head_count": In(count_bits(config)),
                "candidates": In(CANDIDATE_BITS),
                "planes": In(2),
                "vocabulary": In(32),
                "matrix_rows": In(MATRIX_BITS),
                "scale_write": In(1),
                "scale_address": In(range(self.scale_words)),
                "scales": In(8 * config.beat_bytes),
                "block_done": Out(1),
                "rows": In(stream.Signature(row_layout(config))),
                "give": In(1),
                "chosen": Out(stream.Signature(CHOSEN)),
                "root_lane": In(lane),
                "root_score": Out(signed(score_bits(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.heaps = heaps = self.heaps
        layout = entry_layout(self.config)
        m.submodules.pending = pending = Queue(width=layout.size, depth=PENDING)
        m.d.comb += [
            heaps.start.eq(self.start),
            heaps.head_count.eq(self.head_count),
            heaps.candidates.eq(self.candidates),
            heaps.give.eq(self.give),
            heaps.root_lane.eq(self.root_lane),
            self.root_score.eq(Cat(heaps.root_key[INDEX_BITS:-1], ~heaps.root_key[-1]).as_signed()),
            heaps.entries.payload.as_value().eq(pending.o.payload),
            heaps.entries.valid.eq(pending.o.valid),
            pending.o.ready.eq(heaps.entries.ready),
        ]
        connect(m, heaps.chosen, flipped(self.chosen))
        issue = _Issue(self.config)
        self._issue(m, issue, pending)
        score = self._score(m, platform, issue)
        self._compare(m, issue, score, pending)
        if self.config.ternary_head:
            m.d.comb += [
                self.chosen_score.eq(heaps.chosen_score),
                self.issued.valid.eq(issue.complete),
                self.issued.lane.eq(issue.actual),
                self.issued.row.eq(issue.row),
                self.score.eq(score),
            ]
        through = Signal()
        m.d.sync += through.eq(issue.matrix_row == self.matrix_rows)
        drained = delay_line(m, through, self.score_delay + 3, "drained", reset_less=False)
        with m.If(self.start):
            m.d.sync += self.busy.eq(1)
        with m.Elif(through & drained & ~pending.o.valid & heaps.idle):
            m.d.sync += self.busy.eq(0)
        return m

    def _issue(self, m: Module, issue: _Issue, pending: Queue) -> None:
        """A lane a cycle; with the last one the row is taken."""
        block_bits = exact_log2(self.config.block_rows)
        last_lane, two, calm, may = Signal.like(issue.lane), Signal(), Signal(), Signal()
        end_block = issue.matrix_row[:block_bits].all() | (issue.matrix_row + 1 == self.matrix_rows)
        m.d.sync += [
            last_lane.eq(self.head_count - 1),
            two.eq(self.planes == MAX_PLANES),
            calm.eq(pending.level < PENDING - self.score_delay - 6),
        ]
        room = self.room if self.config.ternary_head else 1
        m.d.comb += [
            may.eq(calm & self.heaps.ready & room),
            issue.go.eq(self.rows.valid & may),
            issue.whole.eq(~two | issue.second),
            # Whatever `valid` says, and of registers: behind it is the queue of rows of TLMM.
            self.rows.ready.eq(may & issue.last),
            self.block_done.eq(issue.go & issue.last & end_block),
        ]
        with m.If(~self.heaps.ready | (issue.go & issue.last)):
            m.d.sync += issue.last.eq(last_lane == 0)
        with m.Elif(issue.go):
            m.d.sync += issue.last.eq(issue.lane + 1 == last_lane)
        with m.If(issue.go):
            m.d.sync += [issue.lane.eq(issue.lane + 1), issue.actual.eq(issue.actual + 1)]
            with m.If(issue.last):
                m.d.sync += [
                    issue.lane.eq(0),
                    issue.actual.eq(self.head_first),
                    issue.matrix_row.eq(issue.matrix_row + 1),
                    issue.second.eq(~issue.whole),
                    issue.row.eq(issue.row + issue.whole),
                ]
        with m.If(self.start):
            m.d.sync += [
                issue.lane.eq(0),
                issue.actual.eq(self.head_first),
                issue.matrix_row.eq(0),
                issue.second.eq(0),
                issue.row.eq(0),
            ]

    def _score(self, m: Module, platform: object, issue: _Issue) -> Signal:
        """The product of accumulator and scale, with that of the plane before: the row's score."""
        config = self.config
        width, lanes = 8 * config.beat_bytes, config.lanes
        column_bits = exact_log2(width // SCALE_BITS)
        m.submodules.scales = memory = Memory(shape=width, depth=self.scale_words, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        accumulator = Signal(signed(config.screen_width), reset_less=True)
        late = Signal(signed(config.screen_width), reset_less=True)
        word, column = Signal(width, reset_less=True), Signal(column_bits, reset_less=True)
        scale = Signal(SCALE_BITS, reset_less=True)
        m.d.comb += [
            write.en.eq(self.scale_write),
            write.addr.eq(self.scale_address),
            write.data.eq(self.scales),
            read.addr.eq(issue.matrix_row[column_bits : exact_log2(config.block_rows) + 1]),
        ]
        m.d.sync += [
            accumulator.eq(self._sum(issue)),
            late.eq(accumulator),
            word.eq(read.data),
            column.eq(issue.matrix_row[:column_bits]),
            scale.eq(word.word_select(column, SCALE_BITS)),
        ]
        product, _ = multiply_add(m, platform, "product", late, positive(scale), width=config.screen_width + SCALE_BITS)
        m.submodules.partial = partial = Memory(shape=signed(len(product)), depth=max(2, lanes), init=[])
        put, get = partial.write_port(), partial.read_port(domain="comb")
        lane = delay_line(m, issue.lane, self.score_delay - 1, "product_lane")
        second = delay_line(m, issue.second, self.score_delay - 1, "product_second")
        score = Signal(signed(score_bits(config)), reset_less=True)
        m.d.comb += [put.addr.eq(lane), put.data.eq(product), put.en.eq(~second), get.addr.eq(lane)]
        m.d.sync += score.eq(product + Mux(second, get.data, self._wide(m, issue, scale)))
        return score

    def _wide(self, m: Module, issue: _Issue, scale: Signal) -> Value:
        """What is added to the product: of a ternary head with scales of groups the sum itself, of more bits than a factor has."""
        config = self.config
        if not (config.ternary_head and config.packing.group):
            return Const(0)
        first = Signal(signed(config.row_width - config.packing.activation_bits), name="wide", reset_less=True)
        assert len(first) <= score_bits(config)
        last = Signal.like(first, name="wide_exact")
        late = delay_line(m, first, self.score_delay - 3, "wide")
        m.d.sync += [first.eq(self._sum(issue)), last.eq(Mux(self.exact, late, 0))]
        with m.If(self.exact):
            m.d.sync += scale.eq(0)
        return last

    def _sum(self, issue: _Issue) -> Value:
        """The accumulator of the row that is issued. Exponents of groups are 0 here: below the sum are zeros."""
        bits = self.config.packing.activation_bits
        return Array(self.rows.payload[i][bits:].as_signed() for i in range(self.config.lanes))[issue.actual]

    def _compare(self, m: Module, issue: _Issue, score: Signal, pending: Queue) -> None:
        """To the queue, if it is better than the lane's worst so far, which only gets better."""
        heaps = self.heaps
        entry = Signal(entry_layout(self.config), reset_less=True)
        key = Signal(key_bits(self.config))
        better = Signal()
        m.d.comb += issue.complete.eq(issue.go & issue.whole & (issue.row < self.vocabulary[: len(issue.row)]))
        row = delay_line(m, issue.row, self.score_delay, "score_row")
        valid = delay_line(m, issue.complete, self.score_delay, "score_valid", reset_less=False)
        m.d.comb += [
            heaps.worst_lane.eq(delay_line(m, issue.lane, self.score_delay, "score_lane")),
            key.eq(Cat(~row[:INDEX_BITS], score[:-1], ~score[-1])),
            pending.i.payload.eq(entry),
            pending.i.valid.eq(better),
        ]
        m.d.sync += [entry.key.eq(key), entry.lane.eq(heaps.worst_lane), better.eq(valid & (key > heaps.worst_key))]
