"""Small parts that pipelines share."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value


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


def shift_right_sticky(m: Module, value: Value, amount: Value, name: str, *, step: int = 1) -> tuple[Value, Value]:
    """`value >> amount * step` (unsigned) and whether a one fell out; two bits of the amount a multiplexer level."""
    bits = len(value)
    lost: list[Value] = []
    x = wire(m, value, f"{name}_in")
    amount = wire(m, amount, f"{name}_amount")
    for low in reversed(range(0, len(amount), 2)):
        part = amount[low : low + 2]
        shifted = Signal(bits, name=f"{name}_{low}")
        with m.Switch(part):
            for k in range(1 << len(part)):
                taken = min(step * k << low, bits)
                with m.Case(k):
                    m.d.comb += shifted.eq(x[taken:])
                if taken:
                    lost.append((part == k) & x[:taken].any())
        x = shifted
    return x, Cat(*lost).any()


class Normaliser:
    """Leading-zero count and left shift in two steps, with a register between them (the caller's).

    `coarse` counts leading zero nibbles; behind the register, `shift` moves those out, then the last zeros.
    """

    @staticmethod
    def coarse(value: Value) -> Value:
        """Leading zero nibbles (of a value padded to whole nibbles below); of zero, all but one."""
        nibbles = _nibbles(value)
        count: Value = Const(len(nibbles) - 1)
        width = max(1, (len(nibbles) - 1).bit_length())
        for k in reversed(range(len(nibbles) - 1)):
            count = Mux(nibbles[k].any(), k, count)
        return count[:width]

    @staticmethod
    def shift(m: Module, value: Value, coarse: Value, name: str) -> tuple[Value, Value]:
        """`value` with its leading one at the top, and the total count of leading zeros."""
        nibbles = len(_nibbles(value))
        padded = Cat(Const(0, 4 * nibbles - len(value)), value)
        moved = Signal(4 * nibbles, name=f"{name}_moved")
        with m.Switch(coarse):
            for k in range(nibbles):
                with m.Case(k):
                    m.d.comb += moved.eq(padded << 4 * k)
        fine = Signal(2, name=f"{name}_fine")
        m.d.comb += fine.eq(Mux(moved[-1], 0, Mux(moved[-2], 1, Mux(moved[-3], 2, 3))))
        shifted = Signal(4 * nibbles, name=f"{name}_shifted")
        m.d.comb += shifted.eq(moved << fine)
        return shifted[4 * nibbles - len(value) :], Cat(fine, coarse)


def _nibbles(value: Value) -> list[Value]:
    """Groups of four bits from the top; the last may be shorter."""
    return [value[max(0, hi - 4) : hi] for hi in range(len(value), 0, -4)]
