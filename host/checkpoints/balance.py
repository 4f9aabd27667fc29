"""Outliers of the output head, moved between its columns and the gain of the norm before it.

A logit is the sum of x_i * gain_i * row_i. The accelerator holds the gained features and the rows as int8, each relative to its
largest, so that a feature whose column of the head (or whose gain) is far larger than the others takes the others' bits.
Powers of two taken out of the column and put into the gain, or the other way, change no product and no rounding of a float.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tellme.golden import elementwise
from tellme.golden.head import quantise_rows
from tellme.golden.model import ModelWeights

F32 = NDArray[np.float32]
I8 = NDArray[np.int8]

LEAST = 2
"""Exponents of less are left alone: what is moved then is not worth another rounding of the rows."""
MOST = 30
_ROWS = 1 << 13
"""Taken at a time."""


def factors(columns: F32, gain: F32, stream: F32) -> F32:
    """Powers of two [features] that gains are multiplied by and columns divided by.

    The square root of column over gained feature makes the two equally large, so that neither is an outlier if their product is none.

    Parameters
    ----------
    columns : root mean squares of the head's columns [features].
    gain : of the last norm [features].
    stream : root mean squares of the embedding's columns [features]: what is large there is taken to be so in the residual
        stream that the norm gets; what is small may have grown, and counts as usual.
    """
    sizes = []
    for size in (columns, np.abs(gain), stream):
        usual = np.float32(np.median(size[size > 0].astype(np.float64))) if size.any() else np.float32(1)
        with np.errstate(over="ignore"):
            sizes.append(np.log2(np.maximum(size / usual, np.float32(2.0**-MOST))))
    with np.errstate(invalid="ignore"):  # infinite ones of both, which are left alone
        exponent = np.rint((sizes[0] - sizes[1] - np.maximum(sizes[2], 0)) / 2)
    # A column or gain of zeros gives nothing away, whatever the other is.
    moved = (np.abs(exponent) >= LEAST) & (columns > 0) & (gain != 0)
    return np.exp2(np.where(moved, np.clip(exponent, -MOST, MOST), 0)).astype(np.float32)


def _pieces(rows: NDArray[Any], make: Callable[[slice, F32], None]) -> None:
    for i in range(0, len(rows), _ROWS):
        part = slice(i, min(i + _ROWS, len(rows)))
        make(part, elementwise.widen(rows[part]))


def _columns(rows: NDArray[Any]) -> F32:
    """Root mean squares [features] of the columns of rows as a checkpoint has them."""
    squares = np.zeros(rows.shape[1])

    def count(part: slice, x: F32) -> None:
        squares[:] += np.square(x, dtype=np.float64).sum(axis=0)

    _pieces(rows, count)
    return np.sqrt(squares / len(rows)).astype(np.float32)


def _quantised(rows: NDArray[Any], divisors: F32) -> tuple[I8, F32]:
    """int8 rows, and their scales, of rows as a checkpoint has them, columns divided."""
    codes, scales = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float32)

    def make(part: slice, x: F32) -> None:
        codes[part], scales[part] = quantise_rows(x / divisors)

    _pieces(rows, make)
    return codes, scales


def balanced(weights: ModelWeights, rows: NDArray[Any]) -> tuple[ModelWeights, F32 | None]:
    """The same model with a head that int8 holds better, and the factors; None: nothing had to be moved.

    Parameters
    ----------
    rows : the head's as the checkpoint has them [vocab, hidden], of a type of `golden.elementwise.ROW_TYPES`.
    """
    columns = _columns(rows)
    stream = columns if weights.spec.tied or weights.inputs is None else _columns(weights.inputs)
    moved = factors(columns, weights.norm, stream)
    if (moved == 1).all():
        return weights, None
    with np.errstate(over="ignore"):
        norm = weights.norm * moved
    if not np.isfinite(norm).all():
        return weights, None
    codes, scales = _quantised(rows, moved)
    if weights.spec.tied:
        return replace(weights, norm=norm, embedding=codes, embedding_scales=scales), moved
    return replace(weights, norm=norm, head=codes, head_scales=scales), moved


def unbalanced(weights: ModelWeights, moved: F32) -> ModelWeights:
    """What a tied model was before `balanced`: its int8 rows are the embedding's, too."""
    assert weights.spec.tied and weights.inputs is not None
    codes, scales = _quantised(weights.inputs, np.ones_like(moved))
    return replace(weights, norm=weights.norm / moved, embedding=codes, embedding_scales=scales)
