"""Scales of groups of weights and exponents of groups of activations, on the sums of a beat. Golden: `golden.ternary.grouped_linear`."""

from __future__ import annotations

from amaranth.hdl import Array, C, Cat, Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from tellme.golden.ternary import EXPONENT, EXPONENT_STEP, LARGEST_SCALE
from tellme.hw.fp.dsp import MULTIPLY_ADD_DELAY, multiply_add, positive
from tellme.hw.interfaces import EXPONENT_BITS
from tellme.hw.pipeline import delay_line

SCALE_BITS = LARGEST_SCALE.bit_length()


class GroupScaler(wiring.Component):
    """`out[l] = sum_u (sums[u][l] << (EXPONENT - e[u][l])) * scale[u]`, a beat a cycle: one multiplier a lane and unit.

    The multipliers of a lane are a chain, each a cycle behind the one before: its sum costs no LUTs.

    Parameters
    ----------
    units : groups of a beat. lanes : lanes. width : bits of a sum.

    Interface attributes
    --------------------
    sums, scale, exponent : of one beat together: [unit][lane], signed; [unit]; [unit][lane], in steps of EXPONENT_STEP.
    out : [lane], signed, `delay` cycles later.

    Attributes
    ----------
    delay : scaler_delay(units). width : of `out`.
    """

    def __init__(self, *, units: int, lanes: int, width: int) -> None:
        self._units, self._lanes, self._sum = units, lanes, width
        self.delay = scaler_delay(units)
        self.width = width + EXPONENT + SCALE_BITS + ceil_log2(units)
        super().__init__(
            {
                "sums": In(signed(width)).array(units, lanes),
                "scale": In(SCALE_BITS).array(units),
                "exponent": In(EXPONENT_BITS).array(units, lanes),
                "out": Out(signed(self.width)).array(lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # The multiplier has two registers on its factors; more are in front of it.
        links = [(min(u + 1, 2), max(u - 1, 0)) for u in range(self._units)]
        scales = [
            delay_line(m, positive(s), before, f"scale_{u}")
            for u, (s, (_, before)) in enumerate(zip(self.scale, links, strict=True))
        ]
        for lane in range(self._lanes):
            total, cascade = None, None
            for u, (registers, before) in enumerate(links):
                late = delay_line(m, Cat(self.sums[u][lane], self.exponent[u][lane]), before, f"sum_{u}_{lane}")
                value, exponent = late[: self._sum].as_signed(), late[self._sum :]
                shifted = Array(
                    Cat(C(0, EXPONENT - e), value, value[-1].replicate(e)).as_signed()
                    for e in range(0, EXPONENT + 1, EXPONENT_STEP)
                )[exponent]
                total, cascade = multiply_add(
                    m, platform, f"product_{u}_{lane}", shifted, scales[u],
                    registers=registers, cascade=cascade, shift=0, width=self.width,
                )  # fmt: skip
            m.d.comb += self.out[lane].eq(total)
        return m


def scaler_delay(units: int) -> int:
    """Cycles from the sums of a beat's units to their scaled sum."""
    return MULTIPLY_ADD_DELAY + units - 1
