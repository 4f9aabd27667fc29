"""binary32 product. Golden: `golden.fp.mul`."""

from amaranth.hdl import Cat, Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tellme.hw.fp.dsp import CASCADE_SHIFT, multiply_add, positive
from tellme.hw.fp.format import classify, pack
from tellme.hw.pipeline import delay_line, register, wire


class Multiplier(wiring.Component):
    """Product of two binary32 values, one each cycle; 6 cycles of latency.

    The 24 x 24 bit product is a cascade of two DSP48E2: A, B and M registers, P of the first, P of the second.

    Interface attributes
    --------------------
    a, b : factors (32-bit patterns).
    o : product (32-bit pattern).
    """

    delay = 6

    a: In(32)
    b: In(32)
    o: Out(32)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b = classify(self.a), classify(self.b)

        # 1: input registers. 2, 3: M and P of the low part, A and M of the high part. 4: P of the high part: bits 17.. of
        # the product; what is below is only ever sticky
        exponents = register(m, a.exponent + b.exponent, "exponents")
        sign = register(m, a.sign ^ b.sign, "sign")
        a_zero, a_inf, a_nan = register(m, Cat(a.zero, a.inf, a.nan), "a_class")
        b_zero, b_inf, b_nan = register(m, Cat(b.zero, b.inf, b.nan), "b_class")
        ma, mb = positive(a.mantissa), b.mantissa
        low, cascade = multiply_add(m, platform, "low", ma, positive(mb[:CASCADE_SHIFT]), width=24 + CASCADE_SHIFT + 1)
        product, _ = multiply_add(
            m,
            platform,
            "high",
            ma,
            positive(mb[CASCADE_SHIFT:]),
            registers=2,
            cascade=cascade,
            width=49 - CASCADE_SHIFT,
        )
        product = product[: 48 - CASCADE_SHIFT]
        below = register(m, low[:CASCADE_SHIFT].any(), "below")
        nan = a_nan | b_nan | (a_inf & b_zero) | (a_zero & b_inf)
        special = register(m, Cat(a_zero | b_zero, a_inf | b_inf, nan, sign), "special")
        zero, inf, nan, sign = delay_line(m, special, 2, "special")
        biased = register(m, exponents - 127, "biased")
        biased = delay_line(m, biased, 2, "biased")

        # 5: normalise, and decide the rounding
        top = product[-1]
        mantissa = wire(m, Mux(top, product[-24:], product[-25:-1]), "mantissa")
        guard = Mux(top, product[-25], product[-26])
        sticky = product[:-26].any() | below | (top & product[-26])
        fraction = register(m, mantissa[:23], "fraction")
        increment = register(m, guard & (sticky | mantissa[0]), "increment")
        exponent = register(m, (biased + top)[:9], "exponent")
        under = biased[-1] | ((biased == 0) & ~top)  # before rounding: the exact value is below 2^-126
        cleared = register(m, zero | under | inf | nan, "cleared")
        ones = register(m, inf | nan, "ones")
        invalid = register(m, nan, "invalid")
        negative = register(m, sign, "negative")

        # 6: round and pack
        rounded = wire(m, (Cat(fraction, exponent) + increment)[:31], "rounded")
        over = exponent[8] | exponent[:8].all()  # a fraction that rounds up into 255 is zero, an infinity already
        m.d.sync += self.o.eq(pack(rounded, negative, cleared, ones, invalid, over))
        return m
