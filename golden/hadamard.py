"""Queries and keys turned by a Hadamard matrix before they are quantised, in integers.

A head's largest dimension sets the scale of all others; turned, it is spread over a block of BLOCK dimensions. Queries and keys are
turned alike, so that their dot products are those of before, times BLOCK. It is the Walsh-Hadamard transform, not divided by the
square root of BLOCK: sums and differences alone; the factor of the queries' scales takes the BLOCK back, a power of two.

Features become integers of up to WIDE, as the quantiser makes those of 127, are transformed without an error, and then take a second,
integer, scale to 127 or 7.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden import elementwise, fp
from tellme.golden.arith import exact_log2
from tellme.golden.attention import query_factor

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I64 = NDArray[np.int64]

BLOCK = 32
"""Dimensions that are turned together: what every head is a multiple of."""

WIDE_BITS = 13
"""Of a feature before the transform, signed."""

WIDE = (1 << WIDE_BITS - 1) - 1
"""Largest magnitude of it."""

TURNED_BITS = WIDE_BITS + exact_log2(BLOCK)
"""Of a sum of BLOCK of them, signed: one factor of a DSP48."""

FACTOR_FRAC = 28
"""Fraction bits of the second scale's factor, which is 127/131072 to 127/4095 or 7/131072 to 7/4095."""

FACTOR_BITS = 24
"""Of it, signed: the other factor of a DSP48."""


def transform(x: ArrayLike) -> I64:
    """The unnormalised Walsh-Hadamard transform of every BLOCK of integers [..., n], in natural order."""
    y = np.array(x, np.int64)
    shape = y.shape
    for bit in range(exact_log2(BLOCK)):
        pairs = y.reshape(-1, BLOCK >> bit + 1, 2, 1 << bit)
        y = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
    return y.reshape(shape)


def query_scale_factor(head_dim: int, hadamard: bool) -> np.float32:
    """q_scale of the descriptors: `attention.query_factor`, over BLOCK where queries and keys are turned."""
    return np.float32(query_factor(head_dim) / (BLOCK if hadamard else 1))


def requantise(y: ArrayLike, scale: ArrayLike, largest: ArrayLike = 127) -> tuple[I8, F32]:
    """Transformed heads [..., dim], integers of TURNED_BITS with a scale [...], as integers of up to `largest` and their scales.

    The largest magnitude is that of ones' complements, at most one less, which costs no adder; and at least WIDE, as that of any head is
    whose largest feature is above the quantiser's smallest.
    """
    v = np.asarray(y, np.int64)
    most = np.maximum((v ^ (v >> 63)).max(-1), WIDE)
    wanted = np.broadcast_to(np.asarray(largest, np.float64), most.shape)
    top = fp.from_int(most)
    factor = fp.to_fixed(fp.mul(wanted.astype(np.float32), fp.recip(top)), FACTOR_FRAC, FACTOR_BITS)
    q = (v * factor[..., None] + (1 << FACTOR_FRAC - 1)) >> FACTOR_FRAC
    return q.astype(np.int8), fp.mul(scale, fp.mul(top, (1 / wanted).astype(np.float32)))


def quantise(
    stats: elementwise.Statistics, *, norm: bool, eps: float = 0.0, largest: ArrayLike = 127, factor: ArrayLike = 1.0
) -> tuple[I8, F32]:
    """Queries or keys of heads [..., dim], turned, as integers of up to `largest`, and a scale [...] for each.

    norm, eps, largest : as of `elementwise.quantise`. factor : what the scales are multiplied with, broadcasting against [...].
    """
    inv, scale = elementwise.factors(stats, norm, eps, WIDE)
    x = fp.to_fixed(fp.mul(stats.u, inv[..., None]), 0, WIDE_BITS)
    return requantise(transform(x), fp.mul(scale, np.asarray(factor, np.float32)), largest)
