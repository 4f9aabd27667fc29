"""Factors of the results of attention."""

from __future__ import annotations

from amaranth import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In

from tellme.golden.attention import RATIO_MAX
from tellme.hw.attention.block import Sizes
from tellme.hw.attention.signatures import FactorPort
from tellme.hw.fp import IntToFloat, Multiplier, Reciprocal
from tellme.hw.fp.format import float_const
from tellme.hw.pipeline import delay_line


class Factors(wiring.Component):
    """vmax / 65535 / L * 2**24 of `pipes` queries, one after the other, kept by query for the unit's results.

    Interface attributes
    --------------------
    start, place, totals, vmax : pulse with {parity, first query}, the sums L of P, and the largest V scales; at most
    every `pipes` cycles.
    factor : read port.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self._to_float = IntToFloat(sizes.total_bits + 1)
        self._reciprocal_delay = self._to_float.delay + Reciprocal.delay
        self._factor_delay = max(Multiplier.delay, self._reciprocal_delay) + 2 * Multiplier.delay
        self.delay = 1 + self._factor_delay + sizes.pipes + 1
        """From `start` to the cycle from which all can be read."""
        super().__init__(
            {
                "start": In(1),
                "place": In(1 + sizes.query_bits),
                "totals": In(data.ArrayLayout(sizes.total_bits, sizes.pipes)),
                "vmax": In(data.ArrayLayout(32, sizes.pipes)),
                "factor": In(FactorPort(sizes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipes = self.sizes.pipes
        left = Signal(pipes)
        totals = [Signal(self.sizes.total_bits, name=f"total_{i}", reset_less=True) for i in range(pipes)]
        vmax = [Signal(32, name=f"vmax_{i}", reset_less=True) for i in range(pipes)]
        place = Signal(1 + self.sizes.query_bits, reset_less=True)
        with m.If(self.start):
            m.d.sync += [left.eq((1 << pipes) - 1), place.eq(self.place)]
            m.d.sync += [totals[i].eq(self.totals[i]) for i in range(pipes)]
            m.d.sync += [vmax[i].eq(self.vmax[i]) for i in range(pipes)]
        with m.Else():
            m.d.sync += [left.eq(left >> 1), place.eq(place + 1)]
            for i in range(pipes - 1):
                m.d.sync += [totals[i].eq(totals[i + 1]), vmax[i].eq(vmax[i + 1])]

        m.submodules.to_float = to_float = self._to_float
        m.submodules.reciprocal = reciprocal = Reciprocal()
        m.submodules.scale = scale = Multiplier()
        m.submodules.multiply = multiply = Multiplier()
        m.submodules.shift = shift = Multiplier()
        scaled = delay_line(m, scale.o, max(0, self._reciprocal_delay - scale.delay), "scaled")
        inverted = delay_line(m, reciprocal.o, max(0, scale.delay - self._reciprocal_delay), "inverted")
        m.d.comb += [
            to_float.i.eq(totals[0]),
            reciprocal.i.eq(to_float.o),
            scale.a.eq(vmax[0]),
            scale.b.eq(float_const(1 / RATIO_MAX)),
            multiply.a.eq(scaled),
            multiply.b.eq(inverted),
            shift.a.eq(multiply.o),
            shift.b.eq(float_const(1 << 24)),
        ]
        m.submodules.factors = memory = Memory(shape=32, depth=2 << self.sizes.query_bits, init=[])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            write.en.eq(delay_line(m, left[0], self._factor_delay, "write", reset_less=False)),
            write.addr.eq(delay_line(m, place, self._factor_delay, "place")),
            write.data.eq(shift.o),
            read.addr.eq(self.factor.address),
            self.factor.data.eq(read.data),
        ]
        return m
