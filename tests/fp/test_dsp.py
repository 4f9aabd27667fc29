"""Multipliers and their cascades: as DSP48E2 and in plain logic side by side, equal in every cycle, at the ends of their widths."""

from __future__ import annotations

import random
from typing import Any

import cocotb
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from tellme.hw.fp.dsp import A_BITS, B_BITS, multiply_add, multiply_chosen
from tellme.sim.runner import parameters, simulate

CHAIN = 3
"""Links of the chain."""


class Multipliers(wiring.Component):
    """Every way in which `hw.fp.dsp` is called, for the platform (`left`) and in plain logic (`right`)."""

    def __init__(self) -> None:
        self.cases = [
            (r, c, cr, k) for r in (0, 1, 2) for c in (False, True) for cr in (0, 1) for k in (False, True) if c or cr
        ]
        results = len(self.cases) + CHAIN
        super().__init__(
            {
                "a": In(signed(A_BITS)),
                "d": In(signed(A_BITS)),
                "b": In(signed(B_BITS)),
                "c": In(signed(46)),
                "a_en": In(1),
                "d_en": In(1),
                "use_d": In(1),
                "left": Out(48).array(results),
                "right": Out(48).array(results),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for side, target, results in (("left", platform, self.left), ("right", None, self.right)):
            _, low = multiply_add(m, target, f"{side}_low", self.a, self.b, width=45)
            for n, (registers, c, c_registers, cascade) in enumerate(self.cases):
                total, _ = multiply_add(
                    m,
                    target,
                    f"{side}_{n}",
                    self.a,
                    self.b,
                    registers=registers,
                    c=self.c if c else None,
                    c_registers=c_registers,
                    # A cascade is of one chain in the chip; the model does not mind.
                    cascade=low if cascade else None,
                    width=48,
                )
                m.d.comb += results[n].eq(total)
            link = None
            for i in range(CHAIN):
                total, link = multiply_chosen(
                    m,
                    target,
                    f"{side}_chain_{i}",
                    a=self.a,
                    a_en=self.a_en,
                    d=self.d,
                    d_en=self.d_en,
                    use_d=self.use_d,
                    b=self.b,
                    cascade=link,
                    width=48,
                )
                m.d.comb += results[len(self.cases) + i].eq(total)
        return m


@cocotb.test()
async def check_both_forms_are_equal(dut: Any) -> None:
    rng = random.Random(parameters()["seed"])
    cases = Multipliers().cases
    cocotb.start_soon(Clock(dut.clk, 2, "ns").start())
    dut.rst.value = 0
    seen = [set() for _ in range(len(cases) + CHAIN)]
    for cycle in range(parameters()["cycles"]):
        for name, bits in (("a", A_BITS), ("d", A_BITS), ("b", B_BITS), ("c", 46)):
            ends = (-(1 << bits - 1), (1 << bits - 1) - 1, 0, -1)
            value = rng.choice(ends) if rng.random() < 0.3 else rng.getrandbits(bits) - (1 << bits - 1)
            getattr(dut, name).value = value & (1 << bits) - 1
        for name in ("a_en", "d_en", "use_d"):
            getattr(dut, name).value = rng.getrandbits(1)
        await RisingEdge(dut.clk)
        if cycle < 12:
            continue  # registers of plain logic have no initial value of their own
        for n in range(len(seen)):
            left, right = (getattr(dut, f"{side}__{n}").value.to_unsigned() for side in ("left", "right"))
            assert left == right, f"cycle {cycle}, {(*cases, *range(CHAIN))[n]}: {left:012x} is not {right:012x}"
            seen[n].add(left)
    assert all(len(s) > 100 for s in seen)


def test_multipliers_of_primitives_are_those_of_plain_logic() -> None:
    simulate(
        Multipliers(),
        __name__,
        testcase="check_both_forms_are_equal",
        parameters={"seed": 5, "cycles": 1500},
        form="primitives",
    )
