"""Everything between the matrices: scale, RoPE, residual, gates, statistics, quantisers. Vectorised over lanes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden import fp, ternary
from tellme.golden.arith import ceil_div
from tellme.golden.config import CHUNK, PARTIALS

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]

SMALLEST_ABSMAX = np.float32(1e-5)
"""Absolute maxima below this count as this."""

INV_127 = np.float32(1 / 127)
_ONE = np.float32(1)


@dataclass(frozen=True)
class Statistics:
    """What the quantiser must know of a token's features, and the features.

    Attributes
    ----------
    ss : [lanes], sum of squares of the features, before the gain.
    amax : [lanes], largest magnitude of u.
    u : [lanes, features], the features times the gain.
    """

    ss: F32
    amax: F32
    u: F32


# ---- epilogues -------------------------------------------------------------------------------------------------------


def scale(acc: ArrayLike, weight_scale: ArrayLike, act_scale: ArrayLike) -> F32:
    """Outputs of a linear layer: acc [lanes, rows], weight_scale scalar or [rows], act_scale [lanes]."""
    return fp.mul(fp.from_int(acc), fp.mul(weight_scale, np.asarray(act_scale, np.float32)[:, None]))


def rope(y: ArrayLike, cos: ArrayLike, sin: ArrayLike) -> F32:
    """Rotates the pairs (2j, 2j+1) of the last axis; cos and sin [..., dim/2] broadcast against the leading axes."""
    pairs = np.asarray(y, np.float32).reshape(*np.shape(y)[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    out = np.empty_like(pairs)
    out[..., 0] = fp.sub(fp.mul(a, cos), fp.mul(b, sin))
    out[..., 1] = fp.add(fp.mul(b, cos), fp.mul(a, sin))
    return out.reshape(np.shape(y))


def residual(x: ArrayLike, y: ArrayLike) -> F32:
    """The residual stream after a layer's output."""
    return fp.add(x, y)


def gate_relu2(gate: ArrayLike, up: ArrayLike) -> F32:
    """max(gate, 0)^2 * up."""
    g = fp.relu(gate)
    return fp.mul(fp.mul(g, g), up)


def gate_silu(gate: ArrayLike, up: ArrayLike) -> F32:
    """gate / (1 + e^-gate) * up."""
    return fp.mul(fp.mul(gate, fp.recip(fp.add(_ONE, fp.exp(fp.neg(gate))))), up)


# ---- statistics ------------------------------------------------------------------------------------------------------


def sum_of_squares(v: ArrayLike) -> F32:
    """Sum of squares over the last axis (a multiple of 4) in the hardware's order.

    Chunks of 4 are summed as a tree; chunk k joins partial sum k mod 8; the 8 partials are summed as a tree. A partial
    without a chunk is +0.
    """
    x = np.asarray(v, np.float32)
    if x.shape[-1] % CHUNK:
        raise ValueError(f"features must be a multiple of {CHUNK}, not {x.shape[-1]}")
    sq = fp.mul(x, x).reshape(*x.shape[:-1], -1, CHUNK)
    c = fp.add(fp.add(sq[..., 0], sq[..., 1]), fp.add(sq[..., 2], sq[..., 3]))
    steps = ceil_div(c.shape[-1], PARTIALS)
    padded = np.zeros((*x.shape[:-1], steps * PARTIALS), np.float32)
    padded[..., : c.shape[-1]] = c
    # Sums in order, of zeros and of normal numbers that are not negative: never subnormal, so as fp.add makes them
    # (a NaN gets its pattern below).
    with np.errstate(all="ignore"):
        p = np.add.accumulate(padded.reshape(*x.shape[:-1], steps, PARTIALS), axis=-2)[..., -1, :]
    while p.shape[-1] > 1:
        p = fp.add(p[..., 0::2], p[..., 1::2])
    return np.asarray(p[..., 0])


def statistics(v: ArrayLike, gain: ArrayLike | None = None) -> Statistics:
    """Statistics of features v [lanes, n]; `gain` [n] is the weight of the norm that follows, None if there is none."""
    x = np.asarray(v, np.float32)
    u = x if gain is None else fp.mul(x, gain)
    return Statistics(sum_of_squares(x), fp.max_abs(u), u)


def head_statistics(y: ArrayLike, gain: ArrayLike, cos: ArrayLike, sin: ArrayLike) -> Statistics:
    """Statistics of heads y [..., dim] that are normalised, multiplied with `gain` (broadcasting) and rotated as by `rope`.

    RoPE is linear: the normalising factor may come behind it, in `quantise`. ss is of y itself, amax of the rotated u.
    """
    u = rope(fp.mul(y, gain), cos, sin)
    return Statistics(sum_of_squares(y), fp.max_abs(u), u)


# ---- quantisers ------------------------------------------------------------------------------------------------------


def inverse_count(n: int) -> np.float32:
    """1/n as the descriptors hold it."""
    return np.float32(1 / n)


def factors(stats: Statistics, norm: bool, eps: float, largest: ArrayLike = 127) -> tuple[F32, F32]:
    """What features are multiplied with, and the scale of the result."""
    most = np.asarray(largest, np.float64)
    if norm:
        mean = fp.mul(stats.ss, inverse_count(stats.u.shape[-1]))
        r = fp.rsqrt(fp.add(mean, np.float32(eps)))
    else:
        r = np.ones_like(stats.ss)
    a = fp.maximum(fp.mul(stats.amax, r), SMALLEST_ABSMAX)
    return fp.mul(fp.mul(r, most.astype(np.float32)), fp.recip(a)), fp.mul(a, (1 / most).astype(np.float32))


def quantise(stats: Statistics, *, norm: bool, eps: float = 0.0, largest: ArrayLike = 127) -> tuple[I8, F32]:
    """int8 activations [..., n] and their scales [...]; with `norm`, of the features over their root mean square.

    `largest`: as of `quantise_head`, for heads that are normalised.

    The normalising factor r enters only the absolute maximum and the scale: q never sees r * u rounded.
    """
    inv, scale = factors(stats, norm, eps, largest)
    return fp.to_int8(fp.mul(stats.u, inv[..., None])), scale


def exponents(stats: Statistics) -> NDArray[np.int8]:
    """Of each group of `ternary.GROUP` features (the last may have fewer), [..., groups]: the most powers of two, in steps of
    `EXPONENT_STEP` up to `EXPONENT`, that the group's largest magnitude can be multiplied with and stay within the token's.

    Patterns of positive floats compare as integers, and their exponent is in the bits from 23 on: one difference says it.
    """
    n = stats.u.shape[-1]
    magnitude = np.zeros((*stats.u.shape[:-1], ceil_div(n, ternary.GROUP) * ternary.GROUP), np.int64)
    magnitude[..., :n] = fp.bits(stats.u) & 0x7FFFFFFF
    largest = magnitude.reshape(*stats.u.shape[:-1], -1, ternary.GROUP).max(axis=-1)
    room = (fp.bits(stats.amax).astype(np.int64)[..., None] - largest) >> 23
    step = ternary.EXPONENT_STEP
    return (np.clip(room, 0, ternary.EXPONENT) // step * step).astype(np.int8)


def quantise_groups(stats: Statistics, *, norm: bool, eps: float = 0.0) -> tuple[I8, NDArray[np.int8], F32]:
    """Block floating point: int8 activations [..., n], an exponent e of each group [..., groups], and scales [...]; an activation is
    q * 2^-e * scale."""
    inv, scale = factors(stats, norm, eps)
    e = exponents(stats)
    each = np.repeat(e.astype(np.int32), ternary.GROUP, axis=-1)[..., : stats.u.shape[-1]]
    # The product is at most about 127 in magnitude, or infinite: a power of two is exact.
    return fp.to_int8(np.ldexp(fp.mul(stats.u, inv[..., None]), each)), e, scale


def quantise_head(y: ArrayLike, largest: ArrayLike = 127) -> tuple[I8, F32]:
    """Queries, keys or values of heads [..., dim] as integers, and a scale [...] for each.

    largest : magnitude that the largest feature becomes, 127 (8 bits) or 7 (4 bits); scalar, or broadcasting against [...].
    """
    most = np.asarray(largest, np.float64)
    a = fp.maximum(fp.max_abs(y), SMALLEST_ABSMAX)
    inv = fp.mul(most.astype(np.float32), fp.recip(a))
    return fp.to_int8(fp.mul(y, inv[..., None])), fp.mul(a, (1 / most).astype(np.float32))


ROW_TYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
"""Element types of embedding rows that are kept as a checkpoint has them, and how NumPy holds them: bfloat16 as its bits."""


def row_type(rows: NDArray[Any] | None) -> str:
    """Name of the type of embedding rows; None: int8."""
    return "int8" if rows is None else next(n for n, kind in ROW_TYPES.items() if rows.dtype == np.dtype(kind))


def widen(rows: ArrayLike) -> F32:
    """Embedding rows [..., n] of one of `ROW_TYPES` as float32, exactly but for subnormals, which are zeros."""
    x = np.asarray(rows)
    if x.dtype == np.uint16:
        return fp.flush((x.astype(np.uint32) << 16).view(np.float32))
    return fp.flush(x.astype(np.float32))


def dequantise(q: ArrayLike, scales: ArrayLike) -> F32:
    """Embedding rows: int8 [..., n] times their scales [...]."""
    return fp.mul(fp.from_int(q), np.asarray(scales, np.float32)[..., None])
