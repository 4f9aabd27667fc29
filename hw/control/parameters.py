"""The registers of a pass in the widths of the hardware."""

from __future__ import annotations

from amaranth.hdl import Module, Mux
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.registers import MAX_SLOTS
from tellme.golden.screen import MAX_CANDIDATES
from tellme.hw.interfaces import PassParameters


class PassRegisters(wiring.Component):
    """Takes the registers that describe a pass and cuts them to the bits that a checked pass can have.

    `LaneCheck` sees them whole. What is derived comes a cycle late: two writes to registers are at least two cycles apart,
    and the start comes last.

    Interface attributes
    --------------------
    lanes, position, slot, program_length, context, slots, candidates : the registers.
    parameters : lanes of the pass.
    length, max_context, max_slots : program_length, context and slots, cut.
    wanted : candidates, cut; all ones, which no program can give, for numbers beyond it.
    bad_program : program_length is 0 or beyond max_descriptors.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.config = config
        numbers = data.ArrayLayout(32, config.lanes)
        super().__init__(
            {
                "lanes": In(32),
                "position": In(numbers),
                "slot": In(numbers),
                "program_length": In(32),
                "context": In(32, init=config.most_context),
                "slots": In(32, init=MAX_SLOTS),
                "candidates": In(32),
                "parameters": Out(PassParameters(config)),
                "length": Out(16),
                "max_context": Out(clog2(config.most_context + 1)),
                "max_slots": Out(clog2(MAX_SLOTS + 1)),
                "wanted": Out(clog2(MAX_CANDIDATES + 1)),
                "bad_program": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        p = self.parameters
        slot_bits = clog2(MAX_SLOTS)
        m.d.comb += [
            p.lanes.eq(self.lanes),
            self.length.eq(self.program_length),
            self.max_context.eq(self.context),
            self.max_slots.eq(self.slots),
        ]
        for i in range(c.lanes):
            m.d.comb += [p.position[i].eq(self.position[i]), p.slot[i].eq(self.slot[i])]
        for i in range(c.lanes - 1):
            m.d.sync += p.same_slot[i].eq(self.slot[i][:slot_bits] == self.slot[i + 1][:slot_bits])
        m.d.sync += self.wanted.eq(Mux(self.candidates[len(self.wanted) :].any(), ~0, self.candidates))
        m.d.sync += self.bad_program.eq((self.program_length == 0) | (self.program_length > c.max_descriptors))
        return m
