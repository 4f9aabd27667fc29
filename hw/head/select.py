"""The candidates of a screened head: the rows of the largest scores, of every head lane."""

from __future__ import annotations

import math
from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.layout import ROW_MULTIPLE
from tellme.golden.screen import MAX_CANDIDATES, MAX_PLANES, MAX_ROWS, SCALE_BITS
from tellme.hw.fp.dsp import multiply_add, positive
from tellme.hw.interfaces import count_bits
from tellme.hw.pipeline import delay_line
from tellme.hw.primitives import deep_ram
from tellme.hw.queues import Queue
from tellme.hw.tlmm.accumulate import row_layout

INDEX_BITS = clog2(MAX_ROWS)
"""Of a row of the head."""
MATRIX_BITS = clog2(MAX_ROWS * MAX_PLANES + 1)
"""Of a number of rows of the ternary matrix."""
CANDIDATE_BITS = clog2(MAX_CANDIDATES + 1)
CHOSEN = data.StructLayout({"row": INDEX_BITS, "last": 1})
"""A row that is to be read, and whether it is the last of a job."""
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


def score_bits(config: AcceleratorConfig) -> int:
    """Of a score, signed."""
    return config.row_width + SCALE_BITS + clog2(MAX_PLANES)


def key_bits(config: AcceleratorConfig) -> int:
    """Of a candidate as a number that orders candidates: its score, then the complement of its row. Larger is better."""
    return score_bits(config) + INDEX_BITS


@dataclass(frozen=True)
class _Job:
    """What is known of a job a cycle behind its start."""

    last_lane: Signal  # ordinal of the last head lane
    pairs: Signal  # of candidates, of a lane


class Selector(wiring.Component):
    """Scores rows of the ternary matrix and keeps the best of each head lane. Golden: `golden.screen.scores`, `select`.

    A row a cycle for one head lane, a cycle a lane for more. What is better than a lane's worst candidate so far waits in a
    queue until it is sorted in: a lane's candidates are a heap with the worst at its root, which the new one replaces; then
    it sinks to its place, `step` cycles a level. Roots are in distributed RAM, the rest in two deep memories, for the left and
    right children. About N (1 + ln(rows / N)) candidates are sorted in if rows come in any order, in log2(N) levels each.

    Parameters
    ----------
    config : lanes, block rows, accumulator width, entries.

    Interface attributes
    --------------------
    start : pulse; lanes (head_first, head_count), candidates (of a lane), planes, vocabulary and matrix_rows stay stable
        until the next.
    busy : from the cycle after `start` until every row is in, and every candidate in its place.
    scale_write, scale_address, scales : scales of the next row block, a beat at a time; two blocks are held.
    block_done : pulse, the rows of a block have come: its scales are used.
    rows : accumulators of all lanes, in row order; the planes of a row are neighbours.
    give : pulse, once not busy: the candidates are wanted.
    chosen : their rows, lane by lane. last : the last of the job's.
    root_lane, root_score : the smallest score of a candidate of a lane (its ordinal), while not busy; no latency.
    """

    step = 5
    """Cycles in which a candidate sinks a level: children are read (two), compared, one is moved, and its own follow."""
    score_delay = 6
    """Cycles from the issue of a row's accumulator to its score: registers, scale, product (three), sum of planes."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        self.lane_bits = clog2(config.lanes)
        self.scale_words = 2 * (config.block_rows * SCALE_BITS // 8 // config.beat_bytes)
        super().__init__(
            {
                "start": In(1),
                "busy": Out(1),
                "head_first": In(self.lane_bits),
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
                "root_lane": In(self.lane_bits),
                "root_score": Out(signed(score_bits(config))),
            }
        )

    @classmethod
    def expected_sort_cycles(cls, candidates: int, rows: int) -> int:
        """Cycles in which candidates of a lane are emptied and sorted in, of rows in random order, about: each of them sinks to
        within a level or two of the end."""
        sorted_in = candidates * (1 + math.log(rows / candidates))
        return round(candidates / 2 + sorted_in * (3 + cls.step * (math.log2(candidates) - 1)))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        job = _Job(Signal(self.lane_bits), Signal(CANDIDATE_BITS - 1))
        m.d.sync += [job.last_lane.eq(self.head_count - 1), job.pairs.eq(self.candidates >> 1)]
        m.submodules.pending = pending = Queue(width=key_bits(config) + self.lane_bits, depth=PENDING)
        m.submodules.roots = roots = Memory(shape=key_bits(config), depth=max(2, config.lanes), init=[])
        m.submodules.bases = bases = Memory(
            shape=exact_log2(config.screen_entries), depth=max(2, config.lanes), init=[]
        )
        initialised = Signal()
        drained = self._score(m, platform, job, pending, roots, initialised)
        idle = self._sort(m, platform, job, pending, roots, bases, initialised)
        root = roots.read_port(domain="comb")
        m.d.comb += [root.addr.eq(self.root_lane), self.root_score.eq(self._score_of(root.data))]
        with m.If(self.start):
            m.d.sync += self.busy.eq(1)
        with m.Elif(drained & ~pending.o.valid & idle):
            m.d.sync += self.busy.eq(0)
        return m

    def _key(self, score: Value, row: Value) -> Value:
        return Cat(~row[:INDEX_BITS], score[:-1], ~score[-1])

    def _score_of(self, key: Value) -> Value:
        return Cat(key[INDEX_BITS:-1], ~key[-1]).as_signed()

    def _score(
        self, m: Module, platform: object, job: _Job, pending: Queue, roots: Memory, initialised: Signal
    ) -> Signal:
        """Rows to scores; those that may be candidates to the queue. Returns whether every row has gone through."""
        config = self.config
        width = 8 * config.beat_bytes
        m.submodules.scale_memory = memory = Memory(shape=width, depth=self.scale_words, init=[])
        write, read = memory.write_port(), memory.read_port(domain="comb")
        m.d.comb += [
            write.en.eq(self.scale_write),
            write.addr.eq(self.scale_address),
            write.data.eq(self.scales),
        ]
        block_bits = exact_log2(config.block_rows)
        column_bits = exact_log2(width // SCALE_BITS)

        # A lane a cycle; with the last one the row is taken.
        matrix_row = Signal(MATRIX_BITS)
        lane = Signal(self.lane_bits)  # ordinal
        actual = Signal(self.lane_bits)
        plane, second = Signal(), Signal()
        row = Signal(INDEX_BITS + 1)  # of the head
        issue, last = Signal(), Signal()
        calm = Signal()
        whole = Signal()
        m.d.sync += [second.eq(self.planes == MAX_PLANES), calm.eq(pending.level < PENDING - self.score_delay - 6)]
        m.d.comb += [
            issue.eq(self.rows.valid & calm & initialised),
            last.eq(lane == job.last_lane),
            whole.eq(~second | plane),
            self.rows.ready.eq(issue & last),
            self.block_done.eq(issue & last & (matrix_row[:block_bits].all() | (matrix_row + 1 == self.matrix_rows))),
            read.addr.eq(matrix_row[column_bits : block_bits + 1]),
        ]
        with m.If(issue):
            m.d.sync += [lane.eq(lane + 1), actual.eq(actual + 1)]
            with m.If(last):
                m.d.sync += [lane.eq(0), actual.eq(self.head_first), matrix_row.eq(matrix_row + 1), plane.eq(~whole)]
                with m.If(whole):
                    m.d.sync += row.eq(row + 1)
        with m.If(self.start):
            m.d.sync += [matrix_row.eq(0), lane.eq(0), actual.eq(self.head_first), plane.eq(0), row.eq(0)]

        # 1, 2: accumulator and scale. 3 to 5: product. 6: with the plane before.
        accumulator = Signal(signed(config.row_width), reset_less=True)
        late = Signal(signed(config.row_width), reset_less=True)
        word, column = Signal(width, reset_less=True), Signal(column_bits, reset_less=True)
        scale = Signal(SCALE_BITS, reset_less=True)
        m.d.sync += [
            accumulator.eq(Array(self.rows.payload[i] for i in range(config.lanes))[actual]),
            late.eq(accumulator),
            word.eq(read.data),
            column.eq(matrix_row[:column_bits]),
            scale.eq(word.word_select(column, SCALE_BITS)),
        ]
        product, _ = multiply_add(m, platform, "product", late, positive(scale), width=config.row_width + SCALE_BITS)
        before = self.score_delay - 1
        m.submodules.partial = partial = Memory(shape=signed(len(product)), depth=max(2, config.lanes), init=[])
        put, get = partial.write_port(), partial.read_port(domain="comb")
        at = delay_line(m, lane, before, "at")
        later = delay_line(m, plane, before, "later")
        score = Signal(signed(score_bits(config)), reset_less=True)
        m.d.comb += [put.addr.eq(at), put.data.eq(product), put.en.eq(~later), get.addr.eq(at)]
        m.d.sync += score.eq(product + Mux(later, get.data, 0))

        # Better than the lane's worst so far, which only gets better.
        complete = issue & whole & (row < self.vocabulary[: len(row)])
        valid = delay_line(m, complete, self.score_delay, "valid", reset_less=False)
        place = delay_line(m, lane, self.score_delay, "place")
        number = delay_line(m, row, self.score_delay, "number")
        worst = roots.read_port(domain="comb")
        key = Signal(key_bits(config), reset_less=True)
        better = Signal()
        owner = Signal(self.lane_bits, reset_less=True)
        m.d.comb += worst.addr.eq(place)
        m.d.sync += [key.eq(self._key(score, number)), owner.eq(place)]
        m.d.sync += better.eq(valid & (self._key(score, number) > worst.data))
        m.d.comb += [pending.i.payload.eq(Cat(key, owner)), pending.i.valid.eq(better)]

        through = Signal()
        m.d.sync += through.eq(matrix_row == self.matrix_rows)
        drained = delay_line(m, through & ~self.start, self.score_delay + 3, "drained", reset_less=False)
        return drained & through

    def _sort(
        self,
        m: Module,
        platform: object,
        job: _Job,
        pending: Queue,
        roots: Memory,
        bases: Memory,
        initialised: Signal,
    ) -> Value:
        """Empties the heaps, sorts candidates in, and gives them out. Returns whether it does nothing.

        Node 0 of a heap is its root; the children of node n are the pair n, nodes 2n + 1 (left) and 2n + 2 (right).
        """
        config = self.config
        width, depth = key_bits(config), config.screen_entries // 2
        sides = []
        for name in ("left", "right"):
            memory = Memory(shape=width, depth=depth, init=[], attrs=deep_ram(platform))
            m.submodules[name] = memory
            sides.append((memory.write_port(), memory.read_port()))
        root, base = roots.read_port(domain="comb"), bases.read_port(domain="comb")
        set_root, set_base = roots.write_port(), bases.write_port()

        lane = Signal(self.lane_bits)
        x = Signal(width, reset_less=True)
        node = Signal(CANDIDATE_BITS)  # whose place is free
        pair, first = Signal(range(depth)), Signal(range(depth))  # node's children, and the heap's first pair
        hole, hole_right, at_root = Signal(range(depth)), Signal(), Signal()  # where node is
        left, right = Signal(width, reset_less=True), Signal(width, reset_less=True)
        left_worse, over_left, over_right = Signal(), Signal(), Signal()
        leaf = Signal()
        value = Signal(width)
        write_left, write_right, write_root = Signal(), Signal(), Signal()
        address = Signal(range(depth))
        m.d.comb += [
            root.addr.eq(lane),
            base.addr.eq(lane),
            set_root.addr.eq(lane),
            set_root.data.eq(value),
            set_root.en.eq(write_root),
            set_base.addr.eq(lane),
            set_base.data.eq(pair),
            address.eq(hole),
        ]
        for (write, read), enable in zip(sides, (write_left, write_right), strict=True):
            m.d.comb += [
                write.addr.eq(address),
                write.data.eq(value),
                write.en.eq(enable),
                read.addr.eq(pair),
                read.en.eq(1),
            ]
        m.d.sync += [left.eq(sides[0][1].data), right.eq(sides[1][1].data)]
        m.d.comb += leaf.eq(node >= job.pairs)

        taken_key = pending.o.payload[:width]
        taken_lane = pending.o.payload[width:]
        fill = Signal(CANDIDATE_BITS - 1)
        begun = Signal()
        row = Signal(INDEX_BITS)
        final = Signal()
        m.d.comb += [self.chosen.payload.row.eq(row), self.chosen.payload.last.eq(final)]
        with m.FSM() as fsm:
            with m.State("Idle"):
                m.d.sync += [x.eq(taken_key), lane.eq(taken_lane), node.eq(0), at_root.eq(1)]
                with m.If(self.start):
                    m.d.sync += [initialised.eq(0), lane.eq(0), pair.eq(0), fill.eq(0)]
                    m.next = "Prepare"
                with m.Elif(self.give):
                    m.d.sync += [lane.eq(0), fill.eq(0)]
                    m.next = "Give-Root"
                with m.Elif(pending.o.valid):
                    m.next = "Look"
            # Heaps of nothing: keys that all others beat. The last pair has no right child: a key that none beats.
            with m.State("Prepare"):  # a cycle behind the start: pairs are known
                m.next = "Empty"
            with m.State("Empty"):
                m.d.comb += [
                    address.eq(pair),
                    write_left.eq(1),
                    value.eq(0),
                    set_base.en.eq(fill == 0),
                    write_root.eq(fill == 0),
                ]
                m.d.sync += fill.eq(fill + 1)
                with m.If(fill == job.pairs - 1):
                    m.next = "Empty-Last"
                with m.Else():
                    m.d.comb += write_right.eq(1)
                    m.d.sync += pair.eq(pair + 1)
            with m.State("Empty-Last"):
                m.d.comb += [address.eq(pair), write_right.eq(1), value.eq(~Const(0, width))]
                m.d.sync += [pair.eq(pair + 1), fill.eq(0), lane.eq(lane + 1)]
                m.next = "Empty"
                with m.If(lane == job.last_lane):
                    m.d.sync += initialised.eq(1)
                    m.next = "Idle"
            # A candidate sinks.
            with m.State("Look"):
                m.d.comb += pending.o.ready.eq(1)
                m.d.sync += [pair.eq(base.data), first.eq(base.data)]
                m.next = "Idle"
                with m.If(x > root.data):
                    m.next = "Read"
            with m.State("Read"):
                m.next = "Register"
            with m.State("Register"):
                m.next = "Compare"
            with m.State("Compare"):
                m.d.sync += [left_worse.eq(left < right), over_left.eq(x > left), over_right.eq(x > right)]
                m.next = "Move"
            with m.State("Move"):
                m.d.comb += value.eq(Mux(left_worse, left, right))
                m.next = "Place"
                with m.If(Mux(left_worse, over_left, over_right)):
                    m.d.comb += [
                        write_root.eq(at_root),
                        write_left.eq(~at_root & ~hole_right),
                        write_right.eq(~at_root & hole_right),
                    ]
                    m.d.sync += [
                        at_root.eq(0),
                        hole.eq(pair),
                        hole_right.eq(~left_worse),
                        node.eq(Cat(left_worse, node) + Mux(left_worse, 0, 2)),
                    ]
                    m.next = "Follow"
            with m.State("Follow"):
                m.d.sync += pair.eq(first + node)
                m.next = "Read"
                with m.If(leaf):
                    m.next = "Place"
            with m.State("Place"):
                m.d.comb += [
                    value.eq(x),
                    write_root.eq(at_root),
                    write_left.eq(~at_root & ~hole_right),
                    write_right.eq(~at_root & hole_right),
                ]
                m.next = "Idle"
            # Root, then left and right of every pair but the last right one.
            with m.State("Give-Root"):
                m.d.sync += [row.eq(~root.data[:INDEX_BITS]), pair.eq(base.data), final.eq(0), begun.eq(0)]
                m.next = "Give"
            with m.State("Give"):
                m.d.comb += self.chosen.valid.eq(1)
                with m.If(self.chosen.ready):
                    m.next = "Give-Read"
                    with m.If(fill == job.pairs):
                        m.d.sync += [fill.eq(0), lane.eq(lane + 1)]
                        m.next = "Give-Root"
                        with m.If(final):
                            m.next = "Idle"
            with m.State("Give-Read"):
                m.next = "Give-Register"
            with m.State("Give-Register"):
                m.next = "Give-Next"
            with m.State("Give-Next"):
                m.d.sync += [row.eq(~Mux(begun, right, left)[:INDEX_BITS]), begun.eq(~begun)]
                with m.If(begun):
                    m.d.sync += pair.eq(pair + 1)
                with m.If(begun | (fill == job.pairs - 1)):
                    m.d.sync += [fill.eq(fill + 1), final.eq((fill == job.pairs - 1) & (lane == job.last_lane))]
                m.next = "Give"
        return fsm.ongoing("Idle")
