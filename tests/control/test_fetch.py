"""The fetcher's segments and the sequencer's phases equal golden.schedule's, over programs, lanes and slots."""

from __future__ import annotations

import itertools
import random
from typing import Any

import cocotb
import pytest
from amaranth import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from tellme.golden import layout, schedule
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.program import DESCRIPTOR_BYTES, Kind, Opcode, encode
from tellme.hw.control.descriptor import ProgramMemory
from tellme.hw.control.fetch import SEGMENT, Fetcher
from tellme.hw.control.sequence import PhaseSequencer
from tellme.hw.head.heap import CANDIDATE_BITS, CHOSEN
from tellme.hw.interfaces import PassParameters, count_bits, phase_layout
from tellme.sim.runner import parameters, simulate

CONFIGS = {c.name: c for c in (TINY, KV260)}


class Bench(wiring.Component):
    """Fetcher with its program memory, and a sequencer on its own."""

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "start_phases": In(1),
                "busy": Out(1),
                "phases_busy": Out(1),
                "kv_heads": In(8),
                "split": In(1),
                "program_length": In(16),
                "program_ready": In(1),
                "write": In(1),
                "beat": In(8 * config.beat_bytes),
                "parameters": In(PassParameters(config)),
                "head_count": In(count_bits(config)),
                "candidates": In(CANDIDATE_BITS),
                "chosen": In(stream.Signature(CHOSEN)),
                "segments": Out(stream.Signature(SEGMENT)),
                "phases": Out(stream.Signature(phase_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = ProgramMemory(self.config)
        m.submodules.fetcher = fetcher = Fetcher(self.config)
        m.submodules.sequencer = sequencer = PhaseSequencer(self.config)
        for unit in (fetcher, sequencer):
            wiring.connect(m, wiring.flipped(self.parameters), unit.parameters)
        m.d.comb += [
            memory.restart.eq(self.start),
            memory.write.eq(self.write),
            memory.beat.eq(self.beat),
            memory.fetch_request.eq(fetcher.request),
            memory.fetch_index.eq(fetcher.index),
            fetcher.valid.eq(memory.fetch_valid),
            fetcher.descriptor.eq(memory.descriptor),
            fetcher.start.eq(self.start),
            fetcher.program_address.eq(77),
            fetcher.program_length.eq(self.program_length),
            fetcher.program_ready.eq(self.program_ready),
            fetcher.head_count.eq(self.head_count),
            fetcher.candidates.eq(self.candidates),
            self.busy.eq(fetcher.busy),
            sequencer.start.eq(self.start_phases),
            sequencer.kv_heads.eq(self.kv_heads),
            sequencer.split.eq(self.split),
            self.phases_busy.eq(sequencer.busy),
        ]
        wiring.connect(m, wiring.flipped(self.segments), fetcher.segments)
        wiring.connect(m, wiring.flipped(self.chosen), fetcher.chosen)
        wiring.connect(m, wiring.flipped(self.phases), sequencer.phases)
        return m


def _cases(config: AcceleratorConfig) -> list[tuple[list[int], list[int]]]:
    """(positions, slots): one lane, all lanes, block edges, several slots, full context; random ones."""
    n, kb = config.lanes, config.key_block
    full = config.most_context
    cases: list[tuple[list[int], list[int]]] = [([p], [3]) for p in (0, 1, kb - 1, kb, kb + 1, full - 1)]
    cases += [([p + i for i in range(n)], [0] * n) for p in (0, 1, kb - 1, full - n)]
    cases += [([5, 6, 0, kb * 2], [0, 0, 2, 7]), ([0] * n, list(range(n)))]
    # Groups of any length that begin at any lane, also in the middle of a word of scores, at any positions.
    rng = random.Random(config.name)
    for _ in range(12):
        positions: list[int] = []
        of: list[int] = []
        for slot in rng.sample(range(16), 16):
            count = min(rng.choice((1, 1, 2, 3, rng.randint(1, n))), n - len(of))
            first = rng.choice((0, rng.randrange(2 * kb), rng.randrange(full - n)))
            positions += range(first, first + count)
            of += [slot] * count
        cases.append((positions, of))
    return cases


def _unpack(value: int, layout: data.StructLayout) -> dict[str, int]:
    return {name: value >> f.offset & (1 << f.width) - 1 for name, f in layout}


async def _reset(dut: Any) -> None:
    Clock(dut.clk, 10, "ns").start()
    for name in (
        "start",
        "start_phases",
        "write",
        "program_ready",
        "segments__ready",
        "phases__ready",
        "chosen__valid",
    ):
        getattr(dut, name).value = 0
    dut.rst.value = 1
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    await RisingEdge(dut.clk)


async def _collect(
    dut: Any, name: str, layout: data.StructLayout, busy: Any, stall: float, rng: random.Random
) -> list[dict[str, int]]:
    out = []
    valid, ready, payload = (getattr(dut, f"{name}__{s}") for s in ("valid", "ready", "payload"))
    idle = 0
    while idle < 4:
        ready.value = int(rng.random() >= stall)
        await RisingEdge(dut.clk)
        if int(valid.value) and int(ready.value):
            out.append(_unpack(int(payload.value), layout))
        idle = 0 if int(busy.value) else idle + 1
    ready.value = 0
    return out


def _lanes(dut: Any, config: AcceleratorConfig, positions: list[int], slots: list[int]) -> None:
    dut.parameters__lanes.value = len(positions)
    dut.parameters__position.value = sum(p << 16 * i for i, p in enumerate(positions))
    dut.parameters__slot.value = sum(s << 8 * i for i, s in enumerate(slots))
    dut.parameters__same_slot.value = sum((slots[i] == slots[i + 1]) << i for i in range(len(slots) - 1))


def _program(config: AcceleratorConfig, rng: random.Random) -> bytes:
    attention = {
        "kv_address": 123_456,
        "slot_stride": 70_001,
        "head_stride": 9_973,
        "head_dim": 96,
        "kv_heads": 3,
        "heads": 6,
    }
    inputs = rng.choice((32, 96, 1536, 2560))
    return b"".join(
        (
            encode(
                Opcode.LOAD,
                address=900,
                gain_beats=6,
                x_address=5000,
                x_beats=9,
                inputs=96,
                rope_address=6000,
                rope_beats=6,
            ),
            encode(Opcode.LINEAR, kind=Kind.QKV, address=rng.randrange(1 << 31), gain_beats=0, tiles=5, rows=4608),
            encode(Opcode.ATTENTION, address=31, gain_beats=3, **attention),
            encode(
                Opcode.LINEAR, kind=Kind.GATE_SILU, address=rng.randrange(1 << 31), gain_beats=96, tiles=22, rows=13824
            ),
            encode(Opcode.ATTENTION, **{**attention, "head_dim": 32, "kv_heads": 1}),
            encode(Opcode.ATTENTION, v_narrow=1, **attention),
            encode(Opcode.ATTENTION, k_narrow=1, v_narrow=1, **{**attention, "head_dim": 64, "kv_heads": 2}),
            encode(
                Opcode.SCREEN,
                address=rng.randrange(1 << 31),
                tiles=layout.tiles(inputs, config),
                planes=rng.choice((1, 2)),
                inputs=inputs,
                rows=rng.choice((1, 300, 32002, 128256, 1 << 20)),
                row_address=rng.randrange(1 << 30),
            ),
            *(_ternary(config, rng, inputs) if config.ternary_head else ()),
            encode(Opcode.HEAD, address=1 << 20, blocks=251, inputs=1536),
            encode(Opcode.END),
        )
    )


def _ternary(config: AcceleratorConfig, rng: random.Random, inputs: int) -> tuple[bytes]:
    """A ternary head, whose rows nobody names."""
    rows, tiles = rng.choice((32, 300, 1 << 20)), layout.tiles(inputs, config)
    return (
        encode(Opcode.SCREEN, address=rng.randrange(1 << 31), tiles=tiles, planes=1, exact=1, inputs=inputs, rows=rows),
    )


async def _choose(dut: Any, rows: list[int], stall: float) -> None:
    """Names rows that are to be read."""
    rng = random.Random(3)
    for i, row in enumerate(rows):
        while rng.random() < stall:
            await RisingEdge(dut.clk)
        dut.chosen__valid.value = 1
        dut.chosen__payload.value = row | (i + 1 == len(rows)) << 20
        await RisingEdge(dut.clk)
        while not int(dut.chosen__ready.value):
            await RisingEdge(dut.clk)
        dut.chosen__valid.value = 0


@cocotb.test()
async def check_segments(dut: Any) -> None:
    config = CONFIGS[parameters()["config"]]
    rng = random.Random(7)
    await _reset(dut)
    for i, (positions, slots) in enumerate(_cases(config)):
        program = _program(config, rng)
        head_count = (0, 1, len(positions))[i % 3]
        _lanes(dut, config, positions, slots)
        dut.head_count.value = head_count
        candidates = [rng.randrange(1 << 20) for _ in range(16 * head_count)] if i % 2 else []
        dut.candidates.value = 16 if candidates else 0
        dut.program_length.value = len(program) // DESCRIPTOR_BYTES
        dut.program_ready.value = 0
        dut.start.value = 1
        await RisingEdge(dut.clk)
        dut.start.value = 0
        await RisingEdge(dut.clk)
        for j in range(0, len(program), config.beat_bytes):
            dut.beat.value = int.from_bytes(program[j : j + config.beat_bytes], "little")
            dut.write.value = 1
            await RisingEdge(dut.clk)
        dut.write.value = 0
        dut.program_ready.value = 1
        choosing = cocotb.start_soon(_choose(dut, candidates, parameters()["stall"]))
        got = await _collect(dut, "segments", SEGMENT, dut.busy, parameters()["stall"], rng)
        await choosing
        want = schedule.segments(config, program, 77, positions, slots, head_count, candidates)
        assert [(s["address"], s["beats"]) for s in got] == [(s.address % 2**32, s.beats) for s in want], (
            positions,
            slots,
        )


@cocotb.test()
async def check_phases(dut: Any) -> None:
    config = CONFIGS[parameters()["config"]]
    rng = random.Random(8)
    await _reset(dut)
    for positions, slots in _cases(config):
        for kv_heads, split in itertools.product((1, 2, 5), (0, 1)):
            dut.split.value = split
            _lanes(dut, config, positions, slots)
            dut.kv_heads.value = kv_heads
            dut.start_phases.value = 1
            await RisingEdge(dut.clk)
            dut.start_phases.value = 0
            got = await _collect(dut, "phases", phase_layout(config), dut.phases_busy, parameters()["stall"], rng)
            want = [vars(p) for p in schedule.phases(config, kv_heads, positions, slots, bool(split))]
            assert got == want, (positions, slots, kv_heads, split)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_fetcher_and_sequencer_follow_the_schedule(config: str, stall: float) -> None:
    simulate(Bench(CONFIGS[config]), __name__, parameters={"config": config, "stall": stall})


def test_groups_are_runs_of_neighbouring_lanes() -> None:
    assert schedule.groups([0, 0, 2, 2, 2, 0]) == [(0, 1), (2, 4), (5, 5)]
