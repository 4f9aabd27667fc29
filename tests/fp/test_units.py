"""The arithmetic pipelines of hw/fp against golden/fp.py, bit for bit, all side by side in one simulation."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cocotb
import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from tellme.golden import fp
from tellme.hw import fp as hw
from tellme.hw.pipeline import delay_line
from tellme.sim.runner import parameters, simulate
from tests.fp import cases

SLOT = 64
"""Bits of the bench's vectors that each operand and each result has."""

ECHO_DELAY = 7
"""Cycles of the delay line beside the units, which shows the bench where results are to be expected."""

RANDOM = 24_000


@dataclass
class Unit:
    """A pipeline under test: its component, its operands, and what golden makes of their integers."""

    name: str
    component: Any
    operands: tuple[str, ...]
    golden: Callable[..., np.ndarray]
    operands_of: Callable[[np.random.Generator], tuple[np.ndarray, ...]]
    result: str = "o"


def _floats(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """A golden function of patterns."""
    return lambda *p: np.asarray(function(*(fp.from_bits(x) for x in p)))


def _product(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    return tuple(np.concatenate(p) for p in zip(cases.edge_pairs(), cases.product_pairs(rng, RANDOM), strict=True))


def _sum(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    (a, b), (ra, rb) = cases.edge_pairs(), cases.sum_pairs(rng, RANDOM)
    a, b = np.concatenate([a, a, ra]), np.concatenate([b, b, rb])
    subtract = rng.integers(0, 2, len(a))
    subtract[: 2 * (len(a) - RANDOM) // 2] = np.repeat([0, 1], (len(a) - RANDOM) // 2)
    return a, b, subtract


def _one(*ranges: tuple[int, int]) -> Callable[[np.random.Generator], tuple[np.ndarray, ...]]:
    """Edges, any patterns, and patterns of the exponents where something happens."""

    def make(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        narrow = [cases.scaled(rng, RANDOM // len(ranges), *r) for r in ranges]
        return (np.concatenate([cases.edges(), cases.patterns(rng, RANDOM // 3), *narrow]),)

    return make


def _exponential(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    ends = np.concatenate([np.arange(0x42B17000, 0x42B17300), np.arange(0xC2AEA800, 0xC2AEAF00)])
    return (np.concatenate([*_one((-30, 8), (-3, 7))(rng), ends]),)


def _fraction(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    starts = (np.arange(64) << 14)[:, None] + np.array([0, 1, (1 << 14) - 1])
    return (np.concatenate([starts.ravel(), rng.integers(0, 1 << 20, RANDOM)]),)


def units() -> list[Unit]:
    """Every arithmetic unit of docs/numerics.md, with the widths that the machine uses and others beside them."""

    def integers(width: int) -> Unit:
        return Unit(
            f"IntToFloat({width})",
            hw.IntToFloat(width),
            ("i",),
            fp.from_int,
            lambda rng: (cases.integers(rng, RANDOM, width),),
        )

    def fixed(frac: int, width: int) -> Unit:
        limit = (126 + width - frac) << 23  # 2^(width - 1), and what rounds to it
        ends = np.concatenate([s + limit + np.arange(-1000, 4) for s in (0, 1 << 31)])
        return Unit(
            f"FloatToFixed({frac}, {width})",
            hw.FloatToFixed(frac, width),
            ("i",),
            _floats(lambda x: fp.to_fixed(x, frac, width)),
            lambda rng: (np.concatenate([*_one((-frac - 3, width + 1 - frac))(rng), ends]),),
        )

    def sum_or_difference(a: np.ndarray, b: np.ndarray, subtract: np.ndarray) -> np.ndarray:
        x, y = fp.from_bits(a), fp.from_bits(b)
        return np.where(subtract == 1, fp.sub(x, y), fp.add(x, y))

    return [
        Unit("Multiplier", hw.Multiplier(), ("a", "b"), _floats(fp.mul), _product),
        Unit("Adder", hw.Adder(), ("a", "b", "subtract"), sum_or_difference, _sum),
        *(integers(w) for w in (9, 22, 24, 25, 26, 32, 45)),
        Unit("FloatToInt8", hw.FloatToInt8(), ("i",), _floats(fp.to_int8), _one((-3, 9))),
        *(fixed(*p) for p in ((20, 32), (0, 18), (4, 25), (30, 40))),
        Unit("Reciprocal", hw.Reciprocal(), ("i",), _floats(fp.recip), _one((0, 1), (120, 128))),
        Unit("ReciprocalSqrt", hw.ReciprocalSqrt(), ("i",), _floats(fp.rsqrt), _one((0, 2), (-20, 20))),
        Unit("Exponential", hw.Exponential(), ("i",), _floats(fp.exp), _exponential),
        Unit("Exp2Mantissa", hw.Exp2Mantissa(), ("f",), fp.exp2_mantissa, _fraction),
    ]


class Bench(wiring.Component):
    """All units side by side: a slot of `inputs` for each operand, of `outputs` for each result; slot 0 is a delay."""

    def __init__(self) -> None:
        self.units = units()
        operands = sum(len(u.operands) for u in self.units)
        super().__init__({"inputs": In(SLOT * (1 + operands)), "outputs": Out(SLOT * (1 + len(self.units)))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.outputs[:SLOT].eq(delay_line(m, self.inputs[:SLOT], ECHO_DELAY, "echo"))
        operand = 1
        for k, unit in enumerate(self.units, 1):
            m.submodules[f"unit{k}"] = unit.component
            for name in unit.operands:
                m.d.comb += getattr(unit.component, name).eq(self.inputs.word_select(operand, SLOT))
                operand += 1
            m.d.comb += self.outputs.word_select(k, SLOT).eq(getattr(unit.component, unit.result).as_unsigned())
        return m


@cocotb.test()
async def check_units_equal_golden(dut: Any) -> None:
    rng = np.random.default_rng(parameters()["seed"])
    tested = units()
    operands = [[np.asarray(x).astype(np.int64) for x in u.operands_of(rng)] for u in tested]
    count = max(len(o[0]) for o in operands)
    rows = [np.arange(count)]
    for unit, given in zip(tested, operands, strict=True):
        assert len(given[0]) >= 20_000, unit.name
        rows += [np.resize(x, count) for x in given]
    stimuli = np.stack(rows, axis=1).astype(np.int64)

    cocotb.start_soon(Clock(dut.clk, 2, "ns").start())
    dut.inputs.value = 0
    dut.rst.value = 1
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    collected = []
    margin = 2 + max(ECHO_DELAY, *(u.component.delay for u in tested))
    width = SLOT // 8 * (1 + len(tested))
    for i in range(count + margin):
        dut.inputs.value = int.from_bytes(stimuli[min(i, count - 1)].tobytes(), "little")
        await RisingEdge(dut.clk)
        collected.append(dut.outputs.value.to_unsigned().to_bytes(width, "little"))
    results = np.frombuffer(b"".join(collected), np.uint64).reshape(len(collected), -1)

    first = int(np.flatnonzero(results[:, 0] == 1)[0]) - 1 - ECHO_DELAY  # where a unit without delay would answer
    column = 1
    for k, unit in enumerate(tested, 1):
        given = [stimuli[:, column + j] for j in range(len(unit.operands))]
        column += len(unit.operands)
        wanted = np.asarray(unit.golden(*given))
        wanted = fp.bits(wanted).astype(np.uint64) if wanted.dtype == np.float32 else wanted.astype(np.int64)
        bits = len(getattr(unit.component, unit.result).as_unsigned())
        wanted = wanted.astype(np.uint64) & np.uint64((1 << bits) - 1)
        start = first + unit.component.delay
        got = results[start : start + count, k]
        wrong = np.flatnonzero(got != wanted)
        if len(wrong):
            shown = [([f"{int(x[j]):x}" for x in given], f"{got[j]:x}", f"{wanted[j]:x}") for j in wrong[:5]]
            raise AssertionError(f"{unit.name}: {len(wrong)} of {count} differ, (operands, got, wanted): {shown}")
        dut._log.info("%s: %d cases equal, %d cycles", unit.name, count, unit.component.delay)


@pytest.mark.parametrize("form", ["rtl", "primitives"])
def test_every_unit_equals_golden_bit_for_bit(form: str) -> None:
    simulate(Bench(), __name__, parameters={"seed": 20252}, testcase="check_units_equal_golden", form=form)


def test_adder_answers_within_five_cycles() -> None:
    assert hw.Adder.delay <= 5


@pytest.mark.filterwarnings("ignore:.*created but never used")
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hw.IntToFloat(1), "width of an integer must be from 2 to 64, not 1"),
        (lambda: hw.IntToFloat(65), "width of an integer must be from 2 to 64, not 65"),
        (lambda: hw.FloatToFixed(-1, 8), "fraction bits must be from 0 to 64, not -1"),
        (lambda: hw.FloatToFixed(65, 8), "fraction bits must be from 0 to 64, not 65"),
        (lambda: hw.FloatToFixed(0, 3), "width of a fixed-point result must be from 4 to 48, not 3"),
        (lambda: hw.FloatToFixed(0, 49), "width of a fixed-point result must be from 4 to 48, not 49"),
    ],
)
def test_refused_parameters_say_why(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
    gc.collect()  # the refused component, while its warning of not being used is ignored
