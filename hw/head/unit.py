"""The screened output head: its part of the stream, the choice of candidates, and their logits."""

from __future__ import annotations

from collections import deque
from functools import cache

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.layout import screen_scale_beats
from tellme.golden.screen import MULTIPLE
from tellme.hw.head.heap import CANDIDATE_BITS, CHOSEN, CandidateHeaps
from tellme.hw.head.score import GATHERED, RowScorer, candidate_layout
from tellme.hw.head.select import MATRIX_BITS, PENDING, Selector, matrix_rows
from tellme.hw.interfaces import Int8ReadPort, QueryScalePort, count_bits
from tellme.hw.pipeline import delay_line
from tellme.hw.tlmm.accumulate import row_layout

WRITE_CYCLES = 5
"""In which the `LogitWriter` takes logits that do not follow the ones before."""


class ScreenedHead(wiring.Component):
    """A SCREEN descriptor: ternary rows through TLMM choose the candidates, whose int8 rows are scored. Golden: `golden.screen`.

    For each row block the stream has its scales, then the beats that TLMM takes (`weights`); behind them the rows of the
    candidates, in the order in which `chosen` gives them.

    Interface attributes
    --------------------
    start : pulse; what follows stays stable until not busy.
    head_first, head_count, candidates : the head lanes, and candidates of each.
    planes, vocabulary, tiles, inputs, bound_unit, exact : fields of the descriptor; exact only with `ternary_head`.
    write : candidates are written to memory; of a ternary head every logit, if no candidates are wanted.
    matrix_rows : rows of the ternary matrix, two cycles after planes and vocabulary.
    busy : from the cycle after `start` until the best of every lane has been given.
    weights : the next beat is TLMM's.
    taken : a beat of the stream is taken.
    beats : the others.
    rows : of TLMM.
    chosen : rows that are to be read, and whether it is the last.
    int8, query_scales : see RowScorer.
    scoring : its addresses count.
    best, best_lane, best_row, best_value, bound, written : see RowScorer.
    """

    SETTLE = 16
    """Cycles from the last best to not busy: who takes it may need some."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        lane = clog2(config.lanes)
        super().__init__(
            ({"exact": In(1)} if config.ternary_head else {})
            | {
                "start": In(1),
                "busy": Out(1),
                "head_first": In(lane),
                "head_count": In(count_bits(config)),
                "candidates": In(CANDIDATE_BITS),
                "planes": In(2),
                "vocabulary": In(32),
                "tiles": In(16),
                "inputs": In(16),
                "bound_unit": In(32),
                "write": In(1),
                "matrix_rows": Out(MATRIX_BITS),
                "weights": Out(1),
                "taken": In(1),
                "beats": In(stream.Signature(8 * config.beat_bytes)),
                "rows": In(stream.Signature(row_layout(config))),
                "chosen": Out(stream.Signature(CHOSEN)),
                "scoring": Out(1),
                "int8": Out(Int8ReadPort(config)),
                "query_scales": Out(QueryScalePort(config)),
                "best": Out(1),
                "best_lane": Out(lane),
                "best_row": Out(32),
                "best_value": Out(32),
                "bound": Out(data.ArrayLayout(32, config.lanes)),
                "written": Out(stream.Signature(candidate_layout(config))),
            }
        )

    @staticmethod
    @cache
    def expected_cycles(
        config: AcceleratorConfig,
        *,
        tiles: int,
        rows: int,
        planes: int,
        candidates: int,
        lanes: int,
        every: bool = False,
    ) -> int:
        """Cycles from the first beat until the candidates of `lanes` head lanes are known, if beats are always there and the scores
        of the `rows` rows come in random order.

        Row by row: a block's last tile gives a row a cycle while the row FIFO has room; the selector takes a cycle a lane, and waits
        while the heaps have as much to do as the queue holds. `every`: each logit is written, `GATHERED` neighbours of a lane at a time.
        """
        row_cycles = max(lanes, lanes * WRITE_CYCLES / GATHERED) if every else lanes
        cost = CandidateHeaps.sort_cycles(candidates) * lanes
        waiting = (PENDING - Selector.score_delay - 6) * CandidateHeaps.sort_cycles(candidates)
        depth, left = config.block_rows, rows * planes
        taken: deque[float] = deque([0.0] * depth, depth)  # when the latest rows left the FIFO
        beat, selected, sorted_in = 0.0, candidates / 2 * lanes, 0.0
        for first in range(0, left, config.block_rows):
            size = min(config.block_rows, left - first)
            beat += screen_scale_beats(config) + (tiles - 1) * size
            for row in range(first, first + size):
                beat = max(beat, taken[0]) + 1
                selected = max(selected, beat) + row_cycles
                if row % planes == planes - 1:
                    sorted_in = max(sorted_in, selected) + cost * min(1.0, candidates / (row // planes + 1))
                    selected = max(selected, sorted_in - waiting)
                taken.append(selected)
        return round(max(beat, selected, sorted_in))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.selector = selector = Selector(config)
        m.submodules.scorer = scorer = RowScorer(config)
        rows = matrix_rows(m, self.planes, self.vocabulary)
        for unit in (selector, scorer):
            m.d.comb += [
                unit.head_first.eq(self.head_first),
                unit.head_count.eq(self.head_count),
                unit.candidates.eq(self.candidates),
            ]
        m.d.comb += [
            self.matrix_rows.eq(rows),
            selector.start.eq(self.start),
            selector.planes.eq(self.planes),
            selector.vocabulary.eq(self.vocabulary),
            selector.matrix_rows.eq(rows),
            selector.scales.eq(self.beats.payload),
            selector.root_lane.eq(scorer.root_lane),
            scorer.inputs.eq(self.inputs),
            scorer.bound_unit.eq(self.bound_unit),
            scorer.write.eq(self.write),
            scorer.root_score.eq(selector.root_score),
            scorer.beats.payload.eq(self.beats.payload),
            self.scoring.eq(scorer.busy),
        ]
        connect(m, flipped(self.rows), selector.rows)
        if config.ternary_head:
            self._ternary(m, selector, scorer)
        else:
            connect(m, selector.chosen, flipped(self.chosen))
        connect(m, scorer.int8, flipped(self.int8))
        connect(m, scorer.query_scales, flipped(self.query_scales))
        connect(m, scorer.written, flipped(self.written))
        for name in ("best", "best_lane", "best_row", "best_value", "bound"):
            m.d.comb += getattr(self, name).eq(getattr(scorer, name))
        self._stream(m, selector, scorer)
        return m

    def _ternary(self, m: Module, selector: Selector, scorer: RowScorer) -> None:
        """A head that is ternary gives its candidates to the scorer, not to the fetcher, and keeps some for the largest logit where none are wanted."""
        none = self.candidates == 0
        for unit in (selector, scorer):
            m.d.comb += unit.exact.eq(self.exact)
            with m.If(self.exact & none):
                m.d.comb += unit.candidates.eq(MULTIPLE)
        m.d.comb += [
            scorer.vocabulary.eq(self.vocabulary),
            scorer.every.eq(self.exact & none & self.write),
            scorer.issued.eq(selector.issued),
            scorer.score.eq(selector.score),
            selector.room.eq(scorer.room),
            scorer.given.payload.row.eq(selector.chosen.payload.row),
            scorer.given.payload.score.eq(selector.chosen_score),
            scorer.given.valid.eq(selector.chosen.valid),
            self.chosen.payload.eq(selector.chosen.payload),
            self.chosen.valid.eq(selector.chosen.valid & ~self.exact),
            selector.chosen.ready.eq(Mux(self.exact, scorer.given.ready, self.chosen.ready)),
        ]

    def _stream(self, m: Module, selector: Selector, scorer: RowScorer) -> None:
        """Scales, weights, scales, weights, ...; then rows."""
        config = self.config
        scale_beats = selector.scale_words // 2
        beat = Signal(range(max(2, scale_beats)))
        parity = Signal()
        held = Signal(2)  # blocks whose scales are held
        loaded = Signal()
        row, before_last_row, last_row = Signal(range(config.block_rows)), Signal(range(config.block_rows)), Signal()
        tile, last_tile = Signal(16), Signal()
        left, last_block = Signal(MATRIX_BITS), Signal()
        scoring, taking = Signal(), Signal()  # rows are taken; scales are
        m.d.sync += [
            last_block.eq(left <= config.block_rows),
            before_last_row.eq(Mux(last_block, left, config.block_rows) - 2),
            held.eq(held + loaded - selector.block_done),
        ]
        m.d.comb += [
            selector.scale_address.eq(beat + parity * scale_beats),
            scorer.beats.valid.eq(self.beats.valid & scoring),
        ]
        # Of registers: the whole stream waits for it.
        m.d.comb += self.beats.ready.eq(taking | (scoring & scorer.beats.ready))
        settled = delay_line(m, ~scorer.busy, self.SETTLE, "settled", reset_less=False)
        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [beat.eq(0), parity.eq(0), held.eq(0), left.eq(self.matrix_rows)]
                with m.If(self.start):
                    m.d.sync += self.busy.eq(1)
                    m.next = "Room"
            with m.State("Room"):
                with m.If(held != 2):
                    m.d.sync += taking.eq(1)
                    m.next = "Scales"
            with m.State("Scales"):
                m.d.comb += selector.scale_write.eq(self.beats.valid)
                m.d.sync += [row.eq(0), last_row.eq(0), tile.eq(0), last_tile.eq(self.tiles == 1)]
                with m.If(self.beats.valid):
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(beat == scale_beats - 1):
                        m.d.comb += loaded.eq(1)
                        m.d.sync += [beat.eq(0), parity.eq(~parity), taking.eq(0), self.weights.eq(1)]
                        m.next = "Weights"
            with m.State("Weights"):
                with m.If(self.taken):
                    m.d.sync += [row.eq(row + 1), last_row.eq(row == before_last_row)]
                    with m.If(last_row):
                        m.d.sync += [row.eq(0), tile.eq(tile + 1), last_tile.eq(tile + 2 == self.tiles)]
                        with m.If(last_tile):
                            m.d.sync += [self.weights.eq(0), left.eq(left - config.block_rows)]
                            m.next = "Room"
                            with m.If(last_block):
                                m.next = "Choose"
            with m.State("Choose"):
                with m.If(~selector.busy):
                    m.d.comb += [selector.give.eq(1), scorer.start.eq(1)]
                    m.next = "Started"
            with m.State("Started"):
                m.d.sync += scoring.eq(1)
                m.next = "Score"
            with m.State("Score"):
                with m.If(~scorer.busy):
                    m.d.sync += scoring.eq(0)
                    m.next = "Settle"
            with m.State("Settle"):
                with m.If(settled):
                    m.d.sync += self.busy.eq(0)
                    m.next = "Idle"
