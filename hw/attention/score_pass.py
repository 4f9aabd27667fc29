"""Softmax, first pass: scores with their running maximum."""

from __future__ import annotations

from typing import Any

from amaranth import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.attention import LEVEL_FRAC, SCORE_FRAC, VALUE_FRAC
from tellme.golden.config import clog2
from tellme.golden.fp import MANTISSA_BITS
from tellme.hw.attention.block import SCORE_BITS, Sizes, score_layout, unit_layout, value_scale_layout
from tellme.hw.attention.maxima import Maxima
from tellme.hw.attention.query_batches import QueryBatches
from tellme.hw.attention.signatures import DotPort, LogitPort, ScalePort, StatisticPort
from tellme.hw.fp import FloatToFixed, IntToFloat, Multiplier
from tellme.hw.interfaces import QueryScalePort
from tellme.hw.pipeline import delay_line, wire
from tellme.hw.queues import ShortQueue


class _Issue:
    """A beat of keys for a batch of queries: what is issued in a cycle."""

    def __init__(self, sizes: Sizes):
        config, pipes = sizes.config, sizes.pipes
        lane = clog2(config.lanes)
        self.active = Signal()
        self.lanes = [Signal(lane, name=f"lane_{i}", reset_less=True) for i in range(pipes)]
        self.spans = [Signal(lane + 1, name=f"span_{i}", reset_less=True) for i in range(pipes)]
        """Own keys that the query attends to, less one, from the first of the batch's first beat."""
        self.scales = [Signal(32, name=f"scale_{i}", reset_less=True) for i in range(pipes)]
        self.present = Signal(pipes)
        """Which of the batch's queries there are."""
        self.last_batch = Signal()
        self.first_batch = Signal()
        self.batch = Signal(sizes.batch_bits)
        self.beat = Signal(sizes.beat_bits)
        self.final_beat = Signal(sizes.beat_bits)
        self.column = Signal(range(max(2, config.attention_lanes // pipes)))
        """Of the batch in its set."""
        self.run_set = Signal(sizes.set_bits)
        self.word = Signal(sizes.word_bits)
        """Score word of the set's first beat."""
        self.half_column = Signal.like(self.column)
        """Where the beat's keys are: when attention is split, of every other beat in the upper half of the lanes."""
        self.row = Signal(sizes.beat_bits)
        """Word of the set's tile."""
        self.last_real = Signal(sizes.beat_bits)
        self.turn = Signal(range(max(2, pipes)))
        """Query whose logits are issued (head mode)."""
        self.go = Signal()
        self.take = Signal()
        self.last_beat = Signal()
        self.last_turn = Signal()
        self.end = Signal()
        """Last cycle of a phase."""
        self.real = Signal()
        """The beat is one, not the rest that makes a batch long enough."""


class ScorePass(wiring.Component):
    """First pass, over the dot products of a K phase: T of every (query, key), the running maximum, the largest level.

    `pipes` queries x keys_per_beat keys a cycle (a beat, as if all were of bytes), phase by phase; in the head mode one lane's logits instead of scores.
    A phase takes batches * max(beats, pipes) cycles and about `pipes` + 5 more, batches = ceil(queries / pipes).

    Interface attributes
    --------------------
    head_mode, write_logits, group, split : see AttentionUnit.
    phases : K phases.
    phase_end : pulse, a phase's dot products are complete.
    scales_ready, scale_free : see TileLoader.
    scored : pulse, dot products and scales of the phase are read.
    dots, scales, query_scales : read ports.
    score_en, score_address, score_data : write port of the score RAM: enables of `pipes` queries each, word.
    value_scale_en, value_scale_address, value_scale_data : write port of the V scale RAM, at {parity, beat}.
    statistics : maxima, for the second pass.
    unit : stream of units whose scores are complete, valid once everything of them can be read.
    logits : logits (head mode).
    """

    free_delay = 1
    """From a phase's last cycle to `scored` and `scale_free`."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        config = sizes.config
        self.batches = QueryBatches(sizes)
        self.maxima = Maxima(sizes)
        self.logit_delay = 2 + 2 * Multiplier.delay
        """Cycles from the issue to the product of dot and scales, a logit: the dot products are read and chosen in two."""
        self.delay = self.logit_delay + FloatToFixed.delay
        """Cycles from the issue to T."""
        self.settle = self.delay + self.maxima.delay + 1
        """Cycles from a unit's last issue to everything of it being readable."""
        super().__init__(
            {
                "head_mode": In(1),
                "write_logits": In(1),
                "group": In(8),
                "split": In(1),
                "phases": In(stream.Signature(sizes.phase)),
                "phase_end": In(1),
                "scales_ready": In(2),
                "scale_free": Out(2),
                "scored": Out(1),
                "dots": Out(DotPort(sizes)),
                "scales": Out(ScalePort(sizes)),
                "query_scales": Out(QueryScalePort(config)),
                "score_en": Out(config.attention_lanes // sizes.pipes),
                "score_address": Out(sizes.word_bits),
                "score_data": Out(data.ArrayLayout(score_layout(sizes), config.attention_lanes)),
                "value_scale_en": Out(1),
                "value_scale_address": Out(sizes.row_bits),
                "value_scale_data": Out(value_scale_layout(sizes)),
                "statistics": In(StatisticPort(sizes)),
                "unit": Out(stream.Signature(unit_layout(sizes))),
                "logits": Out(LogitPort(sizes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.batches = self.batches
        m.submodules.maxima = self.maxima
        issue = _Issue(self.sizes)
        self._begin(m, issue)
        self._control(m, issue)
        self._advance(m, issue)
        valid = self._attended(m, issue)
        k_scales, v_scales = self._read(m, issue)
        products, scores = self._multiply(m, issue, k_scales)
        self._write(m, issue, scores, valid, v_scales)
        self._track(m, issue, v_scales)
        self._units(m, issue)
        self._logits(m, issue, products)
        return m

    def _begin(self, m: Module, issue: _Issue) -> None:
        """A phase begins once its dot products and scales are complete, and ends with its last batch."""
        batches = self.batches
        phase = self.phases.payload
        complete = Signal(2)
        m.d.sync += complete.eq(complete + self.phase_end - issue.end)
        m.d.comb += [
            batches.group.eq(self.group),
            batches.phase.eq(phase),
            batches.begin.eq(self.phases.valid & (complete != 0) & self.scales_ready.bit_select(phase.half, 1)),
            batches.take.eq(issue.take),
            batches.end.eq(issue.end),
            self.phases.ready.eq(batches.done),
        ]
        wiring.connect(m, batches.query_scales, wiring.flipped(self.query_scales))
        # When attention is split, whole score words: keys of their second half that there are not are not valid.
        last_beat = Signal(self.sizes.beat_bits)
        m.d.comb += last_beat.eq(Mux(phase.narrow, Cat(Const(1, 1), phase.last_beat), phase.last_beat | self.split))
        least_beats = self.sizes.pipes - 1  # a batch is tracked in no less
        with m.If(batches.idle):
            m.d.sync += [
                issue.column.eq(0),
                issue.run_set.eq(0),
                issue.batch.eq(0),
                issue.word.eq(Cat(phase.base, phase.parity)),
                issue.last_real.eq(last_beat),
                issue.final_beat.eq(Mux(last_beat < least_beats, least_beats, last_beat) if least_beats else last_beat),
                issue.first_batch.eq(1),
            ]
        free = delay_line(m, issue.end, self.free_delay, "free", reset_less=False)
        freed = delay_line(m, phase.half, self.free_delay, "freed")
        m.d.comb += [self.scored.eq(free), self.scale_free.eq(Mux(free, 1 << freed, 0))]

    def _control(self, m: Module, issue: _Issue) -> None:
        """What follows from where the issue is."""
        batches = self.batches
        spending = self.head_mode & self.write_logits & (issue.beat[: exact_log2(self.sizes.depth)] == 0)
        end_batch = issue.go & issue.last_beat & issue.last_turn
        m.d.comb += [
            issue.last_beat.eq(issue.beat == issue.final_beat),
            issue.last_turn.eq(
                ~self.head_mode | (issue.turn == self.sizes.pipes - 1) | ~(issue.present >> (issue.turn + 1))[0]
            ),
            issue.go.eq(issue.active & (~spending | self.logits.credit)),
            self.logits.spend.eq(issue.go & spending),
            issue.end.eq(end_batch & issue.last_batch),
            issue.take.eq(batches.valid & ((end_batch & ~issue.last_batch) | ~issue.active)),
            issue.real.eq(issue.go & (issue.beat <= issue.last_real)),
            issue.row.eq(Mux(self.split, issue.beat >> 1, issue.beat)),
            issue.half_column.eq(issue.column),
        ]
        with m.If(self.split):
            m.d.comb += issue.half_column[-1].eq(issue.beat[0])

    def _advance(self, m: Module, issue: _Issue) -> None:
        """To the next beat, query (head mode), batch, set."""
        batches = self.batches
        phase = self.phases.payload
        config, pipes = self.sizes.config, self.sizes.pipes
        key_bits = exact_log2(config.keys_per_beat)
        last_column = Mux(self.split, self.sizes.set_queries // pipes - 1, config.attention_lanes // pipes - 1)
        with m.If(issue.go):
            m.d.sync += issue.beat.eq(issue.beat + 1)
            with m.If(issue.last_beat):
                m.d.sync += [issue.beat.eq(0), issue.turn.eq(issue.turn + 1)]
                with m.If(issue.last_turn):
                    m.d.sync += [
                        issue.active.eq(0),
                        issue.turn.eq(0),
                        issue.first_batch.eq(0),
                        issue.batch.eq(issue.batch + 1),
                        issue.column.eq(issue.column + 1),
                    ]
                    with m.If(issue.column == last_column):
                        m.d.sync += [
                            issue.column.eq(0),
                            issue.run_set.eq(issue.run_set + 1),
                            issue.word.eq(issue.word + phase.unit_words),
                        ]
        with m.If(issue.take):
            m.d.sync += [issue.active.eq(1), issue.present.eq(batches.active), issue.last_batch.eq(batches.last)]
            for i in range(pipes):
                m.d.sync += [
                    issue.lanes[i].eq(batches.lanes[i]),
                    issue.spans[i].eq(batches.lanes[i] - (phase.lane_lo >> key_bits << key_bits)),
                    issue.scales[i].eq(batches.scales[i]),
                ]

    def _attended(self, m: Module, issue: _Issue) -> list[list[Signal]]:
        """Which keys a query attends to, by the beat: of a cache block those that are valid, of the own ones those from
        the lane group's first lane (in beat 0) to its own. [query][key], a register behind the issue."""
        phase = self.phases.payload
        keys = self.sizes.config.keys_per_beat
        key_bits = exact_log2(keys)
        # The bounds are registers: a phase stands still for some cycles first.
        beats_of = [Signal(self.sizes.beat_bits, name=f"beats_of_{k}", reset_less=True) for k in range(keys)]
        m.d.sync += [beats_of[k].eq((phase.keys + (keys - 1 - k)) >> key_bits) for k in range(keys)]
        attended: list[list[Signal]] = []
        for i in range(self.sizes.pipes):
            attended.append([])
            for k in range(keys):
                valid = Signal(name=f"valid_{i}_{k}", reset_less=True)
                from_first: Value = Const(1)
                if k < keys - 1:
                    from_first = (issue.beat != 0) | (phase.lane_lo[:key_bits] <= k)
                own = from_first & (Cat(Const(k, key_bits), issue.beat) <= issue.spans[i])
                m.d.sync += valid.eq(issue.present[i] & Mux(phase.own, own, issue.beat < beats_of[k]))
                attended[i].append(valid)
        return attended

    def _read(self, m: Module, issue: _Issue) -> tuple[Any, Any]:
        """Dot products and scales. Returns K and V scales, two cycles behind the issue."""
        phase = self.phases.payload
        tile_bits = exact_log2(self.sizes.config.key_tile)
        k_scales = Signal.like(self.scales.k, reset_less=True)
        v_scales = Signal.like(self.scales.v, reset_less=True)
        m.d.sync += [k_scales.eq(self.scales.k), v_scales.eq(self.scales.v)]
        m.d.comb += [
            self.dots.half.eq(phase.half),
            self.dots.address.eq(
                Mux(
                    self.split,
                    Cat(issue.row[: tile_bits - 1], issue.run_set),
                    Cat(issue.row[:tile_bits], issue.run_set),
                )
            ),
            self.scales.address.eq(Cat(issue.beat[:tile_bits], phase.half)),
        ]
        return k_scales, v_scales

    def _multiply(self, m: Module, issue: _Issue, k_scales: Any) -> tuple[list[list[Value]], list[list[Value]]]:
        """Products of dot and scales, and scores T: [query][key]."""
        keys, pipes = self.sizes.config.keys_per_beat, self.sizes.pipes
        columns = range(self.sizes.config.attention_lanes // pipes)
        column = delay_line(m, issue.half_column, 1, "column")
        products: list[list[Value]] = []
        scores: list[list[Value]] = []
        for i in range(pipes):
            query_scale = delay_line(m, issue.scales[i], 2, f"query_scale_{i}")
            products.append([])
            scores.append([])
            for k in range(keys):
                dot = Signal(signed(self.sizes.dot_bits), name=f"dot_{i}_{k}", reset_less=True)
                m.d.sync += dot.eq(Array(self.dots.data[(s * pipes + i) * keys + k] for s in columns)[column])
                m.submodules[f"float_{i}_{k}"] = to_float = IntToFloat(self.sizes.dot_bits)
                m.submodules[f"scale_{i}_{k}"] = scale = Multiplier()
                m.submodules[f"multiply_{i}_{k}"] = multiply = Multiplier()
                m.submodules[f"fixed_{i}_{k}"] = fixed = FloatToFixed(SCORE_FRAC, SCORE_BITS)
                m.d.comb += [
                    to_float.i.eq(dot),
                    scale.a.eq(query_scale),
                    scale.b.eq(k_scales[k]),
                    multiply.a.eq(delay_line(m, to_float.o, scale.delay - to_float.delay, f"float_{i}_{k}")),
                    multiply.b.eq(scale.o),
                    fixed.i.eq(multiply.o),
                ]
                products[i].append(multiply.o)
                scores[i].append(fixed.o)
        return products, scores

    def _write(
        self, m: Module, issue: _Issue, scores: list[list[Value]], valid: list[list[Signal]], v_scales: Any
    ) -> None:
        """Scores with their flags; and the unit's V scales, once, with its first batch."""
        sizes, maxima = self.sizes, self.maxima
        phase = self.phases.payload
        columns = range(sizes.config.attention_lanes // sizes.pipes)
        for i in range(sizes.pipes):
            for k in range(sizes.config.keys_per_beat):
                m.d.comb += [
                    maxima.scores[i][k].score.eq(scores[i][k]),
                    maxima.scores[i][k].valid.eq(delay_line(m, valid[i][k], self.delay - 1, f"valid_{i}_{k}")),
                ]
            m.d.comb += [self.score_data[s * sizes.pipes + i].eq(maxima.scores[i]) for s in columns]
        real = delay_line(m, issue.real & ~self.head_mode, self.delay, "real", reset_less=False)
        column = delay_line(m, issue.half_column, self.delay, "column_late")
        m.d.comb += [
            maxima.valid.eq(real),
            self.score_address.eq(delay_line(m, (issue.word + issue.row)[: sizes.word_bits], self.delay, "word")),
        ]
        # Of queries that the batch does not have, too: nothing reads those.
        m.d.comb += [self.score_en[s].eq(real & (column == s)) for s in columns]
        scale_row, first_row = Signal(sizes.row_bits), Signal(sizes.row_bits)
        scale_en = issue.real & issue.first_batch & ~self.head_mode
        m.d.comb += [
            first_row.eq(Mux(self.split, phase.base << 1, phase.base) | (phase.parity << (sizes.row_bits - 1))),
            scale_row.eq(first_row + issue.beat),
            self.value_scale_en.eq(delay_line(m, scale_en, 2, "value_scale", reset_less=False)),
            self.value_scale_address.eq(delay_line(m, scale_row, 2, "value_row")),
        ]
        for k in range(sizes.config.keys_per_beat):
            value_scale = self.value_scale_data[k]
            m.d.comb += [
                value_scale.fraction.eq(v_scales[k][MANTISSA_BITS - VALUE_FRAC : MANTISSA_BITS]),
                value_scale.exponent.eq(v_scales[k][MANTISSA_BITS:31]),
            ]

    def _track(self, m: Module, issue: _Issue, v_scales: Any) -> None:
        """Maxima, for the second pass."""
        maxima = self.maxima
        phase = self.phases.payload
        place = wire(m, Cat(issue.batch, phase.parity), "place")
        last = issue.go & issue.last_beat & ~self.head_mode
        for k in range(self.sizes.config.keys_per_beat):
            log2 = Cat(v_scales[k][MANTISSA_BITS - LEVEL_FRAC : 31], v_scales[k][MANTISSA_BITS:31].all())
            late = delay_line(m, log2, self.delay - 2, f"value_level_{k}")
            m.d.comb += maxima.value_levels[k].eq(Cat(late[:-1], Const(0, 6), late[-1]))
        m.d.comb += [
            maxima.begin.eq(delay_line(m, issue.beat == 0, self.delay, "begin")),
            maxima.fresh.eq(delay_line(m, phase.first, self.delay, "fresh")),
            maxima.last.eq(delay_line(m, last, self.delay, "last", reset_less=False)),
            maxima.place.eq(delay_line(m, place, self.delay - 1, "place")),
            maxima.address.eq(self.statistics.address),
            self.statistics.maxima.eq(maxima.maxima),
        ]

    def _units(self, m: Module, issue: _Issue) -> None:
        """Units wait until everything of them can be read."""
        phase = self.phases.payload
        pipes = self.sizes.pipes
        layout = unit_layout(self.sizes)
        m.submodules.units = units = ShortQueue(layout, 4)
        unit = Signal(layout)
        rows, last_row = Signal(self.sizes.row_bits), Signal(self.sizes.row_bits)
        m.d.comb += rows.eq(Mux(self.split, phase.unit_words << 1, phase.unit_words))
        m.d.sync += last_row.eq(Mux(rows < pipes, pipes - 1, rows - 1))
        ready = Signal(3)
        unit_end = issue.end & phase.last & ~self.head_mode
        settled = delay_line(m, unit_end, self.settle, "settled", reset_less=False)
        m.d.comb += [
            unit.parity.eq(phase.parity),
            unit.batches.eq(issue.batch),
            unit.queries.eq(phase.queries),
            unit.words.eq(phase.unit_words),
            unit.rows.eq(rows),
            unit.last_row.eq(last_row),
            units.payload.eq(unit),
            units.write.eq(unit_end),
            self.unit.payload.eq(units.out.payload),
            self.unit.valid.eq(units.out.valid & (ready != 0)),
            units.out.ready.eq((ready != 0) & self.unit.ready),
        ]
        m.d.sync += ready.eq(ready + settled - (self.unit.valid & self.unit.ready))

    def _logits(self, m: Module, issue: _Issue, products: list[list[Value]]) -> None:
        """In the head mode: products of one query after the other."""
        phase = self.phases.payload
        beat = issue.beat[: exact_log2(self.sizes.config.key_tile)]
        valid = issue.go & self.head_mode
        end = issue.end & phase.final & self.head_mode
        delay = self.logit_delay
        m.d.comb += [
            self.logits.valid.eq(delay_line(m, valid, delay, "logit_valid", reset_less=False)),
            self.logits.lane.eq(delay_line(m, Array(issue.lanes)[issue.turn], delay, "logit_lane")),
            self.logits.block.eq(delay_line(m, phase.index, delay, "logit_block")),
            self.logits.beat.eq(delay_line(m, beat, delay, "logit_beat")),
            self.logits.first.eq(delay_line(m, phase.first, delay, "logit_first")),
            self.logits.new.eq(delay_line(m, issue.beat == 0, delay, "logit_new")),
            self.logits.end.eq(delay_line(m, end, delay, "logit_end", reset_less=False)),
        ]
        turn = delay_line(m, issue.turn, delay, "turn")
        for k in range(self.sizes.config.keys_per_beat):
            m.d.comb += self.logits.values[k].eq(Array(of_query[k] for of_query in products)[turn])
