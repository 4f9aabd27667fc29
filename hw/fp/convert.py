"""Conversions between integers and binary32. Golden: `golden.fp.from_int`, `to_int8`, `to_fixed`."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tellme.hw.fp.format import BIAS, classify
from tellme.hw.fp.shift import Normaliser, shift_right_sticky
from tellme.hw.pipeline import register, wire


class IntToFloat(wiring.Component):
    """The binary32 value nearest to a signed integer, one each cycle; 2 cycles of latency, 4 above 25 bits.

    Parameters
    ----------
    width : bits of the integer, 2..64.

    Interface attributes
    --------------------
    i : signed integer.
    o : 32-bit pattern.

    Raises
    ------
    ValueError : for another width.
    """

    def __init__(self, width: int) -> None:
        if not 2 <= width <= 64:
            raise ValueError(f"width of an integer must be from 2 to 64, not {width}")
        self.width = width
        self.delay = 2 if width <= 25 else 4
        super().__init__({"i": In(signed(width)), "o": Out(32)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        w = self.width

        # 1: magnitude and its coarse count of leading zeros, for which a wide one gets a cycle of its own
        negative = self.i[-1]
        magnitude = wire(m, ((self.i.as_unsigned() ^ negative.replicate(w)) + negative)[:w], "absolute")
        if w > 25:
            magnitude, negative = register(m, magnitude, "absolute_1"), register(m, negative, "negative_1")
        coarse = Normaliser.coarse(magnitude)
        magnitude, coarse = register(m, magnitude, "magnitude"), register(m, coarse, "coarse")
        negative = register(m, negative, "negative")

        # 2: leading one to the top
        mantissa, zeros = Normaliser.shift(m, magnitude, coarse, "normal")
        some = wire(m, magnitude.any(), "some")
        exponent = Mux(some, BIAS + w - 1 - zeros, 0)[:8]
        if w <= 25:  # A magnitude of 25 bits is 2^24: its last bit is zero.
            fraction = mantissa[-24:-1] if w >= 24 else Cat(Const(0, 24 - w), mantissa[:-1])
            m.d.sync += self.o.eq(Cat(fraction, exponent, negative & some))
            return m
        mantissa, exponent = register(m, mantissa, "mantissa"), register(m, exponent, "exponent")
        negative = register(m, negative & some, "negative_2")

        # 3: round
        increment = mantissa[-25] & (mantissa[-24] | mantissa[:-25].any())
        m.d.sync += self.o.eq(Cat((Cat(mantissa[-24:-1], exponent) + increment)[:31], negative))
        return m


class FloatToInt8(wiring.Component):
    """clip(rne(i), -128, 127), NaN gives 0; one each cycle, 2 cycles of latency.

    Interface attributes
    --------------------
    i : 32-bit pattern.
    o : signed 8-bit integer.
    """

    delay = 2

    i: In(32)
    o: Out(signed(8))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x = classify(self.i)

        # 1: 7 integer bits, one bit below them, and the rest as sticky; exponents 126..133 hold 1/2 <= |i| < 128
        shifted, lost = shift_right_sticky(m, x.mantissa[16:], (BIAS + 6 - x.exponent)[:3], "shift")
        shifted = register(m, shifted, "shifted")
        lost = register(m, lost | x.mantissa[:16].any(), "lost")
        small = register(m, (x.exponent < BIAS - 1) | x.nan, "small")
        large = register(m, (x.exponent > BIAS + 6) & ~x.nan, "large")
        negative = register(m, x.sign, "negative")

        # 2: round and give the sign: ~n + 1 - increment = -(n + increment)
        increment = shifted[0] & (shifted[1] | lost)
        value = Signal(9)
        m.d.comb += value.eq((Cat(shifted[1:], Const(0, 2)) ^ negative.replicate(9)) + (increment ^ negative))
        limit = Mux(negative, Const(-128, signed(8)), Const(127, signed(8)))
        over = value[7] & ~value[8]  # rounded up to +128
        m.d.sync += self.o.eq(Mux(small, 0, Mux(large | over, limit, value[:8].as_signed())))
        return m


class FloatToFixed(wiring.Component):
    """rne(i * 2^frac) saturated to a signed integer, NaN gives 0; one each cycle, 3 cycles of latency.

    Parameters
    ----------
    frac : fraction bits of the result, 0..64.
    width : bits of the result, 4..48.

    Interface attributes
    --------------------
    i : 32-bit pattern.
    o : signed integer.

    Raises
    ------
    ValueError : for parameters outside those ranges.
    """

    delay = 3

    def __init__(self, frac: int, width: int) -> None:
        if not 0 <= frac <= 64:
            raise ValueError(f"fraction bits must be from 0 to 64, not {frac}")
        if not 4 <= width <= 48:
            raise ValueError(f"width of a fixed-point result must be from 4 to 48, not {width}")
        self.frac = frac
        self.width = width
        super().__init__({"i": In(32), "o": Out(signed(width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        w = self.width
        x = classify(self.i)

        # 1: how far the leading one is below bit w-2; w-1 puts it at the rounding bit
        top = BIAS + w - 2 - self.frac
        right = Signal(signed(11))
        m.d.comb += right.eq(top - x.exponent)
        amount = register(m, right[: ceil_log2(w)], "amount")
        mantissa = register(m, x.mantissa, "mantissa")
        small = register(m, (right >= w) | x.zero | x.nan, "small")
        large = register(m, (right < 0) & ~x.nan, "large")
        negative = register(m, x.sign, "negative")

        # 2: w-1 integer bits, the rounding bit, and the rest as sticky
        wide = Cat(Const(0, max(0, w - 24)), mantissa)
        shifted, lost = shift_right_sticky(m, wide[-w:], amount, "shift")
        shifted = register(m, shifted, "shifted")
        lost = register(m, lost | wide[:-w].any(), "lost")
        small, large, negative = (
            register(m, s, f"{n}_2") for s, n in ((small, "small"), (large, "large"), (negative, "negative"))
        )

        # 3: round and give the sign
        increment = shifted[0] & (shifted[1] | lost)
        value = Signal(w + 1)
        m.d.comb += value.eq((Cat(shifted[1:], Const(0, 2)) ^ negative.replicate(w + 1)) + (increment ^ negative))
        least = -(1 << (w - 1))
        limit = Mux(negative, Const(least, signed(w)), Const(~least, signed(w)))
        over = value[w - 1] & ~value[w]
        m.d.sync += self.o.eq(Mux(small, 0, Mux(large | over, limit, value[:w].as_signed())))
        return m
