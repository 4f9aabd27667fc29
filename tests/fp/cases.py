"""Operands that golden and RTL are tested with: directed edges and random patterns."""

from __future__ import annotations

import numpy as np

from tellme.golden import fp

_MAGNITUDES = [
    0x00000000,  # zero
    0x00000001,  # smallest subnormal
    0x00400000,
    0x007FFFFF,  # largest subnormal
    0x00800000,  # 2^-126
    0x00800001,
    0x00FFFFFF,
    0x01000000,
    0x0C000000,  # 2^-103: cancellation that ends just above and below 2^-126
    0x0C7FFFFF,
    0x1F800000,  # 2^-64
    0x20000000,  # 2^-63
    0x1FFFFFFF,
    0x1FB504F3,  # products of these two straddle 2^-126
    0x1FB504F4,
    0x33000000,  # 2^-25, half an ulp of 1/2
    0x33800000,  # 2^-24, half an ulp of 1
    0x33800001,
    0x34000000,  # 2^-23
    0x3EFFFFFF,
    0x3F000000,  # 1/2
    0x3F000001,
    0x3F7FFFFF,
    0x3F800000,  # 1
    0x3F800001,
    0x3F800003,
    0x3FC00000,
    0x3FFFFFFF,
    0x40000000,
    0x42AEAC4F,  # 87.336537: exp(-x) is just above 2^-126
    0x42AEAC50,
    0x42AEAC51,
    0x42B17217,  # 88.72283: exp(x) is the last finite
    0x42B17218,
    0x42FE0000,  # 127
    0x42FEFFFF,
    0x42FF0000,  # 127.5
    0x42FF0001,
    0x43000000,  # 128
    0x43010000,
    0x4B000000,  # 2^23
    0x4B800000,  # 2^24
    0x4B800001,
    0x5F7FFFFF,  # products of these neighbours straddle the overflow
    0x5F800000,
    0x72FFFFFF,
    0x73000000,  # 2^103, half an ulp of the largest finite
    0x7E7FFFFF,
    0x7E800000,  # 2^126: the last with a reciprocal
    0x7E800001,
    0x7F000000,
    0x7F7FFFFF,  # largest finite
    0x7F800000,  # infinity
    0x7F800001,  # signalling NaN
    0x7FC00000,
    0x7FFFFFFF,
]


def edges() -> np.ndarray:
    """Directed patterns, both signs (uint32)."""
    magnitudes = np.array(_MAGNITUDES, np.uint32)
    return np.concatenate([magnitudes, magnitudes | np.uint32(1 << 31)])


def edge_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Every pair of directed patterns."""
    e = edges()
    a, b = np.meshgrid(e, e)
    return a.ravel(), b.ravel()


def patterns(rng: np.random.Generator, n: int) -> np.ndarray:
    """Any 32-bit pattern."""
    return rng.integers(0, 1 << 32, n, dtype=np.uint32)


def product_pairs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs: a third any, a third with products near 2^-126 or overflow, a third short mantissas (ties)."""
    a, b = patterns(rng, n), patterns(rng, n)
    k = n // 3
    total = rng.choice([126, 127, 128, 380, 381, 382], k)
    ea = np.clip(rng.integers(1, 255, k), total - 254, total - 1)
    a[:k] = (a[:k] & 0x807FFFFF) | (ea << 23).astype(np.uint32)
    b[:k] = (b[:k] & 0x807FFFFF) | ((total - ea) << 23).astype(np.uint32)
    a[k : 2 * k] &= 0xFFFFF800
    b[k : 2 * k] &= 0xFFFFF800
    return a, b


def sum_pairs(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs: a quarter any; the rest of near exponents, among them long cancellations, ties and tiny numbers."""
    a, b = patterns(rng, n), patterns(rng, n)
    k = n // 4
    exponent = np.clip(((a >> 23) & 255).astype(np.int64) + rng.integers(-27, 28, n), 0, 254).astype(np.uint32)
    near = (b & 0x807FFFFF) | (exponent << 23)
    b[:k] = near[:k]
    ulps = rng.integers(-4, 5, k)  # a - b of a few ulps, at most a binade apart
    b[k : 2 * k] = ((a[k : 2 * k].astype(np.int64) ^ (1 << 31)) + ulps) & 0xFFFFFFFF
    mask = np.uint32(0xFFFFFFFF) << rng.integers(8, 24, k).astype(np.uint32)
    b[2 * k : 3 * k] = near[2 * k : 3 * k] & mask
    small = rng.integers(0, 2, n).astype(bool) & (np.arange(n) < 2 * k)  # sums below 2^-126
    both = (rng.integers(0, 6, n) << 23).astype(np.uint32)
    a, b = np.where(small, (a & 0x807FFFFF) | both, a), np.where(small, (b & 0x807FFFFF) | both, b)
    return a, b


def scaled(rng: np.random.Generator, n: int, low: int, high: int) -> np.ndarray:
    """Random patterns of magnitudes 2^low .. 2^high; half of them with few fraction bits, so that ties are met."""
    exponent = rng.integers(low + 127, high + 127, n).astype(np.uint32)
    fraction = patterns(rng, n) & 0x7FFFFF
    drop = rng.integers(0, 24, n).astype(np.uint32) * (np.arange(n) % 2).astype(np.uint32)
    fraction = (fraction >> drop) << drop
    return (exponent << 23) | fraction | (patterns(rng, n) & np.uint32(1 << 31))


def integers(rng: np.random.Generator, n: int, width: int) -> np.ndarray:
    """Signed integers of `width` bits: the ends, powers of two and their neighbours, then random lengths."""
    least, most = -(1 << (width - 1)), (1 << (width - 1)) - 1
    powers = [s * ((1 << k) + d) for k in range(width) for s in (1, -1) for d in (-1, 0, 1)]
    halves = [(1 << k) + (1 << max(0, k - j)) + d for k in range(24, width) for j in (23, 24, 25) for d in (-1, 0, 1)]
    directed = [v for v in [0, least, most, *powers, *halves] if least <= v <= most]
    length = rng.integers(1, width, n)
    drawn = rng.integers(0, 1 << 62, n) & ((1 << length) - 1)
    drawn = np.where(rng.integers(0, 2, n) == 1, -drawn, drawn)
    return np.concatenate([np.array(directed, np.int64), drawn])[:n]


def ordered(x: np.ndarray) -> np.ndarray:
    """Integers that count the steps of one ulp between float32 values."""
    p = fp.bits(x).astype(np.int64)
    return np.where(p >> 31, -(p & 0x7FFFFFFF), p)
