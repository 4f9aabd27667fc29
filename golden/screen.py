"""The screened output head: ternary rows choose the candidates, whose int8 rows then give the logits of `golden.head`.

A row of the head has one or two *planes* of ternary weights, each with a scale; the second approximates what the first leaves.
Its *score* is an integer, the sum over its planes of `(sum w * q) * scale`, with the scales as 16-bit multiples of one `unit`: so
the order of scores depends on no rounding. The N rows of the largest scores, of equal ones those of the lowest indices, are the
candidates of a lane; their logits are those of the full head, bit for bit, and no other row can win.

`bound` is the smallest score of a candidate as a logit. How far the best logit is above it (the *margin*) tells how sure it is that
no row that was left out is larger: it would have to be larger by more than the margin than its own score says.

A head that *is* ternary is its own screen (`Screen.exact`): its scores, times `unit` and the activations' scale, are its logits, no row
needs int8, and there is no doubt. In the format `grouped` its weights are integers, each with the scale of its group in it, as those of
every other matrix; else a row has one scale, as a plane has.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellme.golden import fp, head
from tellme.golden.ternary import ACTIVATION, EXPONENT, LARGEST_SCALE, exact_product, group_integers

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

SCALE_BITS = 16
"""Of a row's scale, unsigned."""
MAX_PLANES = 2
MULTIPLE = 16
"""Candidates of a lane are a multiple of it."""
MAX_CANDIDATES = 1024
BOUND_SHIFT = 12
"""Bits of a score that its bound does without, rounding down: the rest is no wider than a dot product of the full head."""
MAX_ROWS = 1 << 20
"""Rows of a screened head: their indices have 20 bits."""

_BLOCK = 1 << 13
"""Rows that are quantised at a time."""


@dataclass(frozen=True)
class Screen:
    """Ternary copy of a head, or a head that is ternary.

    Attributes
    ----------
    planes : int8 [rows, planes, features], each -1, 0 or 1; of a head with scales of groups int16, those in it (`ternary.group_integers`).
    scales : uint16 [rows, planes], in units of `unit`; of a head with scales of groups 1.
    unit : float32.
    margin : a best logit that is above the bound by less may not be the head's largest; 0 if nothing is known of it.
    exact : it is the head: scores are its logits.
    """

    planes: NDArray[np.signedinteger]
    scales: NDArray[np.uint16]
    unit: np.float32
    margin: np.float32 = np.float32(0)
    exact: bool = False

    @property
    def count(self) -> int:
        """Planes."""
        return int(self.planes.shape[1])


# ---- making one ------------------------------------------------------------------------------------------------------


def _nearest(rows: I8, importance: F64) -> tuple[I8, F32]:
    """The ternary rows and scales that are nearest to int8 rows [rows, features], by the sum of squares, each times the importance
    [features] of its feature.

    A row's best weights are the signs of its magnitudes from a threshold on, and its scale is the mean of these, for the threshold
    that makes (their sum)^2 / their number largest, sum and number being weighted. Magnitudes are few: all are tried.
    """
    n = len(rows)
    magnitude = np.abs(rows.astype(np.int16)).astype(np.intp)
    places = (magnitude + 128 * np.arange(n)[:, None]).reshape(-1)
    weights = np.broadcast_to(importance, rows.shape).reshape(-1)
    counts = np.bincount(places, weights, minlength=128 * n).reshape(n, 128)
    above = counts[:, ::-1].cumsum(axis=1)[:, ::-1]  # of magnitudes from the threshold on
    sums = (counts * np.arange(128))[:, ::-1].cumsum(axis=1)[:, ::-1]
    above, sums = above[:, 1:], sums[:, 1:]
    some = np.where(above > 0, above, 1)
    threshold = 1 + np.argmax(sums * sums / some, axis=1)
    at = np.arange(n), threshold - 1
    w = np.sign(rows) * (magnitude >= threshold[:, None])
    return w.astype(np.int8), (sums[at] / some[at]).astype(np.float32)


def quantise(rows: I8, row_scales: F32, planes: int = 1, importance: NDArray[np.floating] | None = None) -> Screen:
    """The ternary copy of a head of int8 rows [rows, features] with a scale each.

    Parameters
    ----------
    importance : of each feature, the mean square of what it is multiplied by; None: all are equal.

    Raises
    ------
    ValueError : planes are not 1 or 2, or there are more rows than indices.
    """
    if not 1 <= planes <= MAX_PLANES:
        raise ValueError(f"a screened head has 1 or {MAX_PLANES} ternary planes, not {planes}")
    n, features = rows.shape
    if n > MAX_ROWS:
        raise ValueError(f"a screened head has at most {MAX_ROWS:,} rows, not {n:,}")
    important = np.ones(features) if importance is None else np.asarray(importance, np.float64)
    weights = np.empty((n, planes, features), np.int8)
    scales = np.empty((n, planes), np.float32)
    for i in range(0, n, _BLOCK):
        part = slice(i, min(i + _BLOCK, n))
        left, factor = rows[part], np.ones(len(rows[part]), np.float32)
        for p in range(planes):
            w, scale = _nearest(left, important)
            weights[part, p], scales[part, p] = w, scale * factor
            if p + 1 < planes:
                rest = left - scale[:, None] * w
                left, steps = head.quantise_rows(rest)
                factor = factor * steps
        scales[part] *= row_scales[part, None]
    largest = np.float32(scales.max())
    unit = np.float32(largest / ((1 << SCALE_BITS) - 1)) if largest > 0 else np.float32(1)
    codes = np.minimum(np.rint(scales.astype(np.float64) / float(unit)), (1 << SCALE_BITS) - 1)
    return Screen(weights, codes.astype(np.uint16), unit)


def exact_rows(weights: I8, scales: NDArray[np.float32]) -> Screen:
    """A head of ternary rows [rows, features] with a scale each [rows].

    Where all scales are multiples of a power of two, up to 2^16 - 1 of it, as are all that differ little in float16 or bfloat16, nothing is rounded; nor is it where
    they are one. Else they are to within 2^-17 of the largest.
    """
    alive = np.where(weights.any(axis=1), scales, 0).astype(np.float32)
    largest = float(alive.max(initial=0))
    most = (1 << SCALE_BITS) - 1
    if largest == 0:
        unit, codes = np.float32(1), np.zeros(len(alive))
    elif ((alive == 0) | (alive == largest)).all():
        unit, codes = np.float32(largest), (alive > 0).astype(np.float64)
    else:
        unit = np.float32(2.0 ** (np.frexp(largest)[1] - SCALE_BITS))
        codes = alive.astype(np.float64) / float(unit)
        if (codes != np.rint(codes)).any():
            unit = np.float32(largest / most)
            codes = np.minimum(np.rint(alive.astype(np.float64) / float(unit)), most)
    return Screen(weights[:, None], codes.astype(np.uint16)[:, None], unit, exact=True)


def exact_groups(weights: I8, scales: NDArray[np.float32], size: int) -> Screen:
    """A head of ternary rows [rows, features] whose groups of `size` features have scales [rows, groups]: see `ternary.group_integers`.

    Raises
    ------
    WeightError : weights of a group of the format `grouped` have two scales.
    """
    integers, unit = np.empty(weights.shape, np.int16), np.float32(1)
    starts, used = np.arange(0, weights.shape[1], size), []
    for i in range(0, len(weights), _BLOCK):
        part = slice(i, i + _BLOCK)
        own = scales[part][np.logical_or.reduceat(weights[part] != 0, starts, axis=1)]
        used += [own.min(), own.max()] if own.size else []
    if used:
        # One scale is exact, whatever it is.
        unit = max(used) if min(used) == max(used) else np.float32(2.0 ** (np.frexp(max(used))[1] - 15))
    for i in range(0, len(weights), _BLOCK):
        part = slice(i, i + _BLOCK)
        integers[part] = group_integers(weights[part], scales[part], size, unit)[0]
    return Screen(integers[:, None], np.ones((len(weights), 1), np.uint16), unit, exact=True)


# ---- using it --------------------------------------------------------------------------------------------------------


def scores(q: I8, screen: Screen) -> I64:
    """Scores [lanes, rows] of activations [lanes, features]."""
    out = np.zeros((len(q), len(screen.planes)), np.int64)
    most = (ACTIVATION << EXPONENT) * LARGEST_SCALE if screen.planes.dtype == np.int16 else ACTIVATION
    for p in range(screen.count):
        out += exact_product(q, screen.planes[:, p], most) * screen.scales[:, p].astype(np.int64)
    return out


def logits(values: I64, act_scale: F32, screen: Screen) -> F32:
    """Logits [lanes, rows] of a head that is ternary, from its scores."""
    return fp.mul(fp.from_int(values), fp.mul(act_scale, screen.unit)[:, None])


def select(values: I64, count: int) -> I64:
    """Indices [lanes, count], ascending, of the `count` largest scores of each lane; of equal ones those of the lowest indices."""
    rows = values.shape[-1]
    # One number for both: larger scores first, then lower indices.
    order = -values * rows + np.arange(rows)
    return np.sort(np.argpartition(order, count - 1, axis=-1)[:, :count], axis=-1)


def bounds(values: I64, chosen: I64, act_scale: F32, screen: Screen) -> F32:
    """Bounds [lanes]: the smallest score of a candidate, rounded down, as a logit; of a head that is ternary that logit itself."""
    if screen.exact:
        return logits(np.take_along_axis(values, chosen, axis=-1).min(axis=-1, keepdims=True), act_scale, screen)[:, 0]
    last = np.take_along_axis(values, chosen, axis=-1).min(axis=-1) >> BOUND_SHIFT
    return fp.mul(fp.from_int(last), fp.mul(act_scale, bound_unit(screen)))


def bound_unit(screen: Screen) -> np.float32:
    """What a bound's integer is a multiple of, besides the activations' scale; of a head that is ternary every logit's."""
    if screen.exact:
        return screen.unit
    return np.float32(screen.unit * np.float32(1 << BOUND_SHIFT))


@dataclass(frozen=True)
class Screened:
    """What a screened head returns.

    Attributes
    ----------
    indices : [lanes, N], ascending. logits : float32 [lanes, N], theirs.
    best : [lanes], the token of the largest logit, of equal ones the lowest index. bound : float32 [lanes].
    every : float32 [lanes, rows], every logit, of a head that is ternary.
    """

    indices: I64
    logits: F32
    best: I64
    bound: F32
    every: F32 | None = None


def screened(q: I8, act_scale: F32, screen: Screen, rows: NDArray[np.generic], row_scales: F32, count: int) -> Screened:
    """The screened head of activations [lanes, features] with a scale a lane: `count` candidates each."""
    values = scores(q, screen)
    chosen = select(values, count)
    found = np.empty(chosen.shape, np.float32)
    for lane, own in enumerate(chosen):
        found[lane] = head.logits(q[lane : lane + 1], act_scale[lane : lane + 1], rows[own], row_scales[own])[0]
    return Screened(chosen, found, _best(chosen, found), bounds(values, chosen, act_scale, screen))


def exact(q: I8, act_scale: F32, screen: Screen, count: int = 0) -> Screened:
    """A head that is ternary, of activations [lanes, features] with a scale a lane: `count` candidates each, and every logit.

    The largest logit is looked for among the candidates: among `MULTIPLE`, where none are asked for.
    """
    values = scores(q, screen)
    every = logits(values, act_scale, screen)
    chosen = select(values, count or MULTIPLE)
    found = np.take_along_axis(every, chosen, axis=-1)
    return Screened(chosen, found, _best(chosen, found), bounds(values, chosen, act_scale, screen), every)


def _best(chosen: I64, found: F32) -> I64:
    return np.take_along_axis(chosen, head.best(found)[:, None], axis=-1)[:, 0] if len(chosen) else chosen[:, 0]


def ranks(values: I64, tokens: I64) -> I64:
    """Rank [lanes], from 0, of a token of each lane among the scores: with more candidates than that it is one of them."""
    own = np.take_along_axis(values, tokens[:, None], axis=-1)
    index = np.arange(values.shape[-1])
    return ((values > own) | ((values == own) & (index < tokens[:, None]))).sum(axis=-1)


def problem(count: int, lanes: int, rows: int, entries: int) -> str | None:
    """Why a pass cannot have `count` candidates for each of `lanes` head lanes of a head of `rows` rows; None: it can.

    Parameters
    ----------
    entries : candidates that the accelerator holds, of all lanes together.
    """
    if count % MULTIPLE or not MULTIPLE <= count <= MAX_CANDIDATES:
        return f"candidates of a lane must be a multiple of {MULTIPLE} from {MULTIPLE} to {MAX_CANDIDATES}, not {count}"
    if 2 * count > rows:
        return f"{count} candidates are more than half of a vocabulary of {rows}"
    if count * lanes > entries:
        return f"{count} candidates for each of {lanes} lanes are more than the {entries} that the accelerator holds"
    return None
