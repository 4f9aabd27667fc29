"""golden/fp.py against exact rational arithmetic, numpy.float32 and correctly rounded functions."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest

from tellme.golden import fp
from tests.fp import cases

SEED = 20251


def _value(pattern: int) -> Fraction | None:
    """Exact value of a finite pattern with subnormals as zero."""
    exponent = pattern >> 23 & 255
    if exponent == 255:
        return None
    v = Fraction(0 if exponent == 0 else pattern & 0x7FFFFF | 1 << 23) * Fraction(2) ** (exponent - 150)
    return -v if pattern >> 31 else v


def _round(v: Fraction, negative_zero: int) -> int:
    """Pattern of the float32 nearest to v, ties to even, flushed by its exact value. Integers only."""
    if v == 0:
        return negative_zero << 31
    sign, m = (1, -v) if v < 0 else (0, v)
    if m < Fraction(1, 1 << 126):
        return sign << 31
    e = m.numerator.bit_length() - m.denominator.bit_length()
    e -= m < Fraction(2) ** e
    scaled = m / Fraction(2) ** (e - 23)
    n, rest = divmod(scaled.numerator, scaled.denominator)
    n += 2 * rest > scaled.denominator or (2 * rest == scaled.denominator and n & 1)
    return sign << 31 | min((e + 126 << 23) + n, fp.INF_BITS)


def _exact(a: int, b: int, operation: str) -> int:
    """Pattern of a op b by rational arithmetic."""
    x, y, sa, sb = _value(a), _value(b), a >> 31, b >> 31
    if any(v is None and p & 0x7FFFFF for v, p in ((x, a), (y, b))):
        return fp.NAN_BITS
    if operation == "mul":
        if x is None or y is None:
            return fp.NAN_BITS if 0 in (x, y) else (sa ^ sb) << 31 | fp.INF_BITS
        return _round(x * y, sa ^ sb)
    if x is None or y is None:
        if x is None and y is None and sa != sb:
            return fp.NAN_BITS
        return (sa if x is None else sb) << 31 | fp.INF_BITS
    return _round(x + y, sa & sb)


@pytest.mark.parametrize("operation", ["mul", "add", "sub"])
def test_sum_and_product_equal_rational_arithmetic(operation: str) -> None:
    rng = np.random.default_rng(SEED)
    a, b = cases.edge_pairs()
    ra, rb = cases.product_pairs(rng, 3000) if operation == "mul" else cases.sum_pairs(rng, 3000)
    a, b = np.concatenate([a, ra]), np.concatenate([b, rb])
    got = fp.bits(getattr(fp, operation)(fp.from_bits(a), fp.from_bits(b)))
    flip = 1 << 31 if operation == "sub" else 0
    for x, y, g in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
        assert g == _exact(x, y ^ flip, "mul" if operation == "mul" else "add"), f"{x:08x} {operation} {y:08x}: {g:08x}"


def test_product_just_below_the_smallest_normal_is_flushed_although_it_would_round_up() -> None:
    almost, least = fp.from_bits(0x3F7FFFFF), fp.from_bits(0x00800000)
    assert (almost * least) == least
    assert fp.bits(fp.mul(almost, least)) == 0
    assert fp.bits(fp.mul(-almost, least)) == 1 << 31
    assert fp.bits(fp.mul(np.float32(1), least)) == 0x00800000


def test_ordinary_results_are_those_of_numpy() -> None:
    rng = np.random.default_rng(SEED)
    a, b = (rng.standard_normal((2, 1 << 20)) * 10.0 ** rng.integers(-9, 9, (2, 1 << 20))).astype(np.float32)
    np.testing.assert_array_equal(fp.mul(a, b), a * b)
    np.testing.assert_array_equal(fp.add(a, b), a + b)
    np.testing.assert_array_equal(fp.sub(a, b), a - b)


@pytest.mark.parametrize("function", ["mul", "add", "sub", "maximum", "relu", "neg", "flush", "to_int8", "to_fixed"])
def test_one_unusual_operand_among_ordinary_ones_is_treated_as_if_it_were_alone(function: str) -> None:
    """Arrays are looked at as a whole before their unusual elements are: each edge, at several places of an array."""
    rng = np.random.default_rng(SEED)
    edges = fp.from_bits(cases.edges())
    f = {"to_fixed": lambda x: fp.to_fixed(x, 14, 24)}.get(function) or getattr(fp, function)
    usual = rng.standard_normal((2, 37)).astype(np.float32)
    for n, edge in enumerate(edges):
        for other in (edges[n - 1], np.float32(0.75), np.float32(0)):
            a, b = usual.copy()
            a[n % 37], b[n % 37] = edge, other
            arguments = (a, b) if function in ("mul", "add", "sub", "maximum") else (a,)
            got = f(*arguments)
            alone = [f(*(v[i] for v in arguments)) for i in range(37)]
            assert got.tobytes() == np.array(alone, got.dtype).tobytes()


def test_maximum_magnitude_of_unusual_values() -> None:
    rng = np.random.default_rng(SEED)
    edges = fp.from_bits(cases.edges())
    for _ in range(500):
        x = rng.choice(edges, (3, 4))
        for row, got in zip(x, fp.max_abs(x), strict=True):
            flushed = np.abs(fp.flush(row))
            want = fp.NAN_BITS if np.isnan(flushed).any() else fp.bits(flushed.max())
            assert fp.bits(got) == want


def test_relu_is_the_maximum_with_zero() -> None:
    x = fp.from_bits(cases.edges())
    assert fp.relu(x).tobytes() == fp.maximum(x, np.float32(0)).tobytes()
    for value in x:
        assert fp.bits(fp.relu(value)) == fp.bits(fp.maximum(value, np.float32(0)))


def test_from_int_takes_integers_in_floating_types() -> None:
    i = np.array([0, 1, -1, (1 << 24) + 1, -(1 << 24) - 3, (1 << 40) + (1 << 16)])
    assert fp.from_int(i.astype(np.float64)).tobytes() == fp.from_int(i).tobytes()
    assert fp.bits(fp.from_int(np.array([-0.0, 5], np.float32))).tolist() == [0, 0x40A00000]


def test_from_int_rounds_to_nearest_even() -> None:
    rng = np.random.default_rng(SEED)
    for width in (8, 22, 25, 32, 48):
        i = cases.integers(rng, 2000, width)
        assert fp.bits(fp.from_int(i)).tolist() == [_round(Fraction(v), 0) for v in i.tolist()]


def _nearest(v: Fraction) -> int:
    n, rest = divmod(v.numerator, v.denominator)
    return n + (2 * rest > v.denominator or (2 * rest == v.denominator and n & 1))


@pytest.mark.parametrize(("frac", "width"), [(0, 8), (20, 32), (0, 18), (10, 24), (30, 40)])
def test_conversions_to_integers_round_and_saturate(frac: int, width: int) -> None:
    rng = np.random.default_rng(SEED)
    p = np.concatenate([cases.edges(), cases.patterns(rng, 1000), cases.scaled(rng, 3000, -3 - frac, width + 1 - frac)])
    least = -(1 << width - 1)
    want = []
    for pattern in p.tolist():
        v = _value(pattern)
        if v is None:
            v = Fraction(0) if pattern & 0x7FFFFF else Fraction(-(1 << 99) if pattern >> 31 else 1 << 99)
        want.append(min(max(_nearest(v * (1 << frac)), least), ~least))
    assert fp.to_fixed(fp.from_bits(p), frac, width).tolist() == want
    if (frac, width) == (0, 8):
        got = fp.to_int8(fp.from_bits(p))
        assert got.dtype == np.int8
        assert got.tolist() == want


def _ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    return np.abs(cases.ordered(got) - cases.ordered(exact.astype(np.float32)))


def test_reciprocal_of_every_mantissa_is_within_one_ulp() -> None:
    x = fp.from_bits(np.arange(0x3F800000, 0x40000000))
    assert _ulps(fp.recip(x), 1 / x.astype(np.float64)).max() <= 1


def test_reciprocal_square_root_of_every_mantissa_is_within_one_ulp() -> None:
    for exponent in (127, 128):
        x = fp.from_bits(np.arange(exponent << 23, exponent + 1 << 23))
        assert _ulps(fp.rsqrt(x), 1 / np.sqrt(x.astype(np.float64))).max() <= 1


def test_reciprocals_at_every_exponent() -> None:
    fraction = np.random.default_rng(SEED).integers(0, 1 << 23, 512)
    fraction[:3] = 0, 1, (1 << 23) - 1
    x = fp.from_bits(((np.arange(1, 255) << 23)[:, None] | fraction).ravel())
    exact = 1 / x.astype(np.float64)
    got = fp.recip(x)
    kept = exact >= 2.0**-126
    assert _ulps(got[kept], exact[kept]).max() <= 1
    assert not got[~kept].any()
    assert np.array_equal(fp.recip(-x), -got)
    assert _ulps(fp.rsqrt(x), 1 / np.sqrt(x.astype(np.float64))).max() <= 1


def test_powers_of_two_have_exact_reciprocals_and_roots() -> None:
    e = np.arange(-126, 127)
    assert np.array_equal(fp.recip(2.0**e), (2.0**-e).astype(np.float32))
    assert np.array_equal(fp.rsqrt(4.0 ** np.arange(-63, 64)), (2.0 ** -np.arange(-63, 64)).astype(np.float32))


def test_exponential_is_within_one_ulp() -> None:
    rng = np.random.default_rng(SEED)
    dense = fp.from_bits(np.arange(0, 1 << 32, 2039))
    near = rng.uniform(-87.34, 88.73, 1 << 20).astype(np.float32)
    ends = fp.from_bits(np.concatenate([np.arange(0x42B17000, 0x42B17300), np.arange(0xC2AEA000, 0xC2AEB000)]))
    with np.errstate(all="ignore"):
        for x in (dense, near, ends):
            x = x[~np.isnan(x)]
            exact = np.exp(x.astype(np.float64))
            got = fp.exp(x)
            low, high = exact < 2.0**-126, x > np.float32(88.72283)
            assert not got[low].any()
            assert np.isposinf(got[high]).all()
            assert _ulps(got[~low & ~high], exact[~low & ~high]).max() <= 1


def test_powers_of_two_of_every_fraction_are_within_one_unit() -> None:
    f = np.arange(1 << 20)
    q = fp.exp2_mantissa(f)
    assert np.abs(q - np.rint(np.exp2(f / 2**20 + 23)).astype(np.int64)).max() <= 1
    assert q[0] == 1 << 23 and q.max() < 1 << 24
    assert (np.diff(q) >= 0).all()


def test_special_operands() -> None:
    inf, nan = np.float32(np.inf), fp.from_bits(0xFFC00001)
    tiny = fp.from_bits(0x807FFFFF)
    x = np.array([0.0, -0.0, inf, -inf, nan, tiny, -1.0], np.float32)
    assert fp.bits(fp.recip(x)).tolist() == [
        0x7F800000,
        0xFF800000,
        0,
        0x80000000,
        0x7FC00000,
        0xFF800000,
        0xBF800000,
    ]
    assert fp.bits(fp.rsqrt(x)).tolist() == [0x7F800000, 0x7F800000, 0, *[0x7FC00000] * 2, 0x7F800000, 0x7FC00000]
    assert fp.bits(fp.exp(x[:6])).tolist() == [0x3F800000, 0x3F800000, 0x7F800000, 0, 0x7FC00000, 0x3F800000]
    assert fp.bits(fp.flush(tiny)) == 0x80000000
    assert fp.bits(fp.neg(nan)) == fp.NAN_BITS
    assert fp.bits(fp.relu(x)).tolist() == [0, 0, 0x7F800000, 0, 0x7FC00000, 0, 0]
    assert fp.bits(fp.maximum([-0.0, -1, nan, inf], [0.0, -2, 1, nan])).tolist() == [
        0,
        0xBF800000,
        0x7FC00000,
        0x7FC00000,
    ]
    assert fp.max_abs([[1, -3, 2], [0, -0.0, 0]]).tolist() == [3, 0]
    assert np.isnan(fp.max_abs([1, nan, inf]))
    silu = fp.recip(fp.add(np.float32(1), fp.exp(np.float32(100))))
    assert fp.bits(silu) == 0


def test_scalars_and_broadcasting_keep_float32_and_raise_no_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e = fp.from_bits(cases.edges())
        for f in (fp.mul, fp.add, fp.sub, fp.maximum):
            assert f(e[:, None], e).shape == (len(e), len(e))
            assert f(np.float32(2), 3.0).shape == ()
            assert f(e, 3.0).dtype == np.float32
        for g in (fp.recip, fp.rsqrt, fp.exp, fp.flush, fp.neg, fp.relu):
            assert g(e).dtype == np.float32
            assert g(2.0).shape == () and g(e.reshape(2, -1)).shape == (2, len(e) // 2)
        assert fp.to_int8(e).shape == fp.to_fixed(e, 20, 32).shape == e.shape
        assert fp.from_int(7) == 7
