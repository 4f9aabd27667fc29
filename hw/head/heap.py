"""The candidates of every head lane, in heaps."""

from __future__ import annotations

import math
from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.screen import MAX_CANDIDATES, MAX_PLANES, MAX_ROWS, SCALE_BITS
from tellme.hw.interfaces import count_bits
from tellme.hw.primitives import deep_ram

INDEX_BITS = clog2(MAX_ROWS)
"""Of a row of the head."""
CANDIDATE_BITS = clog2(MAX_CANDIDATES + 1)
"""Of a number of candidates of a lane."""
CHOSEN = data.StructLayout({"row": INDEX_BITS, "last": 1})
"""A row that is to be read, and whether it is the last of a job."""


def score_bits(config: AcceleratorConfig) -> int:
    """Of a score, signed."""
    return config.screen_width + SCALE_BITS + clog2(MAX_PLANES)


def key_bits(config: AcceleratorConfig) -> int:
    """Of a candidate as a number that orders candidates: the complement of its row, above it its score, as an unsigned number that
    grows with it. Larger is better."""
    return score_bits(config) + INDEX_BITS


def entry_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A candidate to sort in: the ordinal of its lane among the head lanes, its key."""
    return data.StructLayout({"key": key_bits(config), "lane": clog2(config.lanes)})


class _State:
    """What the states of the heaps work on."""

    def __init__(self, config: AcceleratorConfig) -> None:
        width, depth = key_bits(config), config.screen_entries // 2
        self.lane = Signal(clog2(config.lanes))
        self.x = Signal(width, reset_less=True)
        """What is sorted in."""
        self.node = Signal(CANDIDATE_BITS)
        """Whose place is free; it is at `root`, or in the pair `hole`, on the `right` or left."""
        self.at_root, self.hole, self.hole_right = Signal(), Signal(range(depth)), Signal()
        self.first, self.pair = Signal(range(depth)), Signal(range(depth))
        """The heap's first pair; the pair that is read."""
        self.left, self.right = Signal(width, reset_less=True), Signal(width, reset_less=True)
        """What was read two cycles ago."""
        self.value = Signal(width)
        self.address = Signal(range(depth))
        self.write_left, self.write_right, self.write_root, self.write_first = Signal(), Signal(), Signal(), Signal()
        self.count = Signal(CANDIDATE_BITS - 1)
        """Pairs that are emptied, or given."""
        self.pairs, self.last_pair = Signal(CANDIDATE_BITS - 1), Signal(CANDIDATE_BITS - 1)
        """Of a lane, and the last of them."""
        self.last_lane = Signal(clog2(config.lanes))
        """The last head lane."""

    def put(self) -> list[Any]:
        """`value` goes to the free place."""
        return [
            self.write_root.eq(self.at_root),
            self.write_left.eq(~self.at_root & ~self.hole_right),
            self.write_right.eq(~self.at_root & self.hole_right),
        ]


class CandidateHeaps(wiring.Component):
    """Keeps the best candidates of each head lane. Golden: `golden.screen.select`.

    A lane's candidates are a heap with the worst at its root. What is better replaces it and sinks to its place: as long as a
    child is worse, the worse one moves up. Roots are in distributed RAM, the other nodes in two deep memories for left and right
    children: node n's are nodes 2n + 1 and 2n + 2, in pair n of the heap.

    Parameters
    ----------
    config : lanes, accumulator width, entries.

    Interface attributes
    --------------------
    start : pulse; the next two stay stable until the next.
    head_count, candidates : head lanes, and candidates of each.
    ready : from `start` on low, until the heaps are empty.
    entries : candidates to sort in, of which those are dropped that are worse than their lane's root.
    idle : nothing is being done.
    worst_lane, worst_key; root_lane, root_key : roots of lanes (by ordinal), no latency.
    give : pulse while idle: candidates are wanted.
    chosen : their rows, lane by lane; the first of each has the smallest score.
    chosen_score : with a row, its score; only with `ternary_head`.
    """

    step = 5
    """Cycles in which a candidate sinks a level: children are read (two), compared, one is moved, and its own follow."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        lane = clog2(config.lanes)
        scores = {"chosen_score": Out(signed(score_bits(config)))} if config.ternary_head else {}
        super().__init__(
            scores
            | {
                "start": In(1),
                "head_count": In(count_bits(config)),
                "candidates": In(CANDIDATE_BITS),
                "ready": Out(1),
                "entries": In(stream.Signature(entry_layout(config))),
                "idle": Out(1),
                "worst_lane": In(lane),
                "worst_key": Out(key_bits(config)),
                "root_lane": In(lane),
                "root_key": Out(key_bits(config)),
                "give": In(1),
                "chosen": Out(stream.Signature(CHOSEN)),
            }
        )

    @classmethod
    def sort_cycles(cls, candidates: int) -> float:
        """Cycles in which a candidate is sorted in, about: it sinks nearly to the end."""
        return 3 + cls.step * (math.log2(candidates) - 1)

    @classmethod
    def expected_cycles(cls, candidates: int, rows: int) -> int:
        """Cycles in which the candidates of a lane are emptied and sorted in, of rows in random order, about: the n-th row is one of
        the best so far with the probability N/n."""
        return round(candidates / 2 + candidates * (1 + math.log(rows / candidates)) * cls.sort_cycles(candidates))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        s = _State(self.config)
        m.d.sync += [
            s.last_lane.eq(self.head_count - 1),
            s.pairs.eq(self.candidates >> 1),
            s.last_pair.eq((self.candidates >> 1) - 1),
        ]
        root, first = self._memories(m, platform, s)
        with m.FSM() as fsm:
            with m.State("Idle"):
                m.d.sync += [
                    s.x.eq(self.entries.payload.key),
                    s.lane.eq(self.entries.payload.lane),
                    s.node.eq(0),
                    s.at_root.eq(1),
                    s.count.eq(0),
                ]
                with m.If(self.start):
                    m.d.sync += [self.ready.eq(0), s.lane.eq(0), s.pair.eq(0)]
                    m.next = "Prepare"
                with m.Elif(self.give):
                    m.d.sync += s.lane.eq(0)
                    m.next = "Give-Root"
                with m.Elif(self.entries.valid):
                    m.next = "Look"
            self._empty(m, s)
            self._sink(m, s, root, first)
            self._give(m, s, root, first)
        m.d.comb += self.idle.eq(fsm.ongoing("Idle"))
        return m

    def _memories(self, m: Module, platform: object, s: _State) -> tuple[Any, Any]:
        """Returns the root and the first pair of `lane`."""
        config = self.config
        width, depth, lanes = key_bits(config), config.screen_entries // 2, max(2, config.lanes)
        for name, enable, out in (("left", s.write_left, s.left), ("right", s.write_right, s.right)):
            memory = Memory(shape=width, depth=depth, init=[], attrs=deep_ram(platform))
            m.submodules[name] = memory
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [
                write.addr.eq(s.address),
                write.data.eq(s.value),
                write.en.eq(enable),
                read.addr.eq(s.pair),
                read.en.eq(1),
            ]
            m.d.sync += out.eq(read.data)
        m.submodules.roots = roots = Memory(shape=width, depth=lanes, init=[])
        m.submodules.firsts = firsts = Memory(shape=exact_log2(depth), depth=lanes, init=[])
        set_root, set_first = roots.write_port(), firsts.write_port()
        root, worst, other = (roots.read_port(domain="comb") for _ in range(3))
        first = firsts.read_port(domain="comb")
        m.d.comb += [
            s.address.eq(s.hole),
            set_root.addr.eq(s.lane),
            set_root.data.eq(s.value),
            set_root.en.eq(s.write_root),
            set_first.addr.eq(s.lane),
            set_first.data.eq(s.pair),
            set_first.en.eq(s.write_first),
            root.addr.eq(s.lane),
            first.addr.eq(s.lane),
            worst.addr.eq(self.worst_lane),
            self.worst_key.eq(worst.data),
            other.addr.eq(self.root_lane),
            self.root_key.eq(other.data),
        ]
        return root.data, first.data

    def _empty(self, m: Module, s: _State) -> None:
        """Heaps of nothing: keys that all others beat. The last pair has no right child: a key that none beats."""
        last = s.count == s.last_pair
        with m.State("Prepare"):  # a cycle behind the start: pairs are known
            m.next = "Empty"
        with m.State("Empty"):
            m.d.comb += [
                s.address.eq(s.pair),
                s.value.eq(0),
                s.write_left.eq(1),
                s.write_right.eq(~last),
                s.write_first.eq(s.count == 0),
                s.write_root.eq(s.count == 0),
            ]
            m.d.sync += s.count.eq(s.count + 1)
            with m.If(last):
                m.next = "Empty-Last"
            with m.Else():
                m.d.sync += s.pair.eq(s.pair + 1)
        with m.State("Empty-Last"):
            m.d.comb += [s.address.eq(s.pair), s.value.eq(~Const(0, len(s.value))), s.write_right.eq(1)]
            m.d.sync += [s.pair.eq(s.pair + 1), s.count.eq(0), s.lane.eq(s.lane + 1)]
            m.next = "Empty"
            with m.If(s.lane == s.last_lane):
                m.d.sync += self.ready.eq(1)
                m.next = "Idle"

    def _sink(self, m: Module, s: _State, root: Any, first: Any) -> None:
        """A candidate replaces the root, and sinks."""
        left_worse, over_left, over_right = Signal(), Signal(), Signal()
        with m.State("Look"):
            m.d.comb += self.entries.ready.eq(1)
            m.d.sync += [s.pair.eq(first), s.first.eq(first)]
            m.next = "Idle"
            with m.If(s.x > root):
                m.next = "Read"
        with m.State("Read"):
            m.next = "Register"
        with m.State("Register"):
            m.next = "Compare"
        with m.State("Compare"):
            m.d.sync += [left_worse.eq(s.left < s.right), over_left.eq(s.x > s.left), over_right.eq(s.x > s.right)]
            m.next = "Move"
        with m.State("Move"):
            m.d.comb += s.value.eq(Mux(left_worse, s.left, s.right))
            m.next = "Place"
            with m.If(Mux(left_worse, over_left, over_right)):
                m.d.comb += s.put()
                m.d.sync += [
                    s.at_root.eq(0),
                    s.hole.eq(s.pair),
                    s.hole_right.eq(~left_worse),
                    s.node.eq(Cat(left_worse, s.node) + Mux(left_worse, 0, 2)),
                ]
                m.next = "Follow"
        with m.State("Follow"):
            m.d.sync += s.pair.eq(s.first + s.node)
            m.next = "Read"
            with m.If(s.node >= s.pairs):  # it has no children
                m.next = "Place"
        with m.State("Place"):
            m.d.comb += [s.value.eq(s.x), *s.put()]
            m.next = "Idle"

    def _give(self, m: Module, s: _State, root: Any, first: Any) -> None:
        """Root, then left and right of every pair but the last right one."""
        final, on_right = Signal(), Signal()
        key = Signal(key_bits(self.config) if self.config.ternary_head else INDEX_BITS, reset_less=True)
        last = s.count == s.last_pair
        m.d.comb += [self.chosen.payload.row.eq(~key[:INDEX_BITS]), self.chosen.payload.last.eq(final)]
        if self.config.ternary_head:
            m.d.comb += self.chosen_score.eq(Cat(key[INDEX_BITS:-1], ~key[-1]).as_signed())
        with m.State("Give-Root"):
            m.d.sync += [key.eq(root), s.pair.eq(first), final.eq(0), on_right.eq(0)]
            m.next = "Give"
        with m.State("Give"):
            m.d.comb += self.chosen.valid.eq(1)
            with m.If(self.chosen.ready):
                m.next = "Give-Read"
                with m.If(s.count == s.pairs):
                    m.d.sync += [s.count.eq(0), s.lane.eq(s.lane + 1)]
                    m.next = "Give-Root"
                    with m.If(final):
                        m.next = "Idle"
        with m.State("Give-Read"):
            m.next = "Give-Register"
        with m.State("Give-Register"):
            m.next = "Give-Next"
        with m.State("Give-Next"):
            m.d.sync += [key.eq(Mux(on_right, s.right, s.left)), on_right.eq(~on_right)]
            with m.If(on_right):
                m.d.sync += s.pair.eq(s.pair + 1)
            with m.If(on_right | last):
                m.d.sync += [s.count.eq(s.count + 1), final.eq(last & (s.lane == s.last_lane))]
            m.next = "Give"
