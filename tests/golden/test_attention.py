"""Attention: integers exactly, against Python numbers one by one; values against float64; independent of order."""

import math

import numpy as np
import pytest

from tellme.golden import attention, fp
from tellme.golden.attention import Softmax

SEED = 21


def operands(lanes: int, heads: int, kv_heads: int, dim: int, keys: int, seed: int = SEED) -> tuple[np.ndarray, ...]:
    """q, query scales, k, k scales, v, v scales; scores spread over several powers of two."""
    rng = np.random.default_rng(seed)
    q = rng.integers(-128, 128, (lanes, heads, dim)).astype(np.int8)
    k, v = rng.integers(-128, 128, (2, kv_heads, keys, dim)).astype(np.int8)
    qs = rng.uniform(0.01, 0.03, (lanes, heads)).astype(np.float32) * attention.query_factor(dim)
    ks = rng.uniform(0.005, 0.04, (kv_heads, keys)).astype(np.float32)
    vs = rng.uniform(0.005, 0.04, (kv_heads, keys)).astype(np.float32)
    return q, qs, k, ks, v, vs


def scalar_query(
    q: np.ndarray, qs: np.float32, k: np.ndarray, ks: np.ndarray, v: np.ndarray, vs: np.ndarray
) -> tuple[int, int, int, list[int], list[np.float32]]:
    """One query over its valid keys as docs/numerics.md writes it: m, e, L, acc, out."""
    scores, patterns = [], [int(fp.bits(s)) for s in vs]
    for key in range(len(k)):
        dot = sum(int(a) * int(b) for a, b in zip(q, k[key], strict=True))
        t = np.float32(dot) * (qs * ks[key])
        scores.append(max(-(1 << 23), min((1 << 23) - 1, round(float(t) * 2**10))))
    m = max(scores)
    largest = max(score // 2**6 + pattern // 2**19 for score, pattern in zip(scores, patterns, strict=True))
    e = (largest - m // 2**6 + 19) // 16
    total, acc = 0, [0] * v.shape[1]
    for key, score in enumerate(scores):
        n = -((score - m) // 2**10)
        f = n * 2**10 - (m - score)
        x = int(fp.exp2_mantissa(f << 10)) << 1
        right = 24 + n + e - patterns[key] // 2**23
        weight = (x * (2**16 + patterns[key] // 2**7 % 2**16) + 2 ** (right - 1)) >> right
        total += x >> n
        for d in range(v.shape[1]):
            acc[d] += weight * int(v[key, d])
    so = fp.recip(np.float32(total)) * np.float32(2.0 ** (e - 119))
    return m, e, total, acc, [np.float32(a) * so for a in acc]


@pytest.mark.parametrize(("lanes", "heads", "kv_heads", "dim"), [(3, 4, 2, 32), (1, 3, 3, 96), (4, 4, 1, 64)])
@pytest.mark.parametrize("first", [0, 1, 30])
def test_attention_equals_scalars(lanes: int, heads: int, kv_heads: int, dim: int, first: int) -> None:
    q, qs, k, ks, v, vs = operands(lanes, heads, kv_heads, dim, first + lanes)
    got = attention.attend(q, qs, k, ks, v, vs, first)
    g = heads // kv_heads
    features = attention.merge_heads(got.out, lanes)
    for lane in range(lanes):
        n = first + lane + 1
        for h in range(heads):
            kv = h // g
            m, e, total, acc, out = scalar_query(q[lane, h], qs[lane, h], k[kv, :n], ks[kv, :n], v[kv, :n], vs[kv, :n])
            query = lane * g + h % g
            assert (got.maximum[kv, query], got.exponent[kv, query], got.total[kv, query]) == (m, e, total)
            assert got.acc[kv, query].tolist() == acc
            assert features[lane, h * dim : (h + 1) * dim].tolist() == out


def exact(q: np.ndarray, qs: np.ndarray, k: np.ndarray, ks: np.ndarray, v: np.ndarray, vs: np.ndarray) -> np.ndarray:
    """float64 attention [kv_heads, queries, dim] of the same codes; scores are powers of two."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    t = np.einsum("hqd,hkd->hqk", q * qs[..., None], k * ks[..., None])
    p = np.exp2(t - t.max(-1, keepdims=True))
    return np.einsum("hqk,hkd->hqd", p / p.sum(-1, keepdims=True), v * vs[..., None])


def run(q: np.ndarray, qs: np.ndarray, k: np.ndarray, ks: np.ndarray, v: np.ndarray, vs: np.ndarray) -> Softmax:
    return attention.softmax(q, qs, k, ks, v, vs, np.ones((q.shape[1], k.shape[1]), bool))


@pytest.mark.parametrize("keys", [1, 2, 127, 2048, 4096])
@pytest.mark.parametrize("spread", [0.0, 0.002, 0.03, 1.0], ids=["flat", "even", "usual", "one key wins"])
def test_attention_is_near_float64(keys: int, spread: float) -> None:
    rng = np.random.default_rng(SEED)
    q = rng.integers(-128, 128, (2, 8, 64)).astype(np.int8)
    k, v = rng.integers(-128, 128, (2, 2, keys, 64)).astype(np.int8)
    qs = np.full((2, 8), spread / 64, np.float32)
    ks, vs = rng.uniform(0.02, 0.04, (2, 2, keys)).astype(np.float32)
    got, want = run(q, qs, k, ks, v, vs).out, exact(q, qs, k, ks, v, vs)
    # A score is off by half a unit of 2^-10 (a relative 3.4e-4 of P), a weight by half a unit of 2^-16 of the largest.
    bound = 127 * vs.max() * (4e-4 + 1e-5 + 2e-5)
    assert np.abs(got - want).max() <= bound


def test_small_probabilities_of_a_long_context_add_up() -> None:
    """One key of weight 1 and 4,095 of 2^-14 with the opposite value: a fifth of the sum, nothing of which is lost."""
    keys = 4096
    k = np.ones((1, keys, 32), np.int8)
    k[0, 0] = 127
    q = np.ones((1, 1, 32), np.int8)
    scale = np.full((1, keys), 14 / (126 * 32), np.float32)
    v = np.where(np.arange(keys) == 0, 100, -100).astype(np.int8)[None, :, None].repeat(32, -1)
    args = (q, np.ones((1, 1), np.float32), k, scale, v, np.ones((1, keys), np.float32))
    assert run(*args).out == pytest.approx(exact(*args), rel=2e-3)


def test_order_of_keys_does_not_matter() -> None:
    q, qs, k, ks, v, vs = operands(4, 8, 2, 64, 300)
    rows = q.transpose(1, 0, 2).reshape(2, 16, 64)
    scales = np.ascontiguousarray(qs.T).reshape(2, 16)
    order = np.random.default_rng(SEED).permutation(300)
    a = run(rows, scales, k, ks, v, vs)
    b = run(rows, scales, k[:, order], ks[:, order], v[:, order], vs[:, order])
    assert a.out.tobytes() == b.out.tobytes()


def test_later_keys_of_the_pass_change_nothing() -> None:
    q, qs, k, ks, v, vs = operands(8, 4, 2, 32, 20)
    before = attention.merge_heads(attention.attend(q, qs, k, ks, v, vs, 12).out, 8)
    for array, value in ((k, 127), (v, -128), (ks, 9.0), (vs, 9.0)):
        array[:, 17:] = value
    after = attention.merge_heads(attention.attend(q, qs, k, ks, v, vs, 12).out, 8)
    assert (before[:5] == after[:5]).all() and (before[5:] != after[5:]).any(axis=-1).all()


def test_one_key_returns_its_value() -> None:
    q, qs, k, ks, v, vs = operands(1, 2, 2, 64, 1)
    s = attention.attend(q, qs, k, ks, v, vs, 0)
    assert (s.total == 1 << 24).all() and (s.weights >= attention.WEIGHT_MIN).all()
    # Half a unit of the weight, and a V scale of 17 bits.
    rtol = 0.5 / attention.WEIGHT_MIN + 2.0**-16
    np.testing.assert_allclose(s.out[:, 0], v[:, 0] * vs[:, :1].astype(np.float64), rtol=rtol)


@pytest.mark.parametrize("scale", [1e3, -1e3, 3e38, 1e-38])
def test_extreme_scores_saturate(scale: float) -> None:
    q, _, k, ks, v, vs = operands(1, 1, 1, 32, 5)
    s = run(q, np.float32([[scale]]), k, ks, v, vs)
    assert (np.abs(s.scores) <= 1 << 23).all() and (s.weights <= 65535).all() and np.isfinite(s.out).all()
    if abs(scale) >= 1e3:
        assert np.isin(s.scores, [-(1 << 23), (1 << 23) - 1]).all()
    else:
        assert (s.scores == 0).all() and (s.total == 5 << 24).all()


def test_scores_of_thousands_are_told_apart() -> None:
    """Scores as models with a huge residual have them: the largest key wins, in a float32 model as here."""
    keys = np.array([[4000.0, 4003.0, 5600.0, 5597.0, -5600.0]]) * math.log2(math.e)
    k, v = np.full((1, 5, 32), 1, np.int8), np.arange(1, 161, dtype=np.int64).reshape(1, 5, 32) % 127
    one = np.ones((1, 5), np.float32)
    s = run(
        np.ones((1, 1, 32), np.int8),
        np.ones((1, 1), np.float32),
        k,
        (keys / 32).astype(np.float32),
        v.astype(np.int8),
        one,
    )
    assert s.weights.argmax(-1) == 2 and (s.weights[0, 0, [0, 1, 4]] == 0).all()
    assert s.weights[0, 0, 3] / s.weights[0, 0, 2] == pytest.approx(math.exp(-3), rel=2e-3)


def test_powers_cover_every_exponent_and_are_monotonic() -> None:
    d = np.arange(0, 28 << 10)
    p = attention.power(d)
    assert p[0] == 1 << 24 and (np.diff(p) <= 0).all()
    assert p[24 << 10] == 1 and p[25 << 10] == 0 and p[(25 << 10) + 1 :].max() == 0
    assert np.abs(p - 2.0 ** (24 - d / 2**10)).max() <= 2
    assert attention.power(np.array([(1 << 24) - 1])) == 0


def sink(keys: int, lead: float, value_scale: float) -> tuple[np.ndarray, ...]:
    """Operands of a query whose first key leads the others by 2^lead and a little, its V scale `value_scale` of theirs."""
    rng = np.random.default_rng(SEED)
    k = rng.integers(-2, 3, (1, keys, 32)).astype(np.int8)
    k[0, 0] = 127
    v = rng.integers(-127, 128, (1, keys, 32)).astype(np.int8)
    vs = rng.uniform(0.01, 0.02, (1, keys)).astype(np.float32)
    vs[0, 0] = value_scale * np.float32(0.015)
    q = np.ones((1, 1, 32), np.int8)
    return q, np.ones((1, 1), np.float32), k, np.full((1, keys), lead / (127 * 32), np.float32), v, vs


@pytest.mark.parametrize("keys", [2, 100, 4096])
@pytest.mark.parametrize("lead", [4, 16, 24, 40, 100])
def test_what_a_sink_leaves_keeps_its_precision(keys: int, lead: float) -> None:
    """A key of nearly all the weight and a V scale near 0: the others' values decide, however small their weights."""
    args = sink(keys, lead, 2.0**-60 if lead > 40 else 2.0**-45)
    got, want = run(*args), exact(*args)
    size = np.abs(want).max()
    # The order of magnitude is that of L (2^-24 a key); the direction, which is all that a sub-norm sees, is better.
    assert np.abs(got.out / size - want / size).max() < 5e-4
    direction = got.out[0, 0].astype(np.float64) / np.linalg.norm(got.out.astype(np.float64))
    np.testing.assert_allclose(direction, want[0, 0] / np.linalg.norm(want), atol=1e-4)


@pytest.mark.parametrize("lead", [4, 12, 20])
def test_a_large_v_scale_of_a_light_key_costs_the_others_nothing(lead: float) -> None:
    """The other way round: all V scales but one are 2^-20 of the largest, whose key has next to no weight."""
    q, qs, k, ks, v, vs = sink(300, lead, 1.0)
    k[0, 7] = -127
    vs[0, 7] *= 2.0**20 * 2.0 ** (min(0, lead - 20))
    args = (q, qs, k, ks, v, vs)
    want = exact(*args)
    assert np.abs(run(*args).out - want).max() < 3e-4 * np.abs(want).max()


@pytest.mark.parametrize("spread", [0.0, 1e-4, 0.01, 1.0, 300.0])
def test_the_largest_weight_fills_16_bits_and_never_saturates(spread: float) -> None:
    """Scores and V scales over many magnitudes, with mantissas from end to end."""
    rng = np.random.default_rng(SEED)
    queries, keys = 4000, 3
    q = rng.integers(-128, 128, (1, queries, 32)).astype(np.int8)
    k, v = rng.integers(-128, 128, (2, 1, keys, 32)).astype(np.int8)
    qs = rng.uniform(0, spread / 1000, (1, queries)).astype(np.float32)
    ks = np.ones((1, keys), np.float32)
    for magnitude in (0, 1, 8, 30):
        vs = (2.0 ** rng.uniform(-magnitude, 0, (1, keys))).astype(np.float32)
        for step in (0, 0x7FFFFF, 0x38AA3C):  # mantissas 1, just below 2, and where the pattern is furthest from log2
            vs[0, 0] = fp.from_bits((int(fp.bits(vs[0, 0])) & 0xFF800000) | step)
            largest = run(q, qs, k, ks, v, vs).weights.max(axis=-1)
            assert attention.WEIGHT_MIN <= largest.min() and largest.max() <= attention.WEIGHT_MAX


def test_levels_are_just_below_the_logarithm() -> None:
    rng = np.random.default_rng(SEED)
    scores = rng.integers(-(1 << 23), 1 << 23, 100_000)
    scale = fp.from_bits(rng.integers(1 << 23, fp.INF_BITS, 100_000))
    off = scores / 2**10 + np.log2(scale.astype(np.float64)) + 127 - attention.level(scores, scale) / 16
    assert 0 <= off.min() and 0.2 < off.max() < 0.2112


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_a_v_scale_that_is_not_finite_is_not_hidden(value: float) -> None:
    """Not by a key of all the weight either; queries before it do not see it."""
    q, qs, k, ks, v, vs = operands(4, 2, 1, 32, 40)
    vs[:, 37] = value
    out = attention.attend(q, qs * np.float32(1e4), k, ks, v, vs, 36).out[0]
    assert np.isfinite(out[:2]).all() and not np.isfinite(out[2:]).any()


def test_v_scales_of_zero_give_zero() -> None:
    q, qs, k, ks, v, vs = operands(1, 2, 1, 32, 40)
    some = attention.attend(q, qs, k, ks, v, np.where(np.arange(40) == 3, vs, np.float32(0)), 39)
    assert (some.weights[..., np.arange(40) != 3] == 0).all() and (some.weights[..., 3] > 0).all()
    none = attention.attend(q, qs, k, ks, v, np.zeros_like(vs), 39)
    assert (none.weights == 0).all() and (none.out == 0).all()


def test_query_factor_turns_scores_into_powers_of_two() -> None:
    assert attention.query_factor(64) == np.float32(math.log2(math.e) / 8)


@pytest.mark.parametrize("scale", [1.0, 1.9999, 1.875 - 2**-20])
def test_extreme_codes_are_exact(scale: float) -> None:
    """The largest sums: 4,096 keys of -128, all of full weight."""
    k = np.full((1, 4096, 128), -128, np.int8)
    one = np.ones((1, 4096), np.float32)
    s = run(k[:, :1], np.ones((1, 1), np.float32), k, one, k, one * np.float32(scale))
    assert (s.weights == s.weights[0, 0, 0]).all() and s.weights[0, 0, 0] >= attention.WEIGHT_MIN
    assert (s.acc == -128 * s.weights[0, 0, 0] * 4096).all() and (s.total == 4096 << 24).all()
    np.testing.assert_allclose(s.out, -128 * scale, rtol=4e-5)
