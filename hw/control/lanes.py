"""Looks at the lanes of a pass before it starts."""

from __future__ import annotations

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.registers import MAX_SLOTS, register
from tellme.hw.control.registers import layout


class LaneCheck(wiring.Component):
    """Whether the registers of a pass make one: counts, positions and slots. Golden: `golden.check.bad_lanes`.

    Lanes from 1 to config.lanes, head lanes among them; context from 1 to max_context, slots from 1 to 256; every
    position below context and every slot below slots; lanes of a slot neighbours, each a position behind the one before.

    Interface attributes
    --------------------
    start : pulse; the registers must have been stable for two cycles, and stay so.
    busy : from the cycle after `start` on, for lanes + 3 cycles; `bad` is valid when it has fallen.
    lanes, head_lanes, context, slots, position, slot : the registers.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        numbers = data.ArrayLayout(32, config.lanes)
        super().__init__(
            {
                "start": In(1),
                "lanes": In(32),
                "head_lanes": In(layout(register("head_lanes"))),
                "context": In(32, init=config.most_context),
                "slots": In(32, init=MAX_SLOTS),
                "position": In(numbers),
                "slot": In(numbers),
                "busy": Out(1),
                "bad": Out(1),
            }
        )

    @staticmethod
    def expected_cycles(*, lanes: int) -> int:
        """Cycles of `busy`."""
        return lanes + 3

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        slot_bits = clog2(MAX_SLOTS)

        # Numbers that are beyond every limit, known ahead: the lanes' multiplexers need only the low bits.
        position_bits = clog2(c.most_context)
        large = Signal(c.lanes)
        counts = Signal(4)
        head_end = Signal(9)
        m.d.sync += [
            *(
                large[i].eq(self.position[i][position_bits:].any() | self.slot[i][slot_bits:].any())
                for i in range(c.lanes)
            ),
            head_end.eq(self.head_lanes.first + self.head_lanes.count),
            counts.eq(
                Cat(
                    (self.lanes == 0) | (self.lanes > c.lanes),
                    head_end > self.lanes[:9],
                    (self.context == 0) | (self.context > c.most_context),
                    (self.slots == 0) | (self.slots > MAX_SLOTS),
                )
            ),
        ]

        # A lane a cycle.
        lane, left = Signal(clog2(c.lanes)), Signal(clog2(c.lanes + 1))
        asking, first = Signal(), Signal()
        with m.If(asking):
            m.d.sync += [lane.eq(lane + 1), left.eq(left - 1), first.eq(0)]
            with m.If(left == 1):
                m.d.sync += asking.eq(0)
        with m.If(self.start):
            m.d.sync += [
                lane.eq(0),
                left.eq(Mux(self.lanes[: len(left)] == 0, 1, self.lanes)),
                asking.eq(1),
                first.eq(1),
            ]

        # First cycle: its numbers.
        position, slot = Signal(position_bits), Signal(slot_bits)
        below = Signal(c.lanes)  # lanes before it
        valid1, first1, large1 = Signal(), Signal(), Signal()
        m.d.sync += [
            valid1.eq(asking),
            first1.eq(first),
            position.eq(Array(p[:position_bits] for p in self.position)[lane]),
            slot.eq(Array(s[:slot_bits] for s in self.slot)[lane]),
            large1.eq(large.bit_select(lane, 1)),
            below.eq((1 << lane) - 1),
        ]
        # Second: against the limits, against the lane before, and against every lane's slot.
        expected, last_slot = Signal(position_bits + 1), Signal(slot_bits)
        valid2, beyond, behind, neighbours = Signal(), Signal(), Signal(), Signal()
        same = Signal(c.lanes)
        m.d.sync += [
            valid2.eq(valid1),
            beyond.eq(large1 | (position >= self.context[: position_bits + 1]) | (slot >= self.slots[: slot_bits + 1])),
            neighbours.eq(~first1 & (slot == last_slot)),
            behind.eq(position == expected),
            *(same[i].eq(below[i] & (self.slot[i][:slot_bits] == slot)) for i in range(c.lanes)),
        ]
        with m.If(valid1):
            m.d.sync += [expected.eq(position + 1), last_slot.eq(slot)]
        # Third: a verdict.
        valid3, wrong = Signal(), Signal()
        m.d.sync += [
            valid3.eq(valid2),
            wrong.eq(valid2 & (beyond | Mux(neighbours, ~behind, same.any()))),
        ]
        with m.If(wrong):
            m.d.sync += self.bad.eq(1)
        with m.If(self.start):
            m.d.sync += self.bad.eq(counts.any())
        m.d.comb += self.busy.eq(asking | valid1 | valid2 | valid3)
        return m
