"""The Hadamard transform of queries and keys: against matrices and float64, its bounds, and in the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tellme.golden import elementwise, fp, hadamard
from tellme.golden.config import KV260, TINY
from tellme.golden.kv import CACHE_FORMATS, CacheFormat
from tellme.golden.model import GoldenModel, ModelError
from tests.models import random_weights, small_spec
from tests.reference import Kept, Options, forward, rounded

F64 = NDArray[np.float64]

SEED = 5
MATRIX = np.array([[(-1) ** (i & j).bit_count() for j in range(32)] for i in range(32)])
"""Sylvester's, by its definition."""
EVERY = pytest.mark.parametrize(
    "cache", [replace(c, hadamard=True) for c in CACHE_FORMATS.values()], ids=lambda c: c.name
)


def statistics(u: np.ndarray) -> elementwise.Statistics:
    return elementwise.Statistics(np.zeros(u.shape[:-1], np.float32), fp.max_abs(u), u)


def test_the_transform_is_the_matrix_of_every_32_dimensions() -> None:
    x = np.random.default_rng(SEED).integers(-hadamard.WIDE - 1, hadamard.WIDE + 1, (3, 2, 96))
    want = (x.reshape(3, 2, 3, 32) @ MATRIX).reshape(x.shape)
    np.testing.assert_array_equal(hadamard.transform(x), want)
    np.testing.assert_array_equal(hadamard.transform(hadamard.transform(x)), 32 * x)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("row", [0, 1, 31])
def test_the_largest_sums_fit(row: int, sign: int) -> None:
    x = np.where(sign * MATRIX[row] > 0, hadamard.WIDE, -hadamard.WIDE - 1)
    y = hadamard.transform(x)
    assert -(1 << hadamard.TURNED_BITS - 1) <= y.min() and y.max() < 1 << hadamard.TURNED_BITS - 1
    for largest in (127, 7):
        q, scale = hadamard.requantise(y, np.float32(1), largest)
        assert abs(int(q[row])) == largest and np.abs(q[row] * scale - y[row]) <= scale / 2


@pytest.mark.parametrize("largest", [127, 7])
@pytest.mark.parametrize("dim", [32, 96, 128])
def test_integers_are_within_half_a_step_of_float64(dim: int, largest: int) -> None:
    """And a little: what features lose before the transform, a 12-bit step each, and the factor's last bit."""
    rng = np.random.default_rng(SEED)
    u = (rng.normal(0, 1, (200, 3, dim)) * rng.lognormal(0, 1, (1, 1, dim))).astype(np.float32)
    u[:50, :, 7] *= 30  # a key's outlier
    q, scale = hadamard.quantise(statistics(u), norm=False, largest=largest)
    exact = (u.astype(np.float64).reshape(200, 3, -1, 32) @ MATRIX).reshape(u.shape)
    assert np.abs(q).max() == largest and (np.abs(q).max(-1) == largest).all()
    step = scale[..., None].astype(np.float64)
    before = np.abs(u).max(-1, keepdims=True) / hadamard.WIDE  # of a feature
    assert (np.abs(q * step - exact) <= 0.501 * step + 32 * 0.5 * before).all()
    error = np.sqrt(((q * step - exact) ** 2).mean())
    ideal = np.sqrt(((rounded(exact, largest) - exact) ** 2).mean())
    assert error < 1.02 * ideal


def test_an_outlier_no_longer_sets_the_scale_of_the_others() -> None:
    u = np.random.default_rng(SEED).normal(0, 1, (500, 64)).astype(np.float32)
    u[:, 3] = 20

    def error(q: np.ndarray, scale: np.ndarray, exact: np.ndarray, unit: float) -> float:
        return float((((q * scale[..., None] - exact) / unit) ** 2).mean())

    exact = (u.reshape(500, 2, 32) @ MATRIX).reshape(u.shape)
    turned = error(*hadamard.quantise(statistics(u), norm=False, largest=7), exact, np.sqrt(32))
    plain = error(*elementwise.quantise_head(u, 7), u, 1)
    assert turned < plain / 4


def test_heads_below_the_smallest_maximum_keep_a_scale() -> None:
    """As without the transform: zeros, and numbers so small that they count as a part of the smallest maximum."""
    for size in (0, 1e-9, 3e-8):
        u = np.full((2, 32), size, np.float32)
        q, scale = hadamard.quantise(statistics(u), norm=False)
        np.testing.assert_allclose(q * scale[:, None].astype(np.float64), u @ MATRIX, atol=32 * 1e-5 / hadamard.WIDE)
        assert (scale > 0).all() and np.isfinite(scale).all()
    bad = np.array([[np.inf, *[1.0] * 31], [np.nan, *[1.0] * 31]], np.float32)
    assert (hadamard.quantise(statistics(bad), norm=False)[0][0] == 0).all()


@EVERY
def test_a_turned_model_does_not_depend_on_passes(cache: CacheFormat) -> None:
    weights = random_weights(small_spec(head_dim=64, heads=2, kv_heads=1, qk_norm=True), SEED)
    little, large = (replace(c, narrow_cache=True, hadamard=True) for c in (TINY, KV260))
    ids = np.random.default_rng(SEED).integers(0, weights.spec.vocab, 19)
    whole = GoldenModel(weights, large, cache=cache)
    logits = whole.prefill(ids, all_logits=True).logits
    parts = GoldenModel(weights, little, cache=cache)
    found = [parts.run_pass([t], [i], [0]).logits[0] for i, t in enumerate(ids)]
    np.testing.assert_array_equal(np.stack(found), logits)
    plain = GoldenModel(weights, large, cache=replace(cache, hadamard=False)).prefill(ids, all_logits=True).logits
    assert (plain != logits).any()
    for a, b in zip(whole.cache(0, 0), parts.cache(0, 0), strict=True):
        np.testing.assert_array_equal(a, b)


@EVERY
@pytest.mark.parametrize("qk_norm", [False, True])
def test_a_turned_model_is_near_float64(cache: CacheFormat, qk_norm: bool) -> None:
    """The same rounding, written in float64: before the transform and behind it, which is then taken back."""
    weights = random_weights(small_spec(head_dim=32, qk_norm=qk_norm), SEED)
    config = replace(TINY, narrow_cache=True, hadamard=True)
    pairs = np.stack([np.arange(16), np.arange(16) + 16], 1).reshape(-1)  # the order of dimensions in hardware
    turn = MATRIX[:, np.argsort(pairs)] / np.sqrt(32)

    def kept(largest: int) -> Callable[[F64], F64]:
        return lambda x: rounded(rounded(x, hadamard.WIDE) @ turn.T, largest) @ turn

    keep = Kept(kept(127), kept(7 if cache.k_narrow else 127), lambda x: rounded(x, 7 if cache.v_narrow else 127))
    errors = []
    for seed in range(12):
        ids = np.random.default_rng(seed).integers(0, weights.spec.vocab, 4)
        want = forward(weights, ids, Options(embedding=True, head=True), kept=keep)
        got = GoldenModel(weights, config, cache=cache).prefill(ids, all_logits=True).logits
        errors.append(np.abs(got - want).max(-1) / np.abs(want).max(-1))
    assert np.quantile(errors, 0.25) < 1e-4 and np.max(errors) < 0.1


def test_an_accelerator_without_it_refuses_it() -> None:
    weights = random_weights(small_spec(), SEED)
    with pytest.raises(ModelError, match="'tiny' is built without the Hadamard transform of queries and keys"):
        GoldenModel(weights, TINY, cache=replace(CACHE_FORMATS["8"], hadamard=True))
