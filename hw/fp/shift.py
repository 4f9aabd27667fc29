"""Shifts by amounts that are signals, and normalisation."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value

from tellme.golden.config import clog2
from tellme.hw.pipeline import wire


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
        width = clog2(len(nibbles))
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
