"""Factors of the results of attention."""

from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In

from tellme.golden.fp import MANTISSA_BITS
from tellme.hw.attention.block import EXPONENT_BITS, Sizes
from tellme.hw.attention.signatures import FactorPort
from tellme.hw.fp import IntToFloat, Multiplier, Reciprocal
from tellme.hw.pipeline import delay_line


class Factors(wiring.Component):
    """2**(e - 119) / L of `pipes` queries, one after the other, kept by query for the unit's results.

    Interface attributes
    --------------------
    start, place, totals, exponents : pulse with {parity, first query}, the sums L of P, and e; at most every `pipes`
    cycles.
    factor : read port.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        self._to_float = IntToFloat(sizes.total_bits + 1)
        self._reciprocal_delay = self._to_float.delay + Reciprocal.delay
        self._factor_delay = self._reciprocal_delay + Multiplier.delay
        self.delay = 1 + self._factor_delay + sizes.pipes + 1
        """From `start` to the cycle from which all can be read."""
        super().__init__(
            {
                "start": In(1),
                "place": In(1 + sizes.query_bits),
                "totals": In(data.ArrayLayout(sizes.total_bits, sizes.pipes)),
                "exponents": In(data.ArrayLayout(EXPONENT_BITS, sizes.pipes)),
                "factor": In(FactorPort(sizes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pipes = self.sizes.pipes
        left = Signal(pipes)
        totals = [Signal(self.sizes.total_bits, name=f"total_{i}", reset_less=True) for i in range(pipes)]
        units = [Signal(8, name=f"unit_{i}", reset_less=True) for i in range(pipes)]
        place = Signal(1 + self.sizes.query_bits, reset_less=True)
        with m.If(self.start):
            m.d.sync += [left.eq((1 << pipes) - 1), place.eq(self.place)]
            m.d.sync += [totals[i].eq(self.totals[i]) for i in range(pipes)]
            # 2**(e - 119), or infinite: a biased exponent.
            m.d.sync += [units[i].eq(Mux(e > 246, 255, e + 8)) for i, e in enumerate(self.exponents)]
        with m.Else():
            m.d.sync += [left.eq(left >> 1), place.eq(place + 1)]
            for i in range(pipes - 1):
                m.d.sync += [totals[i].eq(totals[i + 1]), units[i].eq(units[i + 1])]

        m.submodules.to_float = to_float = self._to_float
        m.submodules.reciprocal = reciprocal = Reciprocal()
        m.submodules.multiply = multiply = Multiplier()
        unit = delay_line(m, units[0], self._reciprocal_delay, "unit")
        m.d.comb += [
            to_float.i.eq(totals[0]),
            reciprocal.i.eq(to_float.o),
            multiply.a.eq(reciprocal.o),
            multiply.b.eq(Cat(Const(0, MANTISSA_BITS), unit)),
        ]
        m.submodules.factors = memory = Memory(shape=32, depth=2 << self.sizes.query_bits, init=[])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            write.en.eq(delay_line(m, left[0], self._factor_delay, "write", reset_less=False)),
            write.addr.eq(delay_line(m, place, self._factor_delay, "place")),
            write.data.eq(multiply.o),
            read.addr.eq(self.factor.address),
            self.factor.data.eq(read.data),
        ]
        return m
