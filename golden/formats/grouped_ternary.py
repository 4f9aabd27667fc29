"""Ternary weights with a scale for every 64 of them, in units of 16 bytes: 13 of weights, five a byte, 2 of the scale, one spare."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden import ternary
from tellme.golden.arith import ceil_div
from tellme.golden.formats.packed_ternary import MAX_CODE, TRITS_PER_BYTE, PackedTernary
from tellme.golden.formats.weight_format import WeightFormat
from tellme.golden.ternary import GROUP, LARGEST_SCALE, WeightError

UNIT_BYTES = 16
"""Bytes of a group: 2.0 bits a weight."""

TRIT_BYTES = ceil_div(GROUP, TRITS_PER_BYTE)
"""Bytes of a unit that hold weights. The last one's highest trit is a zero weight: 64 are not a multiple of five."""

SCALE = slice(TRIT_BYTES, TRIT_BYTES + 2)
"""Bytes of a unit that hold the scale, uint16, little endian."""

_TRITS = PackedTernary()
_TOP = 3 ** (TRITS_PER_BYTE - 1)


class GroupedTernary(WeightFormat):
    """Weights are integers: -1, 0 or 1 times the scale of their group, in units of the matrix's scale.

    A beat of 64 bytes has four units, 256 weights. The hardware's decoder is `hw.tlmm.unpack`.
    """

    name = "grouped"
    weights_per_byte = GROUP // UNIT_BYTES
    largest = LARGEST_SCALE
    zero = _TRITS.zero
    rule = (
        f"a unit of {UNIT_BYTES} bytes must be {TRIT_BYTES} bytes of up to {MAX_CODE} (the last one's fifth weight zero), a scale of "
        f"up to {LARGEST_SCALE} and a zero byte"
    )
    dtype = np.dtype(np.int16)
    activation_bits = ternary.EXPONENT
    group = GROUP

    def tables(self, beat_bytes: int, group_size: int) -> int:
        return beat_bytes // UNIT_BYTES * ceil_div(TRIT_BYTES * TRITS_PER_BYTE, group_size)

    def whole_bytes(self, inputs: int) -> int:
        return inputs // GROUP * UNIT_BYTES

    def check(self, weights: ArrayLike) -> NDArray[np.integer]:
        return ternary.check_groups(weights)

    def pack(self, weights: ArrayLike) -> NDArray[np.uint8]:
        w = ternary.check_groups(weights)
        units = ceil_div(w.shape[-1], GROUP)
        padded = np.zeros((*w.shape[:-1], units * GROUP), np.int16)
        padded[..., : w.shape[-1]] = w
        groups = padded.reshape(*w.shape[:-1], units, GROUP)
        out = np.zeros((*w.shape[:-1], units, UNIT_BYTES), np.uint8)
        out[..., :TRIT_BYTES] = _TRITS.pack(np.sign(groups).astype(np.int8))
        out[..., SCALE] = np.abs(groups).max(axis=-1).astype("<u2")[..., None].view(np.uint8)
        return out.reshape(*w.shape[:-1], -1)

    def unpack(self, data: ArrayLike, count: int | None = None) -> NDArray[np.integer]:
        b = np.asarray(data, np.uint8)
        place = self.first_invalid(b)
        if place is not None:
            raise WeightError(f"{self.rule}; found {b[place]} at {place}")
        units = b.reshape(*b.shape[:-1], -1, UNIT_BYTES)
        scales = np.ascontiguousarray(units[..., SCALE]).view("<u2")
        w = _TRITS.unpack(units[..., :TRIT_BYTES], GROUP).astype(np.int16)
        w *= scales.astype(np.int16)
        w = w.reshape(*b.shape[:-1], -1)
        if count is not None and count > w.shape[-1]:
            raise WeightError(f"{b.shape[-1]} bytes hold {w.shape[-1]} weights, not {count}")
        return w if count is None else w[..., :count]

    def invalid(self, data: ArrayLike) -> NDArray[np.bool_]:
        b = np.asarray(data, np.uint8)
        units = b.reshape(*b.shape[:-1], -1, UNIT_BYTES)
        bad = np.zeros(units.shape, np.bool_)
        bad[..., :TRIT_BYTES] = _TRITS.invalid(units[..., :TRIT_BYTES])
        bad[..., TRIT_BYTES - 1] |= units[..., TRIT_BYTES - 1] // _TOP != 1
        bad[..., TRIT_BYTES + 1] = units[..., TRIT_BYTES + 1] > LARGEST_SCALE >> 8
        bad[..., TRIT_BYTES + 2 :] = units[..., TRIT_BYTES + 2 :] != 0
        return bad.reshape(b.shape)

    def damage(self, packed: NDArray[np.uint8]) -> str | None:
        # Zeros that were never written are units of -1 with a scale of 0, which unpack would make zero weights of.
        units = packed.reshape(len(packed), -1, UNIT_BYTES)
        codes = _TRITS.unpack(
            np.where(_TRITS.invalid(units[..., :TRIT_BYTES]), self.zero, units[..., :TRIT_BYTES]), GROUP
        )
        return ternary.damage(codes.reshape(len(packed), -1))
