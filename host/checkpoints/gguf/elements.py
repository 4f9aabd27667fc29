"""Element types of GGUF tensors: their names, blocks, and the decoders of ternary ones."""

from __future__ import annotations

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

I2_S = 36
INTEGERS = (24, 25, 26, 27)  # I8, I16, I32, I64
_BITNET_CPP = {36: "I2_S", 37: "I8_S", 38: "TL1", 39: "TL2 or MXFP4"}
NOT_YET = {
    41: "Q1_0: binary sign weights, -1 and +1 in one bit each, no ternary ones; a binary model is not supported",
    42: "Q2_0: ternary with a scale for every 64 (or 128) inputs; one scale a matrix is supported, several are not yet",
    142: "PQ2_0: ternary with a scale for every 128 inputs; one scale a matrix is supported, several are not yet",
    143: "PTQ1_0: ternary with a scale for every 128 inputs; one scale a matrix is supported, several are not yet",
}
"""Types of llama.cpp (and, from 142 on, of Prism's branch) that are known but cannot be run."""
I2_S_BLOCK = 128
TQ_BLOCK = 256


def type_name(number: int) -> str:
    try:
        return GGMLQuantizationType(number).name
    except ValueError:
        return _BITNET_CPP.get(number, f"of unknown type {number}")


def block_of(number: int) -> tuple[int, int]:
    """Elements and bytes of a block of a type. Raises ValueError if it is not known."""
    if number == I2_S:
        return I2_S_BLOCK, I2_S_BLOCK // 4
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
    parts = []
    for start, size, digits in ((0, 32, 5), (32, 16, 5), (48, 4, 4)):
        powers = np.array([1, 3, 9, 27, 81][:digits], np.uint8).reshape(-1, 1)
        rest = data[:, None, start : start + size] * powers  # mod 256
        parts.append((rest.astype(np.uint16) * 3 >> 8).astype(np.uint8).reshape(len(data), -1))
    return np.concatenate(parts, axis=1), _half(data[:, 52:])


def _half(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(data).view("<f2")[:, 0].astype(np.float32)


UNPACK = {GGMLQuantizationType.TQ1_0: unpack_tq1_0, GGMLQuantizationType.TQ2_0: unpack_tq2_0}
"""Decoders of the types whose blocks have a scale each."""
