"""Ternary weights: quantisation, signs of damage, exact products, and the table-lookup view of them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden.arith import ceil_div

_EXACT_FLOAT32 = 1 << 24
"""Integers of float32 are exact up to here."""

_EXACT_FLOAT64 = 1 << 53

_THREADS = (os.cpu_count() or 1) if os.environ.get("OPENBLAS_NUM_THREADS") == "1" else 1
_POOL = ThreadPoolExecutor(_THREADS, "golden")
"""Threads that take blocks of a large matrix; one, if the BLAS brings its own (see `golden/__init__.py`)."""

_BLOCK = 1 << 19
"""Weights that are brought to float32 at a time: 2 MiB."""

ACTIVATION = 128
"""Largest magnitude of an int8 activation, and so of its product with a ternary weight."""


GROUP = 64
"""Weights along the inputs that share a scale, and activations that share an exponent, in the format `grouped`."""

LARGEST_SCALE = (1 << 15) - 1
"""Of a group's scale, as an integer in units of its matrix's: a weight fits 16 bits with its sign."""

EXPONENT = 6
"""Largest exponent of a group of activations."""

EXPONENT_STEP = 2
"""Exponents are multiples of it: a shifter of four places is one LUT a bit, of seven two."""


class WeightError(ValueError):
    """Weights that a format cannot hold (that are not ternary), or bytes that are not packed weights."""


# ---- quantisation ----------------------------------------------------------------------------------------------------


def latent_scale(total: float, count: int) -> np.float32:
    """The scale of `count` latent weights whose magnitudes sum up to `total`: their mean, at least 1e-5."""
    return np.float32(max(total / count, 1e-5))


def quantise(latent: ArrayLike, scale: np.float32 | None = None) -> tuple[NDArray[np.int8], np.float32]:
    """Ternary weights and their scale of latent (trained, float) weights: `w = rne(latent / mean|latent|)` in -1..1.

    `scale` is given when `latent` is only a part of the matrix. Quotients are float32 products with its reciprocal, as
    in BitNet's reference.
    """
    x = np.asarray(latent, np.float32)
    if scale is None:
        scale = latent_scale(float(np.abs(x).sum(dtype=np.float64)), x.size)
    q = x * (np.float32(1) / scale)
    np.rint(q, out=q)
    return np.clip(q, -1, 1, out=q).astype(np.int8), scale


def check(weights: ArrayLike) -> NDArray[np.int8]:
    """`weights` as int8. Raises WeightError, with the first bad value and its place, unless all are -1, 0 or 1."""
    w = np.asarray(weights)
    # Of int8, a byte of w + 1 above 2 says it in a third of the time.
    bad = (w.view(np.uint8) + np.uint8(1)) > 2 if w.dtype == np.int8 else ~((w == -1) | (w == 0) | (w == 1))
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise WeightError(f"weights must be -1, 0 or 1; found {w[place]} at {place}")
    return w.astype(np.int8, copy=False)


def check_groups(weights: ArrayLike) -> NDArray[np.int16]:
    """`weights` as int16. Raises WeightError, with the first bad value and its place, unless in each `GROUP` along the last axis all
    are -s, 0 or s, for an s of the group's own up to `LARGEST_SCALE`."""
    w = np.asarray(weights)
    n = w.shape[-1]
    wide = w.astype(np.int32)
    if n % GROUP:
        wide = np.zeros((*w.shape[:-1], ceil_div(n, GROUP) * GROUP), np.int32)
        wide[..., :n] = w
    groups = np.abs(wide).reshape(*w.shape[:-1], -1, GROUP)
    # The first that is not zero says what the others may be.
    first = np.take_along_axis(groups, (groups != 0).argmax(axis=-1)[..., None], axis=-1)
    bad = ((groups != 0) & (groups != first)) | (groups > LARGEST_SCALE)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad.reshape(wide.shape))[0])
        raise WeightError(
            f"weights of a group of {GROUP} must be -s, 0 or s, with one s up to {LARGEST_SCALE}; found {wide[place]} at {place}"
        )
    return w.astype(np.int16, copy=False)


def group_integers(
    weights: NDArray[np.int8], scales: NDArray[np.float32], size: int, unit: np.float32 | None = None
) -> tuple[NDArray[np.int16], np.float32]:
    """Ternary weights [rows, inputs] whose groups of `size` (a multiple of GROUP, or any size that it is a multiple of and that has
    equal scales within it) have scales [rows, groups], as integers [rows, inputs] and the matrix's scale that they are multiples of.

    The matrix's scale is the power of two that brings its largest to 15 bits: float16 scales (11 bits) down to 1/16 of the largest are
    exact, below they are rounded to it. A scale that rounds to 0 makes its weights 0. `unit` is given when `weights` are only a part of the matrix.

    Raises
    ------
    WeightError : weights of a group have two scales.
    """
    rows, k = weights.shape
    each = np.repeat(scales, size, axis=1)[:, :k]
    used = np.where(weights != 0, each, 0)
    most = float(used.max(initial=0))
    if most == 0:
        return np.zeros((rows, k), np.int16), np.float32(1) if unit is None else unit
    if unit is None:
        unit = np.float32(2.0 ** (np.frexp(most)[1] - 15))
    integers = np.minimum(np.rint(used / unit), LARGEST_SCALE).astype(np.int16)
    integers *= weights
    return check_groups(integers), unit


# ---- damage ----------------------------------------------------------------------------------------------------------

RUN = 128
"""Neighbouring weights of a row (from a multiple of it on), all -1 or all +1, that no trained matrix has: where half of the weights
are -1, so many in a row are met once in 10^38 places. A whole row of fewer weights counts, too. It is a block of I2_S."""

ZERO_ROWS = 0.5
"""Share of rows of nothing but zeros from which on a matrix is damaged. Below, they are features that died or were pruned."""

MOST_ZEROS = 0.999
"""Share of zeros that a matrix may have."""

_VALUES = (-1, 0, 1)


def damage(rows: NDArray[Any], codes: tuple[int, int, int] = _VALUES, weights_per_code: int = 1) -> str | None:
    """What shows that ternary weights [rows, inputs] were overwritten or never written; None if nothing does.

    A hole in a file (a download that broke off, a page that was never written) reads as zero bytes. Those are -1 in all packed
    formats and 0 in floating-point ones. So a matrix is damaged if it has a `RUN` of -1 or +1, if `ZERO_ROWS` of its rows or more
    hold only zeros, or if more than `MOST_ZEROS` of its weights are zero.

    Parameters
    ----------
    rows : of one byte each, neighbours along the inputs lying side by side.
    codes : what stands for -1, 0 and +1; of packed rows the bytes of equal weights.
    weights_per_code : weights that one code stands for.
    """
    n, k = rows.shape
    run = min(ceil_div(RUN, weights_per_code), k)
    # Eight codes at a time where they allow it, which takes a fifth of the time.
    words = k % 8 == 0 and run % 8 == 0
    x = rows.view(np.uint64) if words else rows
    length = run // 8 if words else run
    minus, zero, plus = (np.full(8, code, rows.dtype) for code in codes)
    for code, value in ((minus, "-1"), (plus, "+1")):
        same = x == (code.view(np.uint64) if words else code)[0]
        runs = same[:, : x.shape[1] // length * length].reshape(n, -1, length).all(axis=2)
        if runs.all():
            return f"holds only {value}"
        if runs.any():
            row, i = (int(v) for v in np.argwhere(runs)[0])
            length = run * weights_per_code
            return f"holds {length:,} neighbouring weights of {value} at row {row}, column {i * length}"
    some = rows if codes[1] == 0 else rows != zero[0]
    dead = n - int(np.count_nonzero((some.view(np.uint64) if k % 8 == 0 else some).any(axis=1)))
    if dead == n:
        return "holds only zeros"
    if dead >= ZERO_ROWS * n:
        return f"has {dead:,} rows of zeros among its {n:,}"
    zeros = rows.size - int(np.count_nonzero(some))
    if zeros > MOST_ZEROS * rows.size:
        return f"has {zeros * weights_per_code:,} zeros among its {rows.size * weights_per_code:,} weights"
    return None


def damage_of_floats(values: NDArray[Any]) -> str | None:
    """As `damage`, of a norm's gains [features], or of rows [rows, features] of an embedding or a head."""
    x = np.asarray(values)
    if not x.any():
        return "holds only zeros"
    if x.ndim == 2 and x.min() == x.max():
        return f"holds only {x.flat[0]:g}, everywhere"
    dead = len(x) - int(np.count_nonzero(x.any(axis=1) if x.ndim == 2 else x))
    if dead >= ZERO_ROWS * len(x):
        return f"has {dead:,} {'rows of zeros' if x.ndim == 2 else 'zeros'} among its {len(x):,}"
    return None


def scale_group(values: NDArray[np.float32]) -> int | None:
    """How many neighbours along the inputs of floating-point weights [rows, inputs] share one scale, if each such group is -s, 0
    and s for its own s: inputs, or a part of them down to 32. None if the weights are not ternary."""
    n, k = values.shape
    magnitude = np.abs(values)
    for size in (k, k // 2, k // 4, k // 8, 256, 128, 64, 32):
        if size >= 32 and k % size == 0:
            groups = magnitude.reshape(n, -1, size)
            if ((groups == 0) | (groups == groups.max(axis=2, keepdims=True))).all():
                return size
    return None


# ---- products --------------------------------------------------------------------------------------------------------


def threads() -> int:
    """Threads of large products; 1 if the BLAS brings its own."""
    return _THREADS


def product(a: NDArray[np.integer], b: NDArray[np.generic], bound: int) -> NDArray[Any]:
    """`a @ b.T` over the last axes (with numpy's broadcasting of matrices) of integers, exactly, in a type that holds it.

    Parameters
    ----------
    bound : the largest magnitude of one product of elements.

    float32 sums integers exactly while every partial sum stays within 2^24, whatever the order: the BLAS does it over
    slices of `2^24 // bound` elements, and float64 sums more than one slice (exact to 2^53). A large matrix is brought
    to float32 by blocks of rows that fit the cache, so that it takes no more memory than its own type.
    """
    k = a.shape[-1]
    width = _EXACT_FLOAT32 // bound
    if bound * k > _EXACT_FLOAT64:
        return a.astype(np.int64) @ np.swapaxes(b.astype(np.int64), -1, -2)
    if width == 0:
        # Blocks of rows, for the same reason as below.
        rows = max(1, _BLOCK // k)
        wide = a.astype(np.float64)
        blocks = [
            np.matmul(wide, np.swapaxes(b[..., i : i + rows, :].astype(np.float64), -1, -2))
            for i in range(0, b.shape[-2], rows)
        ]
        return np.concatenate(blocks, axis=-1)
    if k > width:
        parts = (product(a[..., i : i + width], b[..., i : i + width], bound) for i in range(0, k, width))
        total = next(parts).astype(np.float64)
        for part in parts:
            total += part
        return total
    x = a.astype(np.float32)
    if b.ndim > 2 or b.size <= _BLOCK:
        return np.matmul(x, np.swapaxes(b.astype(np.float32, copy=False), -1, -2))
    rows = max(1, _BLOCK // k)
    out = np.empty((*a.shape[:-1], len(b)), np.float32)
    starts = iter(range(0, len(b), rows))  # shared: each thread takes the next block

    def work() -> None:
        block = np.empty((rows, k), np.float32)
        for i in starts:
            part = b[i : i + rows]
            np.copyto(block[: len(part)], part, casting="same_kind")
            np.matmul(x, block[: len(part)].T, out=out[..., i : i + rows])

    for future in [_POOL.submit(work) for _ in range(_THREADS)]:
        future.result()
    return out


def exact_product(a: NDArray[np.integer], b: NDArray[np.generic], bound: int) -> NDArray[np.int64]:
    """`product` as int64."""
    return product(a, b, bound).astype(np.int64)


def linear(weights: NDArray[np.generic], q: NDArray[np.int8]) -> NDArray[np.int64]:
    """Accumulators [..., rows] of activations `q` [..., K] (int8) and ternary `weights` [rows, K], exactly."""
    return exact_product(q, weights, ACTIVATION)


def shifted(q: NDArray[np.int8], exponents: NDArray[np.integer]) -> NDArray[np.int16]:
    """Activations [..., K] (int8) as integers of one scale: `q << (EXPONENT - e)`, e [..., groups] of each GROUP of them."""
    each = np.repeat(EXPONENT - exponents.astype(np.int16), GROUP, axis=-1)[..., : q.shape[-1]]
    return np.left_shift(q.astype(np.int16), each)


def grouped_linear(
    weights: NDArray[np.integer], q: NDArray[np.int8], exponents: NDArray[np.integer]
) -> NDArray[np.int64]:
    """Accumulators [..., rows] of activations `q` [..., K] with their groups' exponents [..., groups], and integer `weights` [rows, K] of
    the format `grouped`, exactly: in units of 2^-EXPONENT times both scales."""
    return exact_product(shifted(q, exponents), weights, (ACTIVATION << EXPONENT) * LARGEST_SCALE)


# ---- table lookup ----------------------------------------------------------------------------------------------------


def groups(values: ArrayLike, size: int) -> NDArray[np.int64]:
    """Splits the last axis in groups of `size` (2..5); the last group is filled with zeros."""
    v = np.asarray(values, np.int64)
    n = v.shape[-1]
    out = np.zeros((*v.shape[:-1], ceil_div(n, size), size), np.int64)
    out.reshape(*v.shape[:-1], -1)[..., :n] = v
    return out


def tables(q: ArrayLike, size: int) -> NDArray[np.int64]:
    """Every signed sum of each group of activations: [..., K] -> [..., groups, 3**size]; entry i belongs to index i."""
    signs = np.arange(3**size)[:, None] // 3 ** np.arange(size) % 3 - 1
    return groups(q, size) @ signs.T


def indices(weights: ArrayLike, size: int) -> NDArray[np.int64]:
    """Table index of each group of weights, `sum_j (w_j + 1) * 3**j`: [..., K] -> [..., groups]."""
    return (groups(check(weights), size) + 1) @ 3 ** np.arange(size)


def lookup(q: ArrayLike, weights: ArrayLike, size: int) -> NDArray[np.int64]:
    """The products of `linear` for one vector `q` [K], by tables: the sum over the groups of table[group, index]."""
    t, i = tables(q, size), indices(weights, size)
    return t[np.arange(t.shape[0]), i].sum(axis=-1)
