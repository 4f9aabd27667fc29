"""The output head: int8 rows with a scale each, exact dot products, arg-max."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden import fp
from tellme.golden.elementwise import INV_127, SMALLEST_ABSMAX
from tellme.golden.ternary import exact_product, product

_PRODUCT = 1 << 14
"""Largest magnitude of a product of two int8."""


def quantise_rows(rows: ArrayLike) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 rows and float32 scales (largest magnitude / 127, at least 1e-5 / 127) of float rows [rows, features]."""
    x = np.asarray(rows, np.float32)
    scales = np.maximum(np.abs(x).max(axis=-1), SMALLEST_ABSMAX) * INV_127
    return np.clip(np.rint(x / scales[:, None]), -127, 127).astype(np.int8), scales


def dots(q: NDArray[np.int8], rows: NDArray[np.generic]) -> NDArray[np.int64]:
    """Exact dot products [lanes, rows] of activations [lanes, n] and head rows [rows, n] (int8, or float32 of int8)."""
    return exact_product(q, rows, _PRODUCT)


def logits(
    q: NDArray[np.int8], act_scale: NDArray[np.float32], rows: NDArray[np.generic], row_scales: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Logits [lanes, rows]."""
    return fp.mul(fp.from_int(product(q, rows, _PRODUCT)), fp.mul(act_scale[:, None], row_scales))


def best(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """Token of the largest logit of each lane; of equal ones the first, +0 and -0 being equal."""
    return np.argmax(values, axis=-1)
