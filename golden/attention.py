"""Attention and the output head: int8 dot products, integer softmax, int8 weighted sum.

Scores are compared with the query's final maximum and every sum is an exact integer, so a result depends neither on the
order of the keys nor on how positions are split into passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellme.golden import fp
from tellme.golden.ternary import product

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I64 = NDArray[np.int64]

SCORE_FRAC = 14
SCORE_WIDTH = 24
"""Scores are log2 values, signed Q10.14."""

UNIT = 1 << 24
"""P of the largest score."""

RATIO_MAX = 65535
"""Weight of a key with the largest score and the largest V scale."""


_POWERS = fp.exp2_mantissa(np.arange(1 << SCORE_FRAC) << (20 - SCORE_FRAC)) << 1
"""2^f in units of 2^-24 of every fraction of a score."""


@dataclass(frozen=True)
class Softmax:
    """Intermediate values of queries [..., queries] over keys, for tests of the hardware.

    Attributes
    ----------
    scores : [..., queries, keys], Q10.14; of invalid keys, too.
    maximum : [..., queries], largest score of a valid key.
    weights : [..., queries, keys], Pq, 0..65535; 0 of an invalid key.
    total : [..., queries], L, the sum of P.
    acc : [..., queries, dim], sum of Pq * v.
    out_scale : [..., queries], so.
    out : [..., queries, dim].
    """

    scores: I64
    maximum: I64
    weights: I64
    total: I64
    acc: I64
    out_scale: F32
    out: F32


def query_factor(head_dim: int) -> np.float32:
    """q_scale of the descriptors: log2(e) / sqrt(head_dim), so that scores are powers of two."""
    return np.float32(math.log2(math.e) / math.sqrt(head_dim))


def score(dot: NDArray[np.generic], query_scale: F32, key_scale: F32) -> I64:
    """Scores in Q10.14 of dot products [..., queries, keys], scales [..., queries] and [..., keys]."""
    t = fp.mul(fp.from_int(dot), fp.mul(query_scale[..., :, None], key_scale[..., None, :]))
    return fp.to_fixed(t, SCORE_FRAC, SCORE_WIDTH)


def power(difference: I64) -> I64:
    """P = 2^-difference in units of 2^-24 (0..2^24); difference in Q10.14, not negative. 0 from 2^-26 down."""
    n = (difference + (1 << SCORE_FRAC) - 1) >> SCORE_FRAC
    f = -difference & ((1 << SCORE_FRAC) - 1)  # n * 2^14 - difference
    return _POWERS[f] >> np.minimum(n, 26)  # 25 bits: nothing is left


def ratio(value_scale: F32, largest: F32) -> I64:
    """V scales in units of the largest, 0..65535."""
    inverse = fp.mul(np.float32(RATIO_MAX), fp.recip(largest))
    return np.clip(fp.to_fixed(fp.mul(value_scale, inverse), 0, 18), 0, RATIO_MAX)


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
    vmax = np.where(valid, value_scale[..., None, :], np.float32(0)).max(axis=-1)
    p = power(np.where(valid, maximum[..., None] - scores, 1 << SCORE_WIDTH))
    weights = (p * ratio(value_scale[..., None, :], vmax[..., None]) + UNIT // 2) >> 24
    total = p.sum(axis=-1)
    acc = (weights.astype(np.float64) @ v.astype(np.float64)).astype(np.int64)  # exact: below 2^53
    out_scale = fp.mul(fp.mul(fp.mul(vmax, np.float32(1 / RATIO_MAX)), fp.recip(fp.from_int(total))), np.float32(UNIT))
    out = fp.mul(fp.from_int(acc), out_scale[..., None])
    return Softmax(scores, maximum, weights, total, acc, out_scale, out)


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
