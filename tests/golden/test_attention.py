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
) -> tuple[int, int, list[int], list[np.float32]]:
    """One query over its valid keys as docs/numerics.md writes it: m, L, acc, out."""
    scores = []
    for key in range(len(k)):
        dot = sum(int(a) * int(b) for a, b in zip(q, k[key], strict=True))
        t = np.float32(dot) * (qs * ks[key])
        scores.append(max(-(1 << 23), min((1 << 23) - 1, round(float(t) * 2**14))))
    m, vmax = max(scores), max(vs)
    vinv = fp.mul(np.float32(65535), fp.recip(vmax))
    total, acc = 0, [0] * v.shape[1]
    for key, score in enumerate(scores):
        n = -((score - m) // 2**14)
        f = n * 2**14 - (m - score)
        p = (int(fp.exp2_mantissa(f << 6)) << 1) >> n if n <= 25 else 0
        ratio = min(65535, round(float(vs[key] * vinv)))
        weight = (p * ratio + 2**23) >> 24
        total += p
        for d in range(v.shape[1]):
            acc[d] += weight * int(v[key, d])
    so = vmax * np.float32(1 / 65535) * fp.recip(np.float32(total)) * np.float32(2**24)
    return m, total, acc, [np.float32(a) * so for a in acc]


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
            m, total, acc, out = scalar_query(q[lane, h], qs[lane, h], k[kv, :n], ks[kv, :n], v[kv, :n], vs[kv, :n])
            query = lane * g + h % g
            assert got.maximum[kv, query] == m and got.total[kv, query] == total
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
    # A score is off by half a unit of 2^-14 (a relative 2.2e-5 of P), a weight by half a unit of 2^-16 of the largest.
    bound = 127 * vs.max() * (3e-5 + 1e-5 + 2e-5)
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
    assert (s.total == 1 << 24).all() and (s.weights == 65535).all()
    np.testing.assert_allclose(s.out[:, 0], v[:, 0] * vs[:, :1].astype(np.float64), rtol=4e-7)


@pytest.mark.parametrize("scale", [1e3, -1e3, 3e38, 1e-38])
def test_extreme_scores_saturate(scale: float) -> None:
    q, _, k, ks, v, vs = operands(1, 1, 1, 32, 5)
    s = run(q, np.float32([[scale]]), k, ks, v, vs)
    assert (np.abs(s.scores) <= 1 << 23).all() and (s.weights <= 65535).all() and np.isfinite(s.out).all()
    if abs(scale) >= 1e3:
        assert np.isin(s.scores, [-(1 << 23), (1 << 23) - 1]).all()
    else:
        assert (s.scores == 0).all() and (s.total == 5 << 24).all()


def test_powers_cover_every_exponent_and_are_monotonic() -> None:
    d = np.arange(0, 28 << 14)
    p = attention.power(d)
    assert p[0] == 1 << 24 and (np.diff(p) <= 0).all()
    assert p[24 << 14] == 1 and p[25 << 14] == 0 and p[(25 << 14) + 1 :].max() == 0
    assert np.abs(p - 2.0 ** (24 - d / 2**14)).max() <= 2
    assert attention.power(np.array([(1 << 24) - 1])) == 0


def test_ratio_is_of_the_largest_scale() -> None:
    vs = np.float32([1e-7, 0.25, 0.5, 1.0])
    assert attention.ratio(vs, np.float32(1)).tolist() == [0, 16384, 32768, 65535]
    assert (attention.ratio(vs, vs) == 65535).all()


def test_query_factor_turns_scores_into_powers_of_two() -> None:
    assert attention.query_factor(64) == np.float32(math.log2(math.e) / 8)


def test_extreme_codes_are_exact() -> None:
    """The largest sums: 4,096 keys of -128, all of weight 65535."""
    k = np.full((1, 4096, 128), -128, np.int8)
    one = np.ones((1, 4096), np.float32)
    s = run(k[:, :1], np.ones((1, 1), np.float32), k, one, k, one)
    assert (s.acc == -128 * 65535 * 4096).all() and (s.total == 4096 << 24).all()
    np.testing.assert_allclose(s.out, -128, rtol=5e-7)
