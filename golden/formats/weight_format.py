"""What a format of weights must say, so that layout, image, program and hardware need not know which one it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden.arith import ceil_div


class WeightFormat(ABC):
    """How the weights of a matrix are packed into bytes.

    Attributes
    ----------
    name : of the format, as tables and messages say it.
    weights_per_byte : weights of one byte, neighbours along the inputs.
    largest : largest magnitude of a weight; accumulators are as wide as it asks for.
    zero : the byte of weights that are all zero, with which tiles are filled up.
    rule : what is true of every byte, for messages.
    dtype : of unpacked weights.
    activation_bits : bits that a group's exponent may add to an int8 activation; accumulators are as wide as they ask for.
    group : neighbours along the inputs that share a scale and an exponent of their activations, 0: a matrix has one scale, a token
        one for its activations.
    """

    name: str
    weights_per_byte: int
    largest: int
    zero: int
    rule: str
    dtype: np.dtype[Any] = np.dtype(np.int8)
    activation_bits: int = 0
    group: int = 0

    def beat_weights(self, beat_bytes: int) -> int:
        """Weights of a beat."""
        return beat_bytes * self.weights_per_byte

    def scale(self, scale: float) -> float:
        """What accumulators are multiplied with, besides the activations' scale, of a matrix whose weights have this scale. Exact."""
        return scale / (1 << self.activation_bits)

    def tables(self, beat_bytes: int, group_size: int) -> int:
        """Lookup tables of `group_size` weights (the last may have fewer) that a beat's weights take."""
        return ceil_div(self.beat_weights(beat_bytes), group_size)

    def whole_bytes(self, inputs: int) -> int:
        """Bytes of a row that hold only weights and no filling."""
        return inputs // self.weights_per_byte

    @abstractmethod
    def check(self, weights: ArrayLike) -> NDArray[np.integer]:
        """`weights` as `dtype`. Raises WeightError, with the first one that the format cannot hold and its place."""

    @abstractmethod
    def pack(self, weights: ArrayLike) -> NDArray[np.uint8]:
        """Bytes of weights along the last axis; a short last byte is filled with zeros. Raises WeightError as `check`."""

    @abstractmethod
    def unpack(self, data: ArrayLike, count: int | None = None) -> NDArray[np.integer]:
        """Inverse of `pack` along the last axis; `count` weights of it (all, if None).

        Raises
        ------
        WeightError : a byte that no weights pack to, or `count` weights are not there.
        """

    @abstractmethod
    def invalid(self, data: ArrayLike) -> NDArray[np.bool_]:
        """Which bytes no weights pack to; the hardware flags each."""

    def first_invalid(self, data: NDArray[np.uint8]) -> tuple[int, ...] | None:
        """Place of the first byte that no weights pack to, None if there is none."""
        bad = self.invalid(data)
        return tuple(int(i) for i in np.argwhere(bad)[0]) if bad.any() else None

    @abstractmethod
    def damage(self, packed: NDArray[np.uint8]) -> str | None:
        """What shows that packed rows uint8[rows, bytes] were overwritten or never written; None if nothing does."""
