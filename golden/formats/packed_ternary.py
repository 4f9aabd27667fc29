"""Ternary weights, five a byte in base 3: `byte = sum_j (w_j + 1) * 3**j`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden import ternary
from tellme.golden.arith import ceil_div
from tellme.golden.formats.weight_format import WeightFormat
from tellme.golden.ternary import WeightError

TRITS_PER_BYTE = 5
"""Ternary weights in a byte."""

MAX_CODE = 3**TRITS_PER_BYTE - 1
"""Largest byte that packs five weights."""

CODES = (0, MAX_CODE // 2, MAX_CODE)
"""Bytes of five times -1, 0 and +1."""

_POWERS = 3 ** np.arange(TRITS_PER_BYTE)
_TRITS = (np.arange(MAX_CODE + 1)[:, None] // _POWERS % 3 - 1).astype(np.int8)
_QUINTETS = np.ascontiguousarray(_TRITS).view(f"V{TRITS_PER_BYTE}").reshape(-1)
"""The weights of a byte as one element, which is looked up in a fraction of the time."""


class PackedTernary(WeightFormat):
    """Five ternary weights a byte. The hardware's decoder is `hw.tlmm.unpack`."""

    name = "ternary"
    weights_per_byte = TRITS_PER_BYTE
    largest = 1
    zero = CODES[1]
    rule = f"a byte of packed weights must be at most {MAX_CODE}"

    def check(self, weights: ArrayLike) -> NDArray[np.int8]:
        return ternary.check(weights)

    def pack(self, weights: ArrayLike) -> NDArray[np.uint8]:
        w = ternary.check(weights)
        n = w.shape[-1]
        padded = np.zeros((*w.shape[:-1], ceil_div(n, TRITS_PER_BYTE), TRITS_PER_BYTE), np.uint8)
        padded.reshape(*w.shape[:-1], -1)[..., :n] = w.view(np.uint8)  # -1 wraps to 255, and back with the 1 below
        padded += 1
        out = padded[..., -1].copy()
        for j in range(TRITS_PER_BYTE - 2, -1, -1):
            out *= 3
            out += padded[..., j]
        return out

    def unpack(self, data: ArrayLike, count: int | None = None) -> NDArray[np.int8]:
        b = np.asarray(data, np.uint8)
        place = self.first_invalid(b)
        if place is not None:
            raise WeightError(f"{self.rule}; found {b[place]} at {place}")
        w = _QUINTETS[b].view(np.int8).reshape(*b.shape[:-1], b.shape[-1] * TRITS_PER_BYTE)
        if count is not None and count > w.shape[-1]:
            raise WeightError(f"{b.shape[-1]} bytes hold {w.shape[-1]} weights, not {count}")
        return w if count is None else w[..., :count]

    def invalid(self, data: ArrayLike) -> NDArray[np.bool_]:
        return np.asarray(data, np.uint8) > MAX_CODE

    def damage(self, packed: NDArray[np.uint8]) -> str | None:
        return ternary.damage(packed, CODES, TRITS_PER_BYTE)
