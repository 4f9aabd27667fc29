"""Reciprocal, reciprocal square root and exponentials by tables and quadratics. Golden: `golden.fp`."""

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Shape, Signal, Value
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden import fp
from tellme.hw.fp.dsp import CASCADE_SHIFT, fits, multiply_add, positive
from tellme.hw.fp.format import BIAS, classify
from tellme.hw.fp.shift import shift_right_sticky
from tellme.hw.pipeline import delay_line, register


class Quadratic(wiring.Component):
    """`golden.fp.Table.mantissa`, one each cycle; 6 cycles of latency.

    Table, M and P of c2 * d + c1, A, M and P of t * d + c0: two DSP48E2 (three for a d of more than 17 bits).

    Parameters
    ----------
    table : coefficients.
    extra : bits that d has more than the table's.

    Interface attributes
    --------------------
    index : interval.
    d : distance in it.
    q : mantissa in units of 2^-23, 2^23..2^24.
    """

    delay = 6

    def __init__(self, table: fp.Table, extra: int = 0) -> None:
        self.table = table
        self.extra = extra
        super().__init__(
            {
                "index": In(range(len(table.c0))),
                "d": In(table.x_bits + extra),
                "q": Out(fp.MANTISSA_BITS + 2),
            }
        )

    def _rom(self, m: Module, name: str, coefficients: np.ndarray, address: Value) -> Value:
        """A coefficient, one cycle behind its address."""
        values = [int(c) for c in coefficients]
        shape = Shape.cast(range(min(-1, *values), max(values) + 1))  # signed
        rom = memory.Memory(shape=shape, depth=len(values), init=values)
        m.submodules[name] = rom
        port = rom.read_port()
        m.d.comb += port.addr.eq(address)
        return port.data

    def elaborate(self, platform: object) -> Module:
        m = Module()
        t = self.table
        index = self.index
        c2 = self._rom(m, "c2", t.c2, index)
        c1 = self._rom(m, "c1", t.c1, index)
        c0 = self._rom(m, "c0", t.c0, delay_line(m, index, 3, "index"))
        d = delay_line(m, self.d, 1, "d")
        # An added coefficient stands above the lowest bits of the product, so that cutting their sum cuts the product.
        shift = t.f2 + t.x_frac - t.f1
        slopes = t.c1 + ((t.c2 * ((1 << t.x_bits) - 1)) >> shift)
        low, high = min(-1, t.c1.min(), slopes.min()), max(t.c1.max(), slopes.max())
        bits = Shape.cast(range(int(low), int(high) + 1)).width
        square = positive(d[self.extra :])
        total, _ = multiply_add(
            m, platform, "square", c2, square, registers=0, c=Cat(Const(0, shift), c1).as_signed(), width=bits + shift
        )
        slope = total[shift:].as_signed()
        unit = t.f1 + t.x_frac + self.extra
        c0 = Cat(Const(0, unit - t.f0), c0).as_signed()
        factor = positive(delay_line(m, d, 2, "d_linear"))
        if fits(slope, factor):
            total, _ = multiply_add(m, platform, "linear", slope, factor, c=c0, width=unit + 3)
            m.d.comb += self.q.eq(total[unit - fp.MANTISSA_BITS :])
        else:
            # A distance too wide for a multiplier: its low part in one, the rest in another; cut to bits 17 and up.
            low, high = positive(factor[:CASCADE_SHIFT]), factor[CASCADE_SHIFT:].as_signed()
            _, cascade = multiply_add(m, platform, "low", slope, low, registers=0, width=len(slope) + len(low))
            total, _ = multiply_add(
                m,
                platform,
                "high",
                slope,
                high,
                c=c0[CASCADE_SHIFT:].as_signed(),
                cascade=cascade,
                width=unit + 3 - CASCADE_SHIFT,
            )
            m.d.comb += self.q.eq(total[unit - fp.MANTISSA_BITS - CASCADE_SHIFT :])
        return m


class Reciprocal(wiring.Component):
    """1/i, one each cycle; 7 cycles of latency, at most 1 ulp off.

    Interface attributes
    --------------------
    i, o : 32-bit patterns.
    """

    delay = Quadratic.delay + 1

    i: In(32)
    o: Out(32)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.quadratic = quadratic = Quadratic(fp.RECIPROCAL)
        x = classify(self.i)
        m.d.comb += [quadratic.index.eq(self.i[16:23]), quadratic.d.eq(self.i[:16])]
        # 2/m in [1, 2) belongs to the biased exponent 253 - e, and 2 (of m = 1) to the next.
        exponent = register(m, 2 * BIAS - 1 - x.exponent, "exponent")
        special = register(m, Cat(x.sign, x.zero, x.nan), "special")
        exponent = delay_line(m, exponent, Quadratic.delay - 2, "exponent")
        sign, infinite, nan = delay_line(m, special, Quadratic.delay - 1, "special")
        # Both cases are ready when the mantissa says which it is. An infinite i has the exponent -2 here.
        following = register(m, (exponent + 1)[:8], "following")
        under, still_under = register(m, exponent <= 0, "under"), register(m, exponent < 0, "still_under")
        exponent = register(m, exponent[:8], "exponent_last")
        top = quadratic.q[-1]
        result = Mux(top, following, exponent)
        ones = infinite | nan
        cleared = Mux(top, still_under, under) | ones
        m.d.sync += self.o.eq(
            Cat(
                Mux(cleared, 0, quadratic.q[:22])[:22],
                (quadratic.q[22] & ~cleared) | nan,
                Mux(ones, 0xFF, Mux(cleared, 0, result)),
                sign & ~nan,
            )
        )
        return m


class ReciprocalSqrt(wiring.Component):
    """1/sqrt(i), one each cycle; 7 cycles of latency, at most 1 ulp off.

    Interface attributes
    --------------------
    i, o : 32-bit patterns.
    """

    delay = Quadratic.delay + 1

    i: In(32)
    o: Out(32)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.quadratic = quadratic = Quadratic(fp.RSQRT)
        x = classify(self.i)
        odd = ~self.i[23]  # of the unbiased exponent
        m.d.comb += [quadratic.index.eq(Cat(self.i[16:23], odd)), quadratic.d.eq(self.i[:16])]
        # 2/sqrt(m * 2^odd) in [1, 2) belongs to the exponent 126 - (e - 127 - odd) / 2 = 189 - floor((e - 1) / 2).
        # As one sum: 190 - k for e = 2k, one less for e = 2k + 1.
        exponent = register(m, (Cat(~x.exponent[0], ~x.exponent[1:], Const(1, 1)) + 2 * 190 + 1)[1:9], "exponent")
        nan = x.nan | (x.sign & ~x.zero)
        special = register(m, Cat(x.zero & ~nan, x.inf & ~nan, nan), "special")
        exponent = delay_line(m, exponent, Quadratic.delay - 1, "exponent")
        infinite, zero, nan = delay_line(m, special, Quadratic.delay - 1, "special")
        ones = infinite | nan
        cleared = ones | zero
        m.d.sync += self.o.eq(
            Cat(
                Mux(cleared, 0, quadratic.q[:22])[:22],
                (quadratic.q[22] & ~cleared) | nan,
                Mux(ones, 0xFF, Mux(zero, 0, (exponent + quadratic.q[-1])[:8])),
                Const(0, 1),
            )
        )
        return m


class Exponential(wiring.Component):
    """e^i, one each cycle; 13 cycles of latency, at most 1 ulp off.

    The mantissa times log2(e) (two DSP48E2), shifted to fixed point, its sign applied, then 2^fraction.

    Interface attributes
    --------------------
    i, o : 32-bit patterns.
    """

    delay = 6 + Quadratic.delay + 1

    i: In(32)
    o: Out(32)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        x = classify(self.i)
        frac = fp.EXP_FRAC

        # 1: inputs. The shift leaves 8 bits before the point at exponent 6; larger ones are flagged
        right = BIAS + 6 - x.exponent
        far = register(m, right >= 64, "far")
        right = delay_line(m, right[:6], 4, "right")
        large = x.exponent > BIAS + 6
        special = Cat(large & x.sign & ~x.nan, large & ~x.sign & ~x.nan, x.nan)
        special = delay_line(m, special, 6, "special")
        sign = delay_line(m, x.sign, 5, "sign")

        # 2..4: mantissa * log2(e) in units of 2^-(23 + LOG2E_FRAC), of which the low bits are never needed
        mantissa = positive(x.mantissa)
        lower, upper = (
            positive(Const(part)) for part in (fp.LOG2E & ((1 << CASCADE_SHIFT) - 1), fp.LOG2E >> CASCADE_SHIFT)
        )
        _, cascade = multiply_add(m, platform, "low", mantissa, lower, width=24 + CASCADE_SHIFT + 1)
        bits = 24 + fp.LOG2E_FRAC + 1 - CASCADE_SHIFT
        product, _ = multiply_add(m, platform, "high", mantissa, upper, registers=2, cascade=cascade, width=bits + 1)
        least = 23 + fp.LOG2E_FRAC - frac - 6  # the smallest right shift, at exponent 6
        product = product[least - CASCADE_SHIFT : bits]

        # 5: fixed point. 6: sign
        shifted, _ = shift_right_sticky(m, product, right, "shift")
        shifted = register(m, Mux(delay_line(m, far, 3, "far"), 0, shifted), "shifted")
        y = Signal(len(product) + 1, reset_less=True)
        m.d.sync += y.eq((shifted ^ sign.replicate(len(y))) + sign)

        # 7..12: 2^fraction. The integer part is -256..255
        m.submodules.quadratic = quadratic = Quadratic(fp.EXP2, frac - fp.EXP2.x_frac)
        m.d.comb += [quadratic.index.eq(y[frac - 6 : frac]), quadratic.d.eq(y[: frac - 6])]
        n = y[frac:].as_signed()
        zero, infinite, nan = special
        exponent = register(m, (n + BIAS)[:8], "exponent")
        under = (n < 1 - BIAS) | zero
        over = ((n > BIAS) & ~zero) | infinite
        exponent = delay_line(m, exponent, Quadratic.delay - 1, "exponent")
        flags = delay_line(m, Cat(under & ~over & ~nan, over & ~nan, nan), Quadratic.delay, "flags")

        # 13: pack
        under, over, nan = flags
        ones = over | nan
        cleared = under | ones
        m.d.sync += self.o.eq(
            Cat(
                Mux(cleared, 0, quadratic.q[:22])[:22],
                (quadratic.q[22] & ~cleared) | nan,
                Mux(ones, 0xFF, Mux(under, 0, (exponent + quadratic.q[-1])[:8])),
                Const(0, 1),
            )
        )
        return m


class Exp2Mantissa(wiring.Component):
    """2^(f / 2^20) in units of 2^-23, one each cycle; 6 cycles of latency, at most 1 unit off.

    Interface attributes
    --------------------
    f : 20-bit fraction.
    o : 24-bit mantissa, 2^23 .. 2^24 - 1.
    """

    delay = Quadratic.delay

    f: In(20)
    o: Out(24)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.quadratic = quadratic = Quadratic(fp.EXP2)
        m.d.comb += [quadratic.index.eq(self.f[14:]), quadratic.d.eq(self.f[:14]), self.o.eq(quadratic.q)]
        return m
