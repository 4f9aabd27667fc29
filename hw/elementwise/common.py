"""What the blocks of the element-wise pipeline share: shapes, constants, delay lines."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory

from tellme.golden.config import CHUNK, AcceleratorConfig, clog2

FLOAT = unsigned(32)
"""A binary32 pattern."""

CHUNK_LAYOUT = data.ArrayLayout(FLOAT, CHUNK)
"""CHUNK neighbouring features of a lane."""

ONE = 0x3F800000
"""1.0"""

SHORT = 3
"""Delay lines up to this length are registers, longer ones rings of memory."""


def lane_bits(config: AcceleratorConfig) -> int:
    """Width of a lane number."""
    return clog2(config.lanes)


def count_bits(config: AcceleratorConfig) -> int:
    """Width of a number of lanes, 0..lanes."""
    return config.lanes.bit_length()


def chunk_bits(config: AcceleratorConfig) -> int:
    """Width of the number of a lane's chunk."""
    return clog2(config.max_features // CHUNK)


def word_bits(config: AcceleratorConfig) -> int:
    """Width of the number of a lane's word in the u and int8 buffers."""
    return clog2(config.max_features // config.word)


def head_pitch(config: AcceleratorConfig) -> int:
    """Chunks of a lane in the rotary table: a power of two, so that an address is {lane, chunk}."""
    return 1 << (config.max_head_dim // CHUNK - 1).bit_length()


def lane_address(m: Module, lane: Value, pitch: int, place: Value, name: str) -> Value:
    """`lane * pitch + place`, without a multiplier: the odd part of the pitch times a lane is a table of few bits."""
    low = (pitch & -pitch).bit_length() - 1
    base = Signal(range(((1 << len(lane)) - 1) * (pitch >> low) + 1), name=name)
    with m.Switch(lane):
        for n in range(1 << len(lane)):
            with m.Case(n):
                m.d.comb += base.eq(n * (pitch >> low))
    return Cat(place[:low], base + place[low:])


def delayed(m: Module, value: object, cycles: int, name: str) -> Value:
    """`value`, `cycles` cycles later. Data only: the line is not reset.

    Lines longer than SHORT are rings in distributed memory, which cost the fabric no more than shift registers and the
    simulator far less.
    """
    v = Value.cast(value)
    if cycles < 0:
        raise ValueError(f"a delay must be 0 or more cycles, not {cycles} ({name})")
    if cycles <= SHORT:
        for i in range(cycles):
            stage = Signal(len(v), name=f"{name}_d{i + 1}", reset_less=True)
            m.d.sync += stage.eq(v)
            v = stage
        return v
    ring = memory.Memory(shape=unsigned(len(v)), depth=cycles - 1, init=[])
    m.submodules[f"{name}_ring"] = ring
    write, read = ring.write_port(), ring.read_port(domain="comb")
    place = Signal(range(cycles - 1), name=f"{name}_place")
    out = Signal(len(v), name=f"{name}_delayed", reset_less=True)
    m.d.comb += [write.addr.eq(place), read.addr.eq(place), write.data.eq(v), write.en.eq(1)]
    m.d.sync += [place.eq(_next(place, cycles - 1)), out.eq(read.data)]
    return out


def flags(m: Module, value: object, cycles: int, name: str) -> Value:
    """`value`, `cycles` cycles later, zeros after a reset: for what starts an action."""
    v = Value.cast(value)
    if cycles == 0:
        return v
    line = Signal(len(v) * cycles, name=f"{name}_line")
    both = Signal(len(v) * (cycles + 1), name=f"{name}_shift")
    m.d.comb += both.eq(line << len(v) | v)
    m.d.sync += line.eq(both)
    return line[len(v) * (cycles - 1) :]


def _next(counter: Signal, count: int) -> Value:
    return Mux(counter == count - 1, 0, counter + 1)
