"""The queries of a phase in batches, for the first pass of the softmax."""

from __future__ import annotations

from amaranth import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import clog2
from tellme.hw.attention.block import Sizes
from tellme.hw.interfaces import QueryScalePort
from tellme.hw.pipeline import delay_line


class QueryBatches(wiring.Component):
    """Walks the queries of a phase, one a cycle, and gives them in batches of `pipes`, a batch ahead: lanes and scales.

    Interface attributes
    --------------------
    group : heads of a query group.
    phase, begin : the phase, stable from `begin`, which is looked at while `idle`, until `done`.
    idle : nothing is begun.
    query_scales : read port of the queries' scales.
    valid, last : a batch waits; it is the phase's last.
    active, lanes, scales : of the batch: queries that there are, and of each its lane and its scale.
    take : the batch is taken; the next is walked.
    end : pulse, the last batch is used up; then `done`, in the same cycle.
    done : pulse, the phase is done.
    """

    delay = 2
    """From the cycle that walks a batch's last query to `valid`."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        lane = clog2(sizes.config.lanes)
        super().__init__(
            {
                "group": In(8),
                "phase": In(sizes.phase),
                "begin": In(1),
                "idle": Out(1),
                "query_scales": Out(QueryScalePort(sizes.config)),
                "valid": Out(1),
                "last": Out(1),
                "active": Out(sizes.pipes),
                "lanes": Out(data.ArrayLayout(lane, sizes.pipes)),
                "scales": Out(data.ArrayLayout(32, sizes.pipes)),
                "take": In(1),
                "end": In(1),
                "done": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipes = self.sizes.pipes
        walking = Signal()
        lane = Signal.like(self.query_scales.lane)
        query = Signal(self.sizes.query_bits + 1)
        member = Signal(range(max(2, pipes)))
        end_query = Signal()
        m.d.comb += [
            member.eq(query & (pipes - 1)) if pipes & (pipes - 1) == 0 else member.eq(query % pipes),
            end_query.eq(query == self.phase.last_query),
        ]
        self._gather(m, walking, lane, member, end_query)
        self._walk(m, walking, lane, query, (member == pipes - 1) | end_query)
        return m

    def _gather(self, m: Module, walking: Signal, lane: Signal, member: Signal, end_query: Signal) -> None:
        """Lanes as they are walked, scales as they come, a cycle later."""
        pipes = self.sizes.pipes
        arriving = delay_line(m, walking, 1, "arriving", reset_less=False)
        arriving_member = delay_line(m, member, 1, "arriving_member")
        arriving_end = delay_line(m, (member == pipes - 1) | end_query, 1, "arriving_end")
        arriving_last = delay_line(m, end_query, 1, "arriving_last")
        for i in range(pipes):
            next_lane = Signal(lane.shape(), name=f"next_lane_{i}", reset_less=True)
            next_scale = Signal(32, name=f"next_scale_{i}", reset_less=True)
            with m.If(walking & (member == i)):
                m.d.sync += next_lane.eq(lane)
            with m.If(arriving & (arriving_member == i)):
                m.d.sync += next_scale.eq(self.query_scales.data)
            m.d.comb += [self.lanes[i].eq(next_lane), self.scales[i].eq(next_scale)]
        with m.If(arriving):
            m.d.sync += self.active.bit_select(arriving_member, 1).eq(1)
            with m.If(arriving_member == 0):
                m.d.sync += self.active.eq(1)
            with m.If(arriving_end):
                m.d.sync += [self.valid.eq(1), self.last.eq(arriving_last)]
        with m.If(self.take):
            m.d.sync += self.valid.eq(0)

    def _walk(self, m: Module, walking: Signal, lane: Signal, query: Signal, end_batch: object) -> None:
        """Query by query: heads of a lane, lanes of the phase; a pause behind each batch until it is taken."""
        phase = self.phase
        head = Signal(8)
        last_head = Signal(8)
        m.d.sync += last_head.eq(self.group - 1)
        m.d.comb += [self.query_scales.lane.eq(lane), self.query_scales.head.eq(phase.first_head + head)]
        with m.FSM():
            with m.State("Idle"):
                m.d.comb += self.idle.eq(1)
                m.d.sync += [lane.eq(phase.lane_lo), head.eq(0), query.eq(0)]
                with m.If(self.begin):
                    m.next = "Walk"
            with m.State("Walk"):
                m.d.comb += walking.eq(1)
                m.d.sync += [query.eq(query + 1), head.eq(head + 1)]
                with m.If(head == last_head):
                    m.d.sync += [head.eq(0), lane.eq(lane + 1)]
                with m.If(end_batch):
                    m.next = "Wait"
            with m.State("Wait"):
                with m.If(self.take):
                    m.next = "Walk"
                    with m.If(self.last):
                        m.next = "Last"
            with m.State("Last"):
                with m.If(self.end):
                    m.d.comb += self.done.eq(1)
                    m.next = "Idle"
