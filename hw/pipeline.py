"""What every pipeline is made of: wires, registers, delay lines, counters that start over."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, unsigned
from amaranth.lib import memory

SHORT = 3
"""Delay lines up to this length are a register a cycle."""


def wire(m: Module, value: Any, name: str) -> Any:
    """A signal for a value that is used more than once: expressions are copied where they are used."""
    signal: Any = Signal(value.shape(), name=name)
    m.d.comb += signal.eq(value)
    return signal


def register(m: Module, value: Any, name: str, *, reset_less: bool = True) -> Any:
    """One register behind a value, with its shape. reset_less : as of `delay_line`."""
    stage: Any = Signal(value.shape(), name=name, reset_less=reset_less)
    m.d.sync += stage.eq(value)
    return stage


def delay_line(m: Module, value: Any, cycles: int, name: str, *, reset_less: bool = True, ring: bool = False) -> Any:
    """Delays a value.

    Parameters
    ----------
    m : module that gets the registers (domain sync).
    value : a value or a view of any shape.
    cycles : registers to pass, 0 or more; 0 returns `value` itself.
    name : stem of the registers' names (`<name>_d1`, ...).
    reset_less : False for flags that start an action (valid bits), which must fall on reset; others become shift registers
        of LUTs.
    ring : data in a line longer than SHORT go through a ring in distributed memory, which costs the fabric no more than
        shift registers and the simulator far less.

    Returns
    -------
    A value of the same shape, `cycles` later.

    Raises
    ------
    ValueError : for negative cycles, and for flags in a ring.
    """
    if cycles < 0:
        raise ValueError(f"delay of {name} must be 0 or more cycles, not {cycles}")
    if ring and not reset_less:
        raise ValueError(f"{name}: flags cannot go through a ring, whose memory no reset clears")
    if cycles > SHORT and (ring or not reset_less):
        line = _ring if ring else _shift
        return _like(value, line(m, Value.cast(value), cycles, name))
    for i in range(cycles):
        value = register(m, value, f"{name}_d{i + 1}", reset_less=reset_less)
    return value


def counted(counter: Value, last: Value) -> Value:
    """What follows `counter`: 0 behind its `last` value, else one more."""
    return Mux(last, 0, counter + 1)


def _ring(m: Module, value: Value, cycles: int, name: str) -> Value:
    """Written and read at the same place, which comes round after all but the output register's cycle."""
    ring = memory.Memory(shape=unsigned(len(value)), depth=cycles - 1, init=[])
    m.submodules[f"{name}_ring"] = ring
    write, read = ring.write_port(), ring.read_port(domain="comb")
    place = Signal(range(cycles - 1), name=f"{name}_place")
    m.d.comb += [write.addr.eq(place), read.addr.eq(place), write.data.eq(value), write.en.eq(1)]
    m.d.sync += place.eq(counted(place, place == cycles - 2))
    return register(m, read.data, f"{name}_delayed")


def _shift(m: Module, value: Value, cycles: int, name: str) -> Value:
    """One register that moves on by the value's bits: less for the simulator than a register a cycle."""
    line = Signal(len(value) * cycles, name=f"{name}_line")
    m.d.sync += line.eq(Cat(value, line))
    return line[len(value) * (cycles - 1) :]


def _like(value: Any, bits: Value) -> Any:
    """`bits` in the shape of `value`."""
    shape = value.shape()
    if isinstance(shape, Shape):
        return bits.as_signed() if shape.signed else bits
    return shape(bits)
