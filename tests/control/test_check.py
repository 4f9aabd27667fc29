"""What is looked at before a pass equals golden.check: every field of every descriptor, and the lanes' numbers."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import cocotb
import pytest
from amaranth import Module
from amaranth.lib import wiring
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from tellme.golden.check import bad_lanes, problem
from tellme.golden.config import KV260, TINY, ULTRA96V2, AcceleratorConfig
from tellme.golden.kv import CACHE_FORMATS, EIGHT
from tellme.golden.program import DESCRIPTOR_BYTES
from tellme.golden.registers import MAX_SLOTS, pack
from tellme.golden.shapes import BITNET_07B, BITNET_2B
from tellme.hw.control.check import ProgramCheck
from tellme.hw.control.descriptor import ProgramMemory
from tellme.hw.control.lanes import LaneCheck
from tellme.sim.runner import parameters, simulate
from tests.control.programs import compiled, damaged, mutation
from tests.models import small_spec

CASES = {
    "tiny": (small_spec(layers=1, vocab=300), TINY),
    "tiny-mha-silu": (small_spec(layers=1, kv_heads=4, head_dim=64, activation="silu", attn_sub_norm=False), TINY),
    "tiny-qk-norm": (small_spec(layers=1, qk_norm=True, head_dim=64, attn_sub_norm=False, ffn_sub_norm=False), TINY),
    "tiny-ternary-head": (small_spec(layers=1, vocab=300, ternary_head=True), TINY),
    "tiny-4": (small_spec(layers=1, vocab=300, max_context=512), TINY),
    # Every size is the most that there may be.
    "tiny-largest": (
        small_spec(layers=1, vocab=300, hidden=256, ffn=1024, heads=4, kv_heads=2, head_dim=128, max_context=256),
        TINY,
    ),
    "kv260": (replace(BITNET_2B, layers=1), KV260),
    "kv260-8-4": (replace(BITNET_2B, layers=1, max_context=8192), KV260),
    "ultra96v2": (replace(BITNET_07B, layers=1), ULTRA96V2),
}
KV = {"tiny-4": CACHE_FORMATS["4"], "kv260-8-4": CACHE_FORMATS["8-4"]}
"""Caches below 8 bits, of more positions than those of 8 bits could have."""
CANDIDATES = ((0, 1), (64, 1), (128, 4), (64, 0))
"""(candidates, head lanes) that programs are judged with."""
ONE_LANE = replace(TINY, name="one", lanes=1)
CONFIGS = {c.name: c for c in (ONE_LANE, TINY, KV260)}


class Bench(wiring.Component):
    """The checker with its program memory."""

    def __init__(self, config: AcceleratorConfig):
        self.memory = ProgramMemory(config)
        self.check = ProgramCheck(config)
        members = {n: m for n, m in self.check.signature.members.items() if n not in ("request", "valid", "descriptor")}
        members |= {n: self.memory.signature.members[n] for n in ("restart", "write", "beat")}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = self.memory
        m.submodules.check = check = self.check
        for unit, names in (
            (check, "start length context slots candidates head_count"),
            (memory, "restart write beat"),
        ):
            m.d.comb += [getattr(unit, n).eq(getattr(self, n)) for n in names.split()]
        m.d.comb += [
            self.busy.eq(check.busy),
            self.bad.eq(check.bad),
            self.index.eq(check.index),
            memory.execute_request.eq(check.request),
            memory.execute_index.eq(check.index),
            check.valid.eq(memory.execute_valid),
            check.descriptor.eq(memory.descriptor),
        ]
        return m


async def _reset(dut: Any, *names: str) -> None:
    Clock(dut.clk, 10, "ns").start()
    for name in names:
        getattr(dut, name).value = 0
    dut.rst.value = 1
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)


async def _verdict(dut: Any, limit: int) -> int:
    """Starts, and waits; the cycles of `busy`."""
    dut.start.value = 1
    await RisingEdge(dut.clk)
    dut.start.value = 0
    await RisingEdge(dut.clk)
    for n in range(limit):
        if not int(dut.busy.value):
            return n
        await RisingEdge(dut.clk)
    raise AssertionError(f"no verdict in {limit} cycles")


def _programs(name: str, mutations: int) -> list[tuple[str, bytes, int, int]]:
    """(what, program, candidates, head lanes)."""
    spec, config = CASES[name]
    rng = random.Random(f"{name} 5")
    codes = [compiled(spec, config, planes=planes, kv=KV.get(name, EIGHT)).code for planes in (1, 0, 2)]
    first = codes[0]
    cases = [("as compiled", first), *damaged(first)]
    cases += [(f"mutation {i}", mutation(first, rng)) for i in range(mutations)]
    out = [(what, code, *CANDIDATES[i % len(CANDIDATES)]) for i, (what, code) in enumerate(cases)]
    for count in (0, 1, 8, 16, 17, 64, 144, 160, 512, 1024, 1040, 2047):
        for lanes in (0, 1, config.lanes // 2, config.lanes):
            out += [(f"{count} for {lanes} lanes, program {i}", code, count, lanes) for i, code in enumerate(codes)]
    return out


@cocotb.test()
async def check_programs(dut: Any) -> None:
    name = parameters()["case"]
    spec, config = CASES[name]
    context, slots = compiled(spec, config, kv=KV.get(name, EIGHT)).context, 3
    assert (context > config.max_context) == (name in KV)
    await _reset(dut, "start", "restart", "write")
    dut.context.value, dut.slots.value = context, slots
    right = 0
    for what, code, candidates, head_count in _programs(name, parameters()["mutations"]):
        dut.candidates.value, dut.head_count.value = candidates, head_count
        dut.restart.value = 1
        await RisingEdge(dut.clk)
        dut.restart.value = 0
        dut.write.value = 1
        for j in range(0, len(code), config.beat_bytes):
            dut.beat.value = int.from_bytes(code[j : j + config.beat_bytes], "little")
            await RisingEdge(dut.clk)
        dut.write.value = 0
        length = len(code) // DESCRIPTOR_BYTES
        dut.length.value = length
        cycles = await _verdict(dut, 40 * length)
        want = problem(code, config, context=context, slots=slots, candidates=candidates, head_lanes=head_count)
        got = int(dut.index.value) if int(dut.bad.value) else None
        assert got == (None if want is None else want[0]), (what, candidates, head_count, got, want)
        right += want is None
        if what == "as compiled":
            expected = ProgramCheck.expected_cycles(
                config, descriptors=length, attentions=1, kv_heads=spec.kv_heads, context=context, slots=slots
            )
            assert abs(cycles - expected) <= length, cycles
    assert right > 10, "nearly everything is refused: the cases tell little"


@pytest.mark.parametrize("case", CASES)
def test_every_field_of_every_descriptor_is_judged_as_golden_does(case: str) -> None:
    simulate(Bench(CASES[case][1]), __name__, testcase="check_programs", parameters={"case": case, "mutations": 300})


@cocotb.test()
async def check_lanes(dut: Any) -> None:
    config = CONFIGS[parameters()["config"]]
    rng = random.Random(9)
    n = config.lanes
    await _reset(dut, "start")
    cases: list[tuple[int, tuple[int, int], int, int, list[int], list[int]]] = []
    most = config.most_context
    in_order, one = list(range(n)), [0] * n

    def case(
        positions: list[int], slot: list[int], lanes: int = n, head: tuple[int, int] = (0, 1), **limits: int
    ) -> None:
        context, slots = limits.get("context", most), limits.get("slots", MAX_SLOTS)
        cases.append((lanes, head, context, slots, positions, slot))

    case(in_order, one)
    case([most - n + i for i in range(n)], [MAX_SLOTS - 1] * n)
    case([0] * n, in_order)
    for lanes in (0, 1, n, n + 1, 2 * n, 1 << 31):
        case(in_order, one, lanes)
    for head in ((0, 0), (n - 1, 1), (n, 0), (n, 1), (0, n), (1, n), (255, 255)):
        case(in_order, one, head=head)
    for context in (0, 1, n - 1, n, most, most + 1, 1 << 16, 1 << 31):
        case(in_order, one, context=context)
    for slots in (0, 1, 2, n, MAX_SLOTS, MAX_SLOTS + 1, 1 << 31):
        case([0] * n, in_order, slots=slots)
    for lane in {0, n // 2, n - 1}:
        for position in (most - 1, most, most + lane, 1 << 16, 1 << 16 | lane, 1 << 31):
            case([*in_order[:lane], position, *in_order[lane + 1 :]], one)
            case([*in_order[:lane], position, *in_order[lane + 1 :]], in_order)
        for slot in (MAX_SLOTS - 1, MAX_SLOTS, MAX_SLOTS + lane, 1 << 31 | lane):
            case([0] * n, [*in_order[:lane], slot, *in_order[lane + 1 :]])
    if n > 1:
        case([5] * n, one)  # equal
        case(in_order[::-1], one)  # descending
        case([2 * i for i in range(n)], one)  # with gaps
        case([*in_order[:-1], 0], one)
        case([*in_order[:-1], 0], one, lanes=n - 1)  # idle lanes do not matter
        case([*in_order[:-1], 1 << 31], [*one[:-1], 1 << 31], lanes=n - 1)
    if n > 2:
        case([0, 0, 1, *[0] * (n - 3)], [1, 0, 1, *range(2, n - 1)])  # not neighbours
        case([0] * (n - 1) + [1], [*range(n - 1), 0])
    for _ in range(parameters()["random"]):
        lanes = rng.randrange(1, n + 1)
        cuts = sorted(rng.sample(range(1, lanes), rng.randrange(min(3, lanes)))) if lanes > 1 else []
        names = rng.sample(range(8), len(cuts) + 1)
        slot, positions = [0] * n, [0] * n
        for name, lo, hi in zip(names, [0, *cuts], [*cuts, lanes], strict=True):
            start = rng.choice((0, rng.randrange(most), most - (hi - lo)))
            slot[lo:hi], positions[lo:hi] = [name] * (hi - lo), range(start, start + hi - lo)
        for _ in range(rng.choice((0, 0, 1))):
            which = rng.choice((slot, positions))
            which[rng.randrange(n)] = rng.choice((0, 1, rng.randrange(8), rng.randrange(most + 2)))
        case(
            positions,
            slot,
            lanes,
            (rng.randrange(lanes), rng.randrange(lanes + 1)),
            slots=rng.choice((8, 7, MAX_SLOTS)),
        )
    verdicts = []
    for lanes, head, context, slots, positions, slot in cases:
        dut.lanes.value = lanes
        dut.head_lanes.value = pack("head_lanes", first=head[0], count=head[1])
        dut.context.value = context
        dut.slots.value = slots
        dut.position.value = sum(p << 32 * i for i, p in enumerate(positions))
        dut.slot.value = sum(s << 32 * i for i, s in enumerate(slot))
        for _ in range(2):
            await RisingEdge(dut.clk)
        cycles = await _verdict(dut, n + 10)
        if 1 <= lanes <= n:
            assert cycles == LaneCheck.expected_cycles(lanes=lanes)
        want = bad_lanes(config, lanes=lanes, head=head, context=context, slots=slots, positions=positions, slot=slot)
        assert int(dut.bad.value) == want, (lanes, head, context, slots, positions, slot)
        verdicts.append(want)
    assert 0.1 < sum(verdicts) / len(verdicts) < 0.8


@pytest.mark.parametrize("config", CONFIGS)
def test_lanes_are_judged_as_golden_does(config: str) -> None:
    simulate(LaneCheck(CONFIGS[config]), __name__, testcase="check_lanes", parameters={"config": config, "random": 250})
