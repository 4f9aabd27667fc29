"""Fields of binary32 patterns."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Mux, Value

BIAS = 127
"""Bias of the exponent field (IEEE 754-2019, table 3.5)."""


@dataclass(frozen=True)
class Fields:
    """A pattern taken apart. `mantissa` has the hidden one; it means nothing when `zero` (which subnormals are)."""

    sign: Value
    exponent: Value
    mantissa: Value
    zero: Value
    inf: Value
    nan: Value


def classify(pattern: Value) -> Fields:
    """Fields and class of a 32-bit pattern."""
    fraction, exponent = pattern[:23], pattern[23:31]
    ones, some = exponent.all(), fraction.any()
    return Fields(pattern[31], exponent, Cat(fraction, Const(1, 1)), ~exponent.any(), ones & ~some, ones & some)


def pack(rounded: Value, sign: Value, cleared: Value, ones: Value, nan: Value, over: Value) -> Value:
    """A result pattern.

    Parameters
    ----------
    rounded : fraction and exponent, at least 31 bits.
    sign : of the result, ignored for NaN.
    cleared : the fraction is zero, and without `ones` the exponent too.
    ones : infinity or NaN.
    nan : NaN.
    over : the exponent was too large before rounding; counts only when not `cleared`.
    """
    infinite = ones | (over & ~cleared)
    fraction = Mux(cleared | over, 0, rounded[:22])
    high = (rounded[22] & ~(cleared | over)) | nan
    exponent = Mux(infinite, 0xFF, Mux(cleared, 0, rounded[23:31]))
    return Cat(fraction[:22], high, exponent[:8], sign & ~nan)


def float_const(x: float) -> Const:
    """Pattern of the binary32 nearest to x."""
    return Const(struct.unpack("<I", struct.pack("<f", x))[0], 32)
