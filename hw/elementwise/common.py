"""What the blocks of the element-wise pipeline share: shapes and constants."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value, unsigned
from amaranth.lib import data
from amaranth.utils import bits_for, ceil_log2, exact_log2

from tellme.golden.config import CHUNK, AcceleratorConfig, clog2
from tellme.hw.pipeline import delay_line

FLOAT = unsigned(32)
"""A binary32 pattern."""

CHUNK_LAYOUT = data.ArrayLayout(FLOAT, CHUNK)
"""CHUNK neighbouring features of a lane."""

ONE = 0x3F800000
"""1.0"""


def lane_bits(config: AcceleratorConfig) -> int:
    """Width of a lane number."""
    return clog2(config.lanes)


def count_bits(config: AcceleratorConfig) -> int:
    """Width of a number of lanes, 0..lanes."""
    return bits_for(config.lanes)


def chunk_bits(config: AcceleratorConfig) -> int:
    """Width of the number of a lane's chunk."""
    return clog2(config.max_features // CHUNK)


def word_bits(config: AcceleratorConfig) -> int:
    """Width of the number of a lane's word in the u and int8 buffers."""
    return clog2(config.max_features // config.word)


def head_pitch(config: AcceleratorConfig) -> int:
    """Chunks of a lane in the rotary table: a power of two, so that an address is {lane, chunk}."""
    return 1 << ceil_log2(config.max_head_dim // CHUNK)


def with_flags(m: Module, flags: Value, info: Any, cycles: int, name: str) -> tuple[Value, Any]:
    """Flags that start an action and what goes with them, both `cycles` later; only the flags are reset."""
    return (
        delay_line(m, flags, cycles, f"{name}_state", reset_less=False),
        delay_line(m, info, cycles, f"{name}_info", ring=True),
    )


def lane_address(m: Module, lane: Value, pitch: int, place: Value, name: str) -> Value:
    """`lane * pitch + place`, without a multiplier: the odd part of the pitch times a lane is a table of few bits."""
    low = exact_log2(pitch & -pitch)
    base = Signal(range(((1 << len(lane)) - 1) * (pitch >> low) + 1), name=name)
    with m.Switch(lane):
        for n in range(1 << len(lane)):
            with m.Case(n):
                m.d.comb += base.eq(n * (pitch >> low))
    return Cat(place[:low], base + place[low:])
