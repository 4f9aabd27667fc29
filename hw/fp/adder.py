"""binary32 sum and difference. Golden: `golden.fp.add`, `golden.fp.sub`."""

from amaranth.hdl import Cat, Const, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tellme.hw.fp.format import classify, pack
from tellme.hw.fp.shift import Normaliser, shift_right_sticky
from tellme.hw.pipeline import delay_line, register, wire


class Adder(wiring.Component):
    """Sum or difference of two binary32 values, one each cycle; 5 cycles of latency.

    Interface attributes
    --------------------
    a, b : operands (32-bit patterns).
    subtract : 1 for a - b.
    o : result (32-bit pattern).
    """

    delay = 5

    a: In(32)
    b: In(32)
    subtract: In(1)
    o: Out(32)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b = classify(self.a), classify(self.b)
        b_sign = b.sign ^ self.subtract

        # 1: order by magnitude; a zero (or subnormal) operand gets an empty mantissa
        swap = wire(m, self.b[:31] > self.a[:31], "swap")
        ma = wire(m, Mux(a.zero, 0, a.mantissa), "ma")
        mb = wire(m, Mux(b.zero, 0, b.mantissa), "mb")
        large = register(m, Mux(swap, mb, ma), "large")
        small = register(m, Mux(swap, ma, mb), "small")
        exponent = register(m, Mux(swap, b.exponent, a.exponent), "exponent")
        distance = register(m, Mux(swap, b.exponent - a.exponent, a.exponent - b.exponent)[:8], "distance")
        differ = register(m, a.sign ^ b_sign, "differ")
        sign = register(m, Mux(swap, b_sign, a.sign), "sign")
        zero_sign = register(m, a.sign & b_sign, "zero_sign")
        inf = register(m, a.inf | b.inf, "inf")
        nan = register(m, a.nan | b.nan | (a.inf & b.inf & (a.sign ^ b_sign)), "nan")

        # 2: align by all but the last bit of the distance, keeping two bits below the mantissa
        aligned, lost = shift_right_sticky(m, Cat(Const(0, 2), small), distance[1:5], "align", step=2)
        far = distance[5:].any()
        aligned = register(m, Mux(far, 0, aligned), "aligned")
        lost = register(m, lost, "lost")  # of no consequence when far: not even a borrow survives rounding
        odd = register(m, distance[0] & ~far, "odd")
        large = register(m, large, "large_2")
        differ = register(m, differ, "differ_2")
        exponent = delay_line(m, exponent, 2, "exponent")
        zero_sign = delay_line(m, zero_sign, 2, "zero_sign")
        sign, inf, nan = (delay_line(m, s, 2, n) for s, n in ((sign, "sign"), (inf, "inf"), (nan, "nan")))

        # 3: last bit of the alignment, and the sum; the larger is the minuend, so it is never negative
        addend = wire(m, Cat(lost | (odd & aligned[0]), Mux(odd, aligned >> 1, aligned)[:26]), "addend")
        minuend = Cat(Const(0, 3), large)
        # One carry chain: its lowest bit makes the carry that completes a subtraction.
        total = wire(m, (Cat(differ, minuend) + Cat(differ, addend ^ differ.replicate(27)))[1:], "sum")
        total = wire(m, Cat(total[:27], total[27] & ~differ), "magnitude")
        coarse = Normaliser.coarse(total)
        total = register(m, total, "total")
        coarse = register(m, coarse, "coarse")

        # 4: normalise
        shifted, zeros = Normaliser.shift(m, total, coarse, "normal")
        some = wire(m, total.any(), "some")
        mantissa = register(m, shifted, "mantissa")
        exponent = register(m, exponent + 1 - zeros, "exponent_4")
        cancelled = register(m, ~some, "cancelled")
        negative = register(m, Mux(some, sign, zero_sign), "negative")
        ones = register(m, inf | nan, "ones")
        invalid = register(m, nan, "invalid")

        # 5: round and pack; below 2^-126 the sum is exact, so the exponent before rounding decides
        under = exponent[-1] | ~exponent.any()
        increment = mantissa[3] & (mantissa[4] | mantissa[:3].any())
        rounded = wire(m, (Cat(mantissa[4:27], exponent[:8]) + increment)[:31], "rounded")
        over = exponent[:8].all()  # a fraction that rounds up into this exponent is zero, an infinity already
        m.d.sync += self.o.eq(pack(rounded, negative, cancelled | under | ones, ones, invalid, over))
        return m
