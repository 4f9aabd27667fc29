"""Attention and the output head: int8 dot products, integer softmax, int8 weighted sum.

Scores are compared with the query's final maximum and every sum is an exact integer, so a result depends neither on the
order of the keys nor on how positions are split into passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import fp
from tellme.golden.ternary import product

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I64 = NDArray[np.int64]

SCORE_FRAC = 10
SCORE_WIDTH = 24
"""Scores are log2 values, signed Q14.10: as exact as int8 queries and keys ask for, and wide enough for every model."""

LEVEL_FRAC = 4
"""Levels are log2 values, Q16.4."""

_ABOVE = 19
"""Sixteenths by which the largest level is raised before its fraction is cut: what levels and scores are cut by at most, and a little."""

VALUE_FRAC = 16
"""Of the 23 fraction bits of a V scale, those that a weight sees."""

WEIGHT_MIN, WEIGHT_MAX = 27553, 63791
"""Between these is the largest weight of every query (see `exponent`)."""


_POWERS = fp.exp2_mantissa(np.arange(1 << SCORE_FRAC) << (20 - SCORE_FRAC)) << 1
"""2^f in units of 2^-24 of every fraction of a score."""


@dataclass(frozen=True)
class Softmax:
    """Intermediate values of queries [..., queries] over keys, for tests of the hardware.

    Attributes
    ----------
    scores : [..., queries, keys], Q14.10; of invalid keys, too.
    maximum : [..., queries], largest score of a valid key.
    exponent : [..., queries], e: weights are in units of 2^(e - 143), a power of two a query.
    weights : [..., queries, keys], Pq, P x V scale, 0..WEIGHT_MAX; 0 of an invalid key.
    total : [..., queries], L, the sum of P.
    acc : [..., queries, dim], sum of Pq * v.
    out_scale : [..., queries], so.
    out : [..., queries, dim].
    """

    scores: I64
    maximum: I64
    exponent: I64
    weights: I64
    total: I64
    acc: I64
    out_scale: F32
    out: F32


def query_factor(head_dim: int) -> np.float32:
    """q_scale of the descriptors: log2(e) / sqrt(head_dim), so that scores are powers of two."""
    return np.float32(math.log2(math.e) / math.sqrt(head_dim))


def score(dot: NDArray[np.generic], query_scale: F32, key_scale: F32) -> I64:
    """Scores in Q14.10 of dot products [..., queries, keys], scales [..., queries] and [..., keys]."""
    t = fp.mul(fp.from_int(dot), fp.mul(query_scale[..., :, None], key_scale[..., None, :]))
    return fp.to_fixed(t, SCORE_FRAC, SCORE_WIDTH)


def split(difference: I64) -> tuple[I64, I64]:
    """2^-difference as mantissa in units of 2^-24 (2^24 .. 2^25 - 1) and right shift; difference in Q14.10, not negative."""
    return _POWERS[-difference & ((1 << SCORE_FRAC) - 1)], (difference + (1 << SCORE_FRAC) - 1) >> SCORE_FRAC


def power(difference: I64) -> I64:
    """P = 2^-difference in units of 2^-24 (0..2^24); difference in Q14.10, not negative. 0 from 2^-26 down."""
    mantissa, shift = split(difference)
    return mantissa >> np.minimum(shift, 26)  # 25 bits: nothing is left


def level(scores: I64, value_scale: F32) -> I64:
    """log2 of weight x V scale x 2^127 in Q16.4, between 0 and 0.22 too low.

    The pattern of a float, read as a fixed-point number, is its biased log2 to within 0.09. Infinities and NaN count
    2^16384 times as much, so that they are the largest whatever the scores.
    """
    pattern = fp.bits(value_scale).astype(np.int64) & 0x7FFFFFFF
    infinite = pattern >= fp.INF_BITS
    return (
        (scores >> (SCORE_FRAC - LEVEL_FRAC))
        + (pattern >> (fp.MANTISSA_BITS - LEVEL_FRAC))
        + (infinite << SCORE_WIDTH - SCORE_FRAC + LEVEL_FRAC)
    )


def exponent(largest: Any, maximum: Any) -> Any:
    """e of a query, from the largest level and the largest score of its keys: 1..256, or more behind an infinite V scale. Of integers,
    or of values of the hardware.

    2^(e - 127) is just above the largest P x V scale: by a factor of 2^0.038 at least (so that its weight is at most
    `WEIGHT_MAX` and never saturates) and 2^1.25 at most (and at least `WEIGHT_MIN`).
    """
    return (largest - (maximum >> (SCORE_FRAC - LEVEL_FRAC)) + _ABOVE) >> LEVEL_FRAC


def softmax(
    q: I8, query_scale: F32, k: I8, key_scale: F32, v: I8, value_scale: F32, valid: NDArray[np.bool_]
) -> Softmax:
    """Attention of queries over keys, leading axes (KV heads) broadcasting.

    Parameters
    ----------
    q : [..., queries, dim]; query_scale : [..., queries], with the factor of `query_factor` in it.
    k, v : [..., keys, dim]; key_scale, value_scale : [..., keys].
    valid : [..., queries, keys], which keys a query attends to; at least one each.
    """
    scores = score(product(q, k, 1 << 14), query_scale, key_scale)
    maximum = np.where(valid, scores, np.iinfo(np.int64).min).max(axis=-1)
    levels = level(scores, value_scale[..., None, :])
    e = exponent(np.where(valid, levels, np.iinfo(np.int64).min).max(axis=-1), maximum)
    mantissa, shift = split(np.where(valid, maximum[..., None] - scores, 1 << SCORE_WIDTH))
    total = (mantissa >> np.minimum(shift, 26)).sum(axis=-1)
    weights = _weights(mantissa, shift + e[..., None], value_scale[..., None, :])
    acc = (weights.astype(np.float64) @ v.astype(np.float64)).astype(np.int64)  # exact: below 2^53
    unit = fp.from_bits(np.minimum(e + 8, 255) << fp.MANTISSA_BITS)  # 2^(e - 119), or infinite
    out_scale = fp.mul(fp.recip(fp.from_int(total)), unit)
    out = fp.mul(fp.from_int(acc), out_scale[..., None])
    return Softmax(scores, maximum, e, weights, total, acc, out_scale, out)


def _weights(mantissa: I64, shift: I64, value_scale: F32) -> I64:
    """mantissa * 2^-shift (in units of 2^-24) x V scale in units of 2^-143, rounded; 0 of a V scale that is 0."""
    pattern = fp.bits(value_scale).astype(np.int64) & 0x7FFFFFFF
    biased = pattern >> fp.MANTISSA_BITS
    value = (pattern >> (fp.MANTISSA_BITS - VALUE_FRAC)) & ((1 << VALUE_FRAC) - 1) | 1 << VALUE_FRAC
    right = np.minimum(24 + shift - biased, 48)  # 42 bits: nothing is left
    return np.where(biased == 0, 0, (mantissa * value + (1 << right - 1)) >> right)


def attend(q: I8, query_scale: F32, k: I8, key_scale: F32, v: I8, value_scale: F32, first: int) -> Softmax:
    """A group of lanes over the keys of its slot, its own included.

    Parameters
    ----------
    q : [lanes, heads, dim]; query_scale : [lanes, heads].
    k, v : [kv_heads, first + lanes, dim]; key_scale, value_scale : [kv_heads, first + lanes].
    first : position of the first lane. Lane i attends to keys 0 .. first + i.

    Returns
    -------
    Values with axes [kv_heads, lanes * G, ...], G = heads / kv_heads queries a KV head, query = lane * G + g: the order
    in which the hardware takes them. `merge_heads` brings `out` into the order of features.
    """
    lanes, heads, dim = q.shape
    kv_heads, keys, _ = k.shape
    g = heads // kv_heads
    rows = q.reshape(lanes, kv_heads, g, dim).transpose(1, 0, 2, 3).reshape(kv_heads, lanes * g, dim)
    scales = query_scale.reshape(lanes, kv_heads, g).transpose(1, 0, 2).reshape(kv_heads, lanes * g)
    valid = np.arange(keys) <= first + np.arange(lanes * g)[:, None] // g
    return softmax(rows, scales, k, key_scale, v, value_scale, valid)


def merge_heads(out: F32, lanes: int) -> F32:
    """`out` of `attend` as features [lanes, heads * dim]."""
    kv_heads, queries, dim = out.shape
    return out.reshape(kv_heads, lanes, queries // lanes, dim).transpose(1, 0, 2, 3).reshape(lanes, -1)
