"""Registers in a row: what every pipeline is made of."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory

SHORT = 3
"""Delay lines up to this length are registers, longer ones rings of memory."""


def delay_line(m: Module, signal: Any, cycles: int, name: str, *, reset_less: bool = True) -> Any:
    """Delays a value.

    Parameters
    ----------
    m : module that gets the registers (domain sync).
    signal : a value or a view of any shape.
    cycles : registers to pass, 0 or more; 0 returns `signal` itself.
    name : stem of the registers' names (`<name>_d1`, ...).
    reset_less : False for flags that must fall on reset (valid bits); others become shift registers of LUTs.

    Returns
    -------
    A value of the same shape, `cycles` later.

    Raises
    ------
    ValueError : for negative cycles.
    """
    if cycles < 0:
        raise ValueError(f"delay of {name} must be 0 or more cycles, not {cycles}")
    for i in range(cycles):
        stage: Any = Signal(signal.shape(), name=f"{name}_d{i + 1}", reset_less=reset_less)
        m.d.sync += stage.eq(signal)
        signal = stage
    return signal


def register(m: Module, value: Any, name: str) -> Any:
    """One register without reset behind a value, with its shape."""
    stage: Any = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += stage.eq(value)
    return stage


def wire(m: Module, value: Any, name: str) -> Any:
    """A signal for a value that is used more than once: expressions are copied where they are used."""
    signal: Any = Signal(value.shape(), name=name)
    m.d.comb += signal.eq(value)
    return signal


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
