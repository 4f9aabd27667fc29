"""Element types of GGUF tensors: their names, blocks, and the decoders of ternary ones."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

I2_S = 36
INTEGERS = (24, 25, 26, 27)  # I8, I16, I32, I64
_BITNET_CPP = {36: "I2_S", 37: "I8_S", 38: "TL1", 39: "TL2 or MXFP4"}
Q2_0, PQ2_0, PTQ1_0 = 42, 142, 143
"""Ternary with a scale for every 64 inputs (llama.cpp) and for every 128 (Prism's branch); unknown to the `gguf` package."""
Q2_0_LEGACY = -Q2_0
"""Files before September 2026 have blocks of 128 under the same number: the header tells them apart by the tensor's span."""
NOT_YET = {
    41: "Q1_0: binary sign weights, -1 and +1 in one bit each, no ternary ones; a binary model is not supported",
}
"""Types of llama.cpp that are known but cannot be run."""
_BLOCKS = {I2_S: (128, 32), Q2_0: (64, 18), Q2_0_LEGACY: (128, 34), PQ2_0: (128, 34), PTQ1_0: (128, 28)}
"""Elements and bytes of a block, of types that the `gguf` package does not know."""
_NAMES = {Q2_0: "Q2_0", Q2_0_LEGACY: "Q2_0 in blocks of 128", PQ2_0: "PQ2_0", PTQ1_0: "PTQ1_0"}
TQ_BLOCK = 256


def type_name(number: int) -> str:
    if number in _NAMES:
        return _NAMES[number]
    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return _BITNET_CPP.get(number, f"of unknown type {number}")


def block_of(number: int) -> tuple[int, int]:
    """Elements and bytes of a block of a type. Raises ValueError if it is not known."""
    if number in _BLOCKS:
        return _BLOCKS[number]
    block, width = GGML_QUANT_SIZES[GGMLQuantizationType(number)]
    return block, width


# ---- blocks ----------------------------------------------------------------------------------------------------------


def unpack_i2_s(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Codes uint8[n, 128] (weight + 1; 3 is no weight) of blocks uint8[n, 32]."""
    return np.concatenate([data >> shift & 3 for shift in (6, 4, 2, 0)], axis=-1)


def unpack_tq2_0(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes uint8[n, 256] (weight + 1; 3 is no weight) and scales [n] of blocks uint8[n, 66]: for each half 32 bytes, then the scale."""
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(4, 1)
    halves = data[:, :64].reshape(-1, 2, 1, 32) >> shifts & np.uint8(3)
    return halves.reshape(-1, TQ_BLOCK), _half(data[:, 64:])


def unpack_tq1_0(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes uint8[n, 256] (weight + 1) and scales [n] of blocks uint8[n, 54]: 32 bytes of 5 weights, 16 of 5, 4 of 4, the scale.

    A byte is ceil(v * 256 / 243) of the base-3 number v of its weights, first one highest: digit i is the top of (byte * 3**i mod 256) * 3.
    """
    return _base_3(data, ((0, 32, 5), (32, 16, 5), (48, 4, 4))), _half(data[:, 52:])


def _base_3(data: NDArray[np.uint8], ranges: tuple[tuple[int, int, int], ...]) -> NDArray[np.uint8]:
    """Codes of ranges of bytes (first, bytes, digits): the first digits of a range, then its second ones."""
    parts = []
    for start, size, digits in ranges:
        powers = np.array([1, 3, 9, 27, 81][:digits], np.uint8).reshape(-1, 1)
        rest = data[:, None, start : start + size] * powers  # mod 256
        parts.append((rest.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(data), -1))
    return np.concatenate(parts, axis=1)


def unpack_q2_0(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes uint8[n, 64 or 128] (weight + 1; 3 is no weight) and scales [n] of blocks uint8[n, 18 or 34]: the scale, then weight j at bits
    2(j mod 4) of byte j/4."""
    codes = data[:, 2:, None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)
    return codes.reshape(len(data), -1), _half(data[:, :2])


def unpack_ptq1_0(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes uint8[n, 128] (weight + 1) and scales [n] of blocks uint8[n, 28]: 16 bytes of 5 weights, 8 of 5, 2 of 4, as in TQ1_0; the scale."""
    return _base_3(data, ((0, 16, 5), (16, 8, 5), (24, 2, 4))), _half(data[:, 26:])


def _half(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(data).view("<f2")[:, 0].astype(np.float32)


UNPACK: dict[int, Callable[[NDArray[np.uint8]], tuple[NDArray[np.uint8], NDArray[np.float32]]]] = {
    GGMLQuantizationType.TQ1_0: unpack_tq1_0,
    GGMLQuantizationType.TQ2_0: unpack_tq2_0,
    Q2_0: unpack_q2_0,
    Q2_0_LEGACY: unpack_q2_0,
    PQ2_0: unpack_q2_0,
    PTQ1_0: unpack_ptq1_0,
}
OWN = (Q2_0, Q2_0_LEGACY, PQ2_0, PTQ1_0)
"""Those of them that the `gguf` package cannot decode."""
"""Decoders of the types whose blocks have a scale each."""
