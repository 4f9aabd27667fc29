"""A format of weights that there is not, for tests that nobody relies on the one that there is."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden import ternary
from tellme.golden.config import AcceleratorConfig
from tellme.golden.formats import WeightFormat
from tellme.golden.ternary import WeightError


class TwoBits(WeightFormat):
    """A format that there is not: four ternary weights a byte, weight + 1 in two bits each; 3 is no weight."""

    name = "two bits"
    weights_per_byte = 4
    largest = 1
    zero = 0b01010101
    rule = "two bits of a byte must be at most 2"

    def check(self, weights: ArrayLike) -> NDArray[np.int8]:
        return ternary.check(weights)

    def pack(self, weights: ArrayLike) -> NDArray[np.uint8]:
        w = self.check(weights)
        codes = np.ones((*w.shape[:-1], -(-w.shape[-1] // 4) * 4), np.uint8)
        codes[..., : w.shape[-1]] = w + 1
        codes = codes.reshape(*w.shape[:-1], -1, 4)
        return np.asarray((codes << np.uint8([0, 2, 4, 6])).sum(axis=-1), np.uint8)

    def unpack(self, data: ArrayLike, count: int | None = None) -> NDArray[np.int8]:
        b = np.asarray(data, np.uint8)
        if (place := self.first_invalid(b)) is not None:
            raise WeightError(f"{self.rule}; found {b[place]} at {place}")
        w = ((b[..., None] >> np.uint8([0, 2, 4, 6]) & 3).astype(np.int8) - 1).reshape(*b.shape[:-1], -1)
        return w[..., :count]

    def invalid(self, data: ArrayLike) -> NDArray[np.bool_]:
        b = np.asarray(data, np.uint8)
        return b & b >> 1 & 0x55 != 0

    def damage(self, packed: NDArray[np.uint8]) -> str | None:
        return ternary.damage(packed, (0, 0b01010101, 0b10101010), 4)


def with_format(config: AcceleratorConfig, other: WeightFormat) -> AcceleratorConfig:
    """The configuration as one that has another format."""
    kind = type("Other", (AcceleratorConfig,), {"packing": property(lambda _: other)})
    return kind(**{name: getattr(config, name) for name in config.__dataclass_fields__})  # type: ignore[no-any-return]
