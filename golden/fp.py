"""binary32 arithmetic of the accelerator, bit for bit: what hw/fp computes.

Round to nearest even. Subnormal inputs and results are zeros of the same sign; a result is flushed when its exact
magnitude is below 2^-126. NaN is 0x7fc00000. No contraction: every function rounds once. All functions take scalars or
arrays (broadcasting), return arrays of float32 (or of the integers stated), and raise no floating-point warnings.

Reciprocal, reciprocal square root and exponential are defined by tables (`Table`) and quadratic interpolation in
integers; their error against the correctly rounded value is at most 1 unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_EVEN, Decimal, localcontext

import numpy as np
from numpy.typing import ArrayLike, NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

NAN_BITS = 0x7FC00000
"""The only NaN that arithmetic makes."""

INF_BITS = 0x7F800000

MANTISSA_BITS = 23

_MIN_NORMAL = np.float32(2.0**-126)
_MIN_NORMAL_CODE = 0x00FFFFFF
"""`_smallest` of 2^-126."""
_NAN = np.array(NAN_BITS, np.uint32).view(np.float32)[()]
_LOWEST = np.float32(-np.inf)
_ONE = np.uint32(1)
_ALL_ONES = np.uint32(0xFFFFFFFF)


# ---- patterns --------------------------------------------------------------------------------------------------------


def bits(x: ArrayLike) -> NDArray[np.uint32]:
    """The 32-bit patterns of float32 values."""
    return np.ascontiguousarray(np.asarray(x, np.float32)).view(np.uint32).reshape(np.shape(x))


def from_bits(pattern: ArrayLike) -> F32:
    """float32 values of 32-bit patterns."""
    p = np.asarray(pattern)
    return np.ascontiguousarray(p.astype(np.uint32)).view(np.float32).reshape(p.shape)


def _canonical(x: F32) -> F32:
    return np.where(np.isnan(x), _NAN, x) if _has_nan(x) else np.asarray(x)


def _has_nan(x: NDArray[np.floating]) -> bool:
    return bool(np.isnan(np.maximum.reduce(x, axis=None, initial=_LOWEST)))  # a maximum with a NaN is one


@np.errstate(all="ignore")
def flush(x: ArrayLike) -> F32:
    """Subnormals become zeros of the same sign; everything else stays."""
    return _flush(x)


def _flush(x: ArrayLike) -> F32:
    """`flush`; `x` itself where it has no subnormal, which integers tell fastest."""
    v = np.asarray(x, np.float32)
    return np.asarray(v * (np.abs(v) >= _MIN_NORMAL)) if _smallest(v) < _MIN_NORMAL_CODE else v


def _smallest(v: F32) -> int:
    """The smallest magnitude that is not zero, as 2 * pattern - 1; 2^32 - 1 if there is none."""
    code = np.asarray(v.view(np.uint32) << _ONE)
    code -= _ONE  # zero wraps to the largest
    return int(np.minimum.reduce(code, axis=None, initial=_ALL_ONES))


def neg(x: ArrayLike) -> F32:
    """-x; NaN stays the canonical NaN."""
    return _canonical(-np.asarray(x, np.float32))


# ---- sum, product, order ---------------------------------------------------------------------------------------------


@np.errstate(all="ignore")
def mul(a: ArrayLike, b: ArrayLike) -> F32:
    """a * b."""
    x, y = _flush(a), _flush(b)
    r = np.asarray(x * y)
    if _smallest(r) <= _MIN_NORMAL_CODE:
        r = _flush(r)
        edge = np.abs(r) == _MIN_NORMAL
        if edge.any():  # Rounded up to 2^-126 from below: the exact product, which float64 holds, decides.
            exact = np.abs(x.astype(np.float64) * y.astype(np.float64))
            r = np.where(edge & (exact < float(_MIN_NORMAL)), np.copysign(np.float32(0), r), r)
    return _canonical(r)


@np.errstate(all="ignore")
def add(a: ArrayLike, b: ArrayLike) -> F32:
    """a + b. Below 2^-126 the sum is exact before it is flushed."""
    return _canonical(_flush(_flush(a) + _flush(b)))


@np.errstate(all="ignore")
def sub(a: ArrayLike, b: ArrayLike) -> F32:
    """a - b."""
    return _canonical(_flush(_flush(a) - _flush(b)))


@np.errstate(all="ignore")
def maximum(a: ArrayLike, b: ArrayLike) -> F32:
    """The larger of a and b: -0 is less than +0, a NaN wins over everything."""
    x, y = np.broadcast_arrays(_canonical(_flush(a)), _canonical(_flush(b)))
    return np.where(_order(y) > _order(x), y, x)


@np.errstate(all="ignore")
def relu(x: ArrayLike) -> F32:
    """max(x, +0): anything with the sign bit set becomes +0, NaN stays NaN."""
    zero = np.float32(0)
    return _canonical(np.maximum(_flush(x), zero) + zero)  # the sum makes +0 of -0


@np.errstate(all="ignore")
def max_abs(x: ArrayLike, axis: int = -1) -> F32:
    """Largest magnitude along an axis; NaN if one is in it."""
    return _canonical(_flush(np.max(np.abs(np.asarray(x, np.float32)), axis=axis)))


def _order(x: F32) -> NDArray[np.int32]:
    """Integers in the order of the values."""
    i = np.ascontiguousarray(x).view(np.int32).reshape(x.shape)
    return np.where(i < 0, i ^ np.int32(0x7FFFFFFF), i)


# ---- conversions -----------------------------------------------------------------------------------------------------


def from_int(i: ArrayLike) -> F32:
    """The float32 nearest to an integer (|i| < 2^63; in an integer or floating type), ties to even."""
    v = np.asarray(i)
    if v.dtype.kind == "f":
        return np.asarray(v.astype(np.float32, copy=False) + np.float32(0))  # the sum makes +0 of -0
    return np.asarray(v.astype(np.int64, copy=False).astype(np.float32))


@np.errstate(all="ignore")
def to_int8(x: ArrayLike) -> NDArray[np.int8]:
    """clip(rne(x), -128, 127); NaN gives 0."""
    v = np.clip(np.rint(np.asarray(x, np.float32)), -128, 127)
    return np.asarray(np.where(np.isnan(v), 0, v) if _has_nan(v) else v).astype(np.int8)


@np.errstate(all="ignore")
def to_fixed(x: ArrayLike, frac: int, width: int) -> I64:
    """rne(x * 2^frac), saturated to a signed integer of `width` (<= 48) bits; NaN gives 0."""
    # A product with a power of two is exact; float32 holds both limits of up to 25 bits.
    exact = _flush(x) if width <= 25 else _flush(x).astype(np.float64)
    v = np.rint(exact * exact.dtype.type(2.0**frac))
    v = np.clip(v, -(2.0 ** (width - 1)), 2.0 ** (width - 1) - 1)
    return np.asarray(np.where(np.isnan(v), 0, v) if _has_nan(v) else v).astype(np.int64)


# ---- tables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """Quadratics of a function with values in [1, 2], one for each of a number of equal intervals.

    With `d` the distance from the start of the interval in units of 2^-x_frac, the mantissa in units of 2^-23 is
    `((c0 << u - f0) + t * d) >> (u - 23)`, `t = c1 + (c2 * d >> f2 + x_frac - f1)`, `u = f1 + x_frac`;
    c0 contains the half that makes the last shift a rounding.

    Attributes
    ----------
    c0, c1, c2 : coefficients, int64, in units of 2^-f0, 2^-f1, 2^-f2.
    f0, f1, f2 : their fraction bits.
    x_bits : bits of d.
    x_frac : fraction bits of d; the linear term may see more than the square term.
    """

    c0: I64
    c1: I64
    c2: I64
    f0: int
    f1: int
    f2: int
    x_bits: int
    x_frac: int

    def mantissa(self, index: I64, d: I64, extra: int = 0) -> I64:
        """Values in units of 2^-23 (2^23..2^24), d having `extra` more fraction bits than x_frac."""
        t: I64 = self.c1[index] + ((self.c2[index] * (d >> extra)) >> (self.f2 + self.x_frac - self.f1))
        unit = self.f1 + self.x_frac + extra
        total: I64 = (self.c0[index] << (unit - self.f0)) + t * d
        return total >> (unit - MANTISSA_BITS)


def _quadratics(
    function: Callable[[Decimal], Decimal],
    starts: list[Decimal],
    length: Decimal,
    f: tuple[int, int, int],
    x: tuple[int, int],
) -> Table:
    """Interpolates `function` at the three Chebyshev nodes of every interval [start, start + length).

    Decimal arithmetic of 50 digits, so that every machine builds the same tables. c0 gets half a unit of the mantissa
    for the final rounding, and half a unit of t in the middle of the interval for the mean of the cut square term.
    """
    rows = []
    with localcontext() as context:
        context.prec = 50
        root = Decimal(3).sqrt() / 2
        nodes = [(1 - root) / 2, Decimal(1) / 2, (1 + root) / 2]
        for start in starts:
            x0, x1, x2 = (n * length for n in nodes)
            y0, y1, y2 = (function(start + v) for v in (x0, x1, x2))
            d01, d12 = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
            c2 = (d12 - d01) / (x2 - x0)
            c1 = d01 - c2 * (x0 + x1)
            c0 = y0 - x0 * (d01 - c2 * x1)
            c0 += Decimal(2) ** -(MANTISSA_BITS + 1) + length / 2 * Decimal(2) ** -(f[1] + 1)
            rows.append(
                [int((c * 2**b).quantize(Decimal(1), ROUND_HALF_EVEN)) for c, b in zip((c0, c1, c2), f, strict=True)]
            )
    c = np.array(rows, np.int64).T
    return Table(c[0], c[1], c[2], *f, *x)


def _starts(low: Decimal, count: int) -> list[Decimal]:
    return [low + Decimal(i) / count for i in range(count)]


def _two(x: Decimal) -> Decimal:
    return Decimal(2) ** x


EXP2 = _quadratics(_two, _starts(Decimal(0), 64), Decimal(1) / 64, (26, 20, 14), (14, 20))
"""2^f, f in [0, 1): 64 intervals of a 20-bit fraction."""

RECIPROCAL = _quadratics(lambda m: 2 / m, _starts(Decimal(1), 128), Decimal(1) / 128, (26, 21, 13), (16, 23))
"""2/m, m in [1, 2): 128 intervals of a 23-bit fraction."""


def _inverse_root(odd: int) -> Table:
    return _quadratics(
        lambda m: 2 / (m * 2**odd).sqrt(), _starts(Decimal(1), 128), Decimal(1) / 128, (26, 21, 13), (16, 23)
    )


_RSQRT = [_inverse_root(odd) for odd in range(2)]
RSQRT = replace(
    _RSQRT[0],
    c0=np.concatenate([t.c0 for t in _RSQRT]),
    c1=np.concatenate([t.c1 for t in _RSQRT]),
    c2=np.concatenate([t.c2 for t in _RSQRT]),
)
"""2/sqrt(m * 2^p), m in [1, 2): 128 intervals of a 23-bit fraction for p = 0, then 128 for p = 1."""

EXP_FRAC = 27
"""Fraction bits of x * log2(e) inside exp."""

LOG2E_FRAC = 33
LOG2E = int((Decimal("1.4426950408889634073599246810018921374266") * 2**LOG2E_FRAC).to_integral_value(ROUND_HALF_EVEN))
"""log2(e) in units of 2^-33."""


# ---- functions -------------------------------------------------------------------------------------------------------


def _split(x: ArrayLike) -> tuple[I64, I64, I64]:
    """Sign (0, 1), biased exponent and fraction of the patterns of x."""
    p = bits(x).astype(np.int64)
    return p >> 31, (p >> 23) & 0xFF, p & 0x7FFFFF


def recip(x: ArrayLike) -> F32:
    """1/x, at most 1 ulp off. 1/0 is an infinity, 1/inf a zero, of the sign of x; |x| > 2^126 gives zero."""
    sign, exponent, fraction = _split(x)
    q = RECIPROCAL.mantissa(fraction >> 16, fraction & 0xFFFF)
    r = ((252 - exponent) << 23) + q  # the hidden one of q adds the 253rd
    r = np.where(r < 1 << 23, 0, r)
    r = np.where(exponent == 0, INF_BITS, r)
    r = np.where(exponent == 255, 0, r) | (sign << 31)
    return from_bits(np.where((exponent == 255) & (fraction != 0), NAN_BITS, r))


def rsqrt(x: ArrayLike) -> F32:
    """1/sqrt(x), at most 1 ulp off. +inf of both zeros, NaN of a negative x."""
    sign, exponent, fraction = _split(x)
    odd = (exponent & 1) ^ 1
    q = RSQRT.mantissa((odd << 7) | (fraction >> 16), fraction & 0xFFFF)
    r = ((125 - ((exponent - 127 - odd) >> 1)) << 23) + q
    r = np.where(exponent == 0, INF_BITS, np.where(exponent == 255, 0, r))
    nan = (exponent != 0) & ((sign == 1) | ((exponent == 255) & (fraction != 0)))
    return from_bits(np.where(nan, NAN_BITS, r))


def exp(x: ArrayLike) -> F32:
    """e^x, at most 1 ulp off; 0 when e^x < 2^-126, +inf when x > 88.72283."""
    sign, exponent, fraction = _split(x)
    product = np.where(exponent == 0, 0, fraction | 1 << 23) * LOG2E
    shift = np.clip(23 + LOG2E_FRAC - EXP_FRAC - (exponent - 127), 0, 63)
    y = product >> shift
    y = np.where(sign == 1, -y, y)
    n, f = y >> EXP_FRAC, y & ((1 << EXP_FRAC) - 1)
    q = EXP2.mantissa(f >> (EXP_FRAC - 6), f & ((1 << (EXP_FRAC - 6)) - 1), EXP_FRAC - 20)
    large = exponent >= 127 + 7
    r = ((n + 126) << 23) + q
    r = np.where((n < -126) | (large & (sign == 1)), 0, r)
    r = np.where(((n > 127) & ~(large & (sign == 1))) | (large & (sign == 0)), INF_BITS, r)
    return from_bits(np.where((exponent == 255) & (fraction != 0), NAN_BITS, r))


def exp2_mantissa(f: ArrayLike) -> I64:
    """2^(f / 2^20) in units of 2^-23 (2^23 .. 2^24 - 1), f a 20-bit fraction; at most 1 unit off."""
    v = np.asarray(f, np.int64)
    return EXP2.mantissa(v >> 14, v & 0x3FFF)
