"""The element-wise pipeline: its order exactly, in scalars; its values against float64."""

import math

import numpy as np
import pytest

from tellme.golden import elementwise, fp

SEED = 11


def features(lanes: int, n: int, seed: int = SEED) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(lanes, n)) * 2.0 ** rng.integers(-6, 7, (lanes, n))).astype(np.float32)


def scalar_sum_of_squares(v: np.ndarray) -> np.float32:
    """The order of docs/numerics.md, number by number, in numpy's own float32."""
    partials: list[np.float32] = [np.float32(0)] * 8
    for k in range(len(v) // 4):
        s = [x * x for x in v[4 * k : 4 * k + 4]]
        c = (s[0] + s[1]) + (s[2] + s[3])
        partials[k % 8] = c if k < 8 else partials[k % 8] + c
    p = partials
    return ((p[0] + p[1]) + (p[2] + p[3])) + ((p[4] + p[5]) + (p[6] + p[7]))


@pytest.mark.parametrize("n", [4, 28, 32, 36, 128, 1000, 4096, 6912])
def test_sums_of_squares_follow_the_order_of_the_hardware(n: int) -> None:
    v = features(3, n)
    got = elementwise.sum_of_squares(v)
    assert got.tolist() == [scalar_sum_of_squares(row) for row in v]
    np.testing.assert_allclose(got, (v.astype(np.float64) ** 2).sum(-1), rtol=1e-5)


@pytest.mark.parametrize("n", [4, 36, 260])
def test_sums_of_squares_flush_and_keep_infinities_and_one_nan(n: int) -> None:
    v = features(5, n)
    v[0] *= np.float32(2.0**-66)  # squares around 2^-126
    v[1] *= np.float32(2.0**62)
    v[2] = 2.0**-70
    v[3, n // 2] = np.inf
    v[4, 1] = fp.from_bits(0xFFC00123)
    got = elementwise.sum_of_squares(v)
    for row, value in zip(v, got, strict=True):
        sq = [fp.mul(x, x) for x in row]
        chunks = [fp.add(fp.add(*sq[i : i + 2]), fp.add(*sq[i + 2 : i + 4])) for i in range(0, n, 4)]
        partials = [np.float32(0)] * 8
        for k, c in enumerate(chunks):
            partials[k % 8] = c if k < 8 else fp.add(partials[k % 8], c)
        while len(partials) > 1:
            partials = [fp.add(a, b) for a, b in zip(partials[::2], partials[1::2], strict=True)]
        assert fp.bits(value) == fp.bits(partials[0])
    assert got[2] == 0 and fp.bits(got[4]) == fp.NAN_BITS


def test_sums_of_squares_need_whole_chunks() -> None:
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        elementwise.sum_of_squares(np.ones((1, 6)))


def test_statistics_take_the_sum_before_the_gain_and_the_maximum_after() -> None:
    v, gain = features(2, 64), np.linspace(-2, 2, 64).astype(np.float32)
    s = elementwise.statistics(v, gain)
    assert (s.ss == elementwise.sum_of_squares(v)).all()
    assert (s.u == v * gain).all() and (s.amax == np.abs(v * gain).max(-1)).all()
    plain = elementwise.statistics(v)
    assert (plain.u == v).all() and (plain.amax == np.abs(v).max(-1)).all()


def scalar_quantise(v: np.ndarray, gain: np.ndarray, norm: bool, eps: float) -> tuple[list[int], np.float32]:
    """One token, number by number."""
    u = [fp.mul(a, b) for a, b in zip(v, gain, strict=True)]
    amax = max(abs(x) for x in u)
    r = np.float32(1)
    if norm:
        r = fp.rsqrt(fp.add(fp.mul(scalar_sum_of_squares(v), np.float32(1 / len(v))), np.float32(eps)))
    a = max(fp.mul(amax, r), np.float32(1e-5))
    inv = fp.mul(fp.mul(r, np.float32(127)), fp.recip(a))
    return [int(fp.to_int8(fp.mul(x, inv))) for x in u], fp.mul(a, np.float32(1 / 127))


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("n", [32, 96])
def test_quantiser_equals_scalars(norm: bool, n: int) -> None:
    v, gain = features(3, n), features(1, n, 12)[0]
    q, scale = elementwise.quantise(elementwise.statistics(v, gain), norm=norm, eps=1e-5)
    for lane in range(3):
        codes, s = scalar_quantise(v[lane], gain, norm, 1e-5)
        assert q[lane].tolist() == codes and scale[lane] == s


def test_quantiser_multiplies_in_the_order_of_the_hardware() -> None:
    """Orders differ in the last bit of the inverse, which features at a rounding tie show."""
    rng = np.random.default_rng(15)
    ss, amax = rng.uniform(100, 900, 64).astype(np.float32), rng.uniform(3, 9, 64).astype(np.float32)
    r = fp.rsqrt(ss * np.float32(1 / 254) + np.float32(1e-5))
    recip = fp.recip(amax * r)
    inv, other = (r * np.float32(127)) * recip, r * (np.float32(127) * recip)
    u = ((np.arange(254) - 127 + 0.5) / inv[:, None]).astype(np.float32)
    q, _ = elementwise.quantise(elementwise.Statistics(ss, amax, u), norm=True, eps=1e-5)
    assert (q == np.clip(np.rint(u * inv[:, None]), -128, 127)).all()
    assert (q != np.clip(np.rint(u * other[:, None]), -128, 127)).any()


@pytest.mark.parametrize("norm", [True, False])
def test_quantiser_approximates_normalised_features(norm: bool) -> None:
    v, gain = features(16, 2560), features(1, 2560, 13)[0]
    q, scale = elementwise.quantise(elementwise.statistics(v, gain), norm=norm, eps=1e-5)
    x = v.astype(np.float64) * gain
    if norm:
        x /= np.sqrt((v.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    assert (np.abs(q * scale[:, None].astype(np.float64) - x).max(-1) <= 0.501 * scale).all()
    assert (np.abs(q.astype(int)).max(-1) == 127).all()


def test_quantiser_of_zeros_has_the_smallest_scale_and_of_large_values_saturates_nowhere() -> None:
    v = np.zeros((2, 32), np.float32)
    v[1, 3] = -3e18
    q, scale = elementwise.quantise(elementwise.statistics(v), norm=True, eps=1e-5)
    assert not q[0].any() and scale[0] == fp.mul(np.float32(1e-5), np.float32(1 / 127))
    assert q[1, 3] == -127 and scale[1] * 127 == pytest.approx(math.sqrt(32), rel=1e-6)
    q, scale = elementwise.quantise(elementwise.statistics(v), norm=False)
    assert q[1, 3] == -127 and scale[1] * 127 == pytest.approx(3e18, rel=1e-6)


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_head_quantiser_has_a_scale_for_each_head(dim: int) -> None:
    y = features(15, dim).reshape(3, 5, dim)
    y[0, 0] = 0
    q, scale = elementwise.quantise_head(y)
    assert q.shape == (3, 5, dim) and scale.shape == (3, 5)
    a = np.maximum(np.abs(y).max(-1).astype(np.float64), 1e-5)
    np.testing.assert_allclose(scale, a / 127, rtol=2e-7)
    assert np.abs(q - y * 127 / a[..., None]).max() < 0.5001


def test_rope_rotates_pairs() -> None:
    y = features(3, 128).reshape(3, 2, 64)
    angle = np.linspace(0, 40, 3 * 32).reshape(3, 1, 32)
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    got = elementwise.rope(y, cos, sin)
    z = (y[..., 0::2].astype(np.float64) + 1j * y[..., 1::2]) * np.exp(1j * angle)
    np.testing.assert_allclose(got[..., 0::2], z.real, atol=2e-7 * np.abs(y).max() * 2)
    np.testing.assert_allclose(got[..., 1::2], z.imag, atol=2e-7 * np.abs(y).max() * 2)
    a, b, c, s = y[1, 1, 4], y[1, 1, 5], cos[1, 0, 2], sin[1, 0, 2]
    assert got[1, 1, 4] == a * c - b * s and got[1, 1, 5] == b * c + a * s


def test_scale_multiplies_the_scales_first() -> None:
    acc = np.array([[3, -1 << 25], [(1 << 24) + 1, 0]])
    got = elementwise.scale(acc, np.float32([0.1, 0.3]), np.float32([0.7, 1e-3]))
    w, a = np.float32([0.1, 0.3]), np.float32([0.7, 1e-3])
    want = [[np.float32(acc[i, j]) * (w[j] * a[i]) for j in range(2)] for i in range(2)]
    assert got.tolist() == want


def test_squared_relu_gate() -> None:
    gate = np.float32([-1, -0.0, 0.0, 0.3, 1e15, -np.inf])
    up = np.float32([5, -2, -2, 7, 1e-20, 1])
    want = [0.0, -0.0, -0.0, (gate[3] * gate[3]) * up[3], (gate[4] * gate[4]) * up[4], 0.0]
    got = elementwise.gate_relu2(gate, up)
    assert got.tolist() == want and np.signbit(got).tolist() == np.signbit(want).tolist()


def test_silu_gate_is_within_bounds_and_saturates() -> None:
    gate = np.concatenate([np.linspace(-80, 80, 4001), [-200, 200, 0]]).astype(np.float32)
    up = features(1, len(gate))[0]
    g = gate.astype(np.float64)
    want = g / (1 + np.exp(-g)) * up
    got = elementwise.gate_silu(gate, up)
    np.testing.assert_allclose(got, want, rtol=6e-7, atol=1e-30)
    assert got[-1] == 0 and got[-3] == 0 and got[-2] == np.float32(200) * up[-2]


def test_residual_and_dequantise() -> None:
    x, y = features(2, 32), features(2, 32, 14)
    assert (elementwise.residual(x, y) == x + y).all()
    q = np.int8([[-128, 127, 0], [1, -1, 5]])
    assert elementwise.dequantise(q, [0.1, 3]).tolist() == (q * np.float32([[0.1], [3]])).tolist()


def test_groups_of_activations_have_the_largest_power_of_four_that_fits() -> None:
    u = np.zeros((1, 64 * 7 + 20), np.float32)
    for i, magnitude in enumerate((1.0, 0.5, 0.25, 0.2500001, 1 / 64, 1e-6, 0.0, -1 / 16)):
        u[0, 64 * i + 3] = magnitude
    stats = elementwise.statistics(u)
    assert elementwise.exponents(stats)[0].tolist() == [0, 0, 2, 0, 6, 6, 6, 4]
    q, e, scale = elementwise.quantise_groups(stats, norm=False)
    assert q[0, 3::64].tolist() == [127, 64, 127, 32, 127, 0, 0, -127] and scale == np.float32(1) * elementwise.INV_127
    plain, same = elementwise.quantise(stats, norm=False)
    assert same == scale and plain[0, 3::64].tolist() == [127, 64, 32, 32, 2, 0, 0, -8]


def test_activations_of_groups_are_never_worse_than_of_a_token() -> None:
    rng = np.random.default_rng(8)
    u = rng.standard_normal((4, 500)).astype(np.float32)
    u[:, 70] *= 1000  # an outlier
    stats = elementwise.statistics(u)
    q, e, scale = elementwise.quantise_groups(stats, norm=True, eps=1e-5)
    plain, _ = elementwise.quantise(stats, norm=True, eps=1e-5)
    r = 1 / np.sqrt((u.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5)
    each = np.repeat(2.0**-e, 64, axis=1)[:, :500]
    error, before = (np.abs(x * scale[:, None] - u * r) for x in (q * each, plain))
    assert (error <= before * (1 + 1e-5) + 1e-6).all()
    assert (
        np.delete(error, slice(64, 128), axis=1).mean() < np.delete(before, slice(64, 128), axis=1).mean() / 30
    ).all()


def test_activations_that_are_no_numbers_stay_within_int8() -> None:
    u = np.ones((3, 128), np.float32)
    u[0, 0], u[1, 70], u[2] = np.nan, np.inf, 0
    q, e, _ = elementwise.quantise_groups(elementwise.statistics(u), norm=False)
    assert e.min() >= 0 and e.max() <= 6 and q.shape == u.shape


def test_embedding_rows_of_every_type_are_widened_exactly() -> None:
    x = np.float32([[0.0, 1.0, -2.5, 3e-5], [65504.0, -0.0, 1e-40, 0.3]])
    for kind in (np.float32, np.float16):
        rows = x.astype(kind)
        np.testing.assert_array_equal(elementwise.widen(rows), fp.flush(rows.astype(np.float32)))
    high = (x.view(np.uint32) >> 16).astype(np.uint16)  # bfloat16
    np.testing.assert_array_equal(elementwise.widen(high), fp.flush((x.view(np.uint32) & 0xFFFF0000).view(np.float32)))
    assert elementwise.widen(high)[1, 0] == 65280.0 and elementwise.widen(high)[0, 2] == -2.5
