"""The KV writer against the cache layout of the contract, with refused reads and a slow writer; its cycles."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import product
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.triggers import FallingEdge, RisingEdge

from tellme.golden.config import KV260, MAX_HEADS, TINY, AcceleratorConfig
from tellme.hw.memory import KvWriter
from tellme.sim import harness, runner
from tests.memory.common import SMALL

MANY_HEADS = replace(TINY, max_heads=MAX_HEADS, max_kv_dim=32 * MAX_HEADS)
CONFIGS = {c.name: c for c in (KV260, MANY_HEADS, replace(SMALL, narrow_cache=True))}


def place(c: AcceleratorConfig, p: dict[str, Any], memory: np.ndarray, data: np.ndarray, scales: np.ndarray) -> None:
    """What must be in memory (uint8[beats, B]): the table of section 1, element by element."""
    cells = p["cells"]
    narrow = p["k_narrow"], p["v_narrow"]
    beats = [c.key_tile >> n for n in narrow]
    stride = 2 * c.scale_beats + cells * sum(beats)
    for lane in range(p["lanes"]):
        block, key = divmod(p["positions"][lane], c.key_block)
        for head in range(p["kv_heads"]):
            base = p["address"] + p["slots"][lane] * p["slot_stride"] + head * p["head_stride"] + block * stride
            for v in range(2):
                flat = memory[base + v * c.scale_beats : base + (v + 1) * c.scale_beats].reshape(-1)
                flat[4 * key : 4 * key + 4] = np.frombuffer(np.uint32(scales[v, head, lane]).tobytes(), np.uint8)
                for cell in range(cells):
                    size = c.cell >> narrow[v]
                    at = key * size
                    elements = data[v, head, lane, cell]
                    if narrow[v]:
                        elements = elements[::2] & 15 | elements[1::2] << 4
                    beat = base + 2 * c.scale_beats + v * cells * beats[0] + cell * beats[v]
                    memory[beat + at // c.beat_bytes, at % c.beat_bytes :][:size] = elements


@cocotb.test()
async def check_jobs(dut: Any) -> None:
    """One behind the other: each must find everything as the first one did."""
    await FallingEdge(dut.reset)
    for p in runner.parameters()["jobs"]:
        await check_job(dut, p)


async def check_job(dut: Any, p: dict[str, Any]) -> None:
    c = CONFIGS[p["config"]]
    rng = np.random.default_rng(p["seed"])
    data = rng.integers(0, 256, (2, p["kv_heads"], c.lanes, p["cells"], c.cell), np.uint8)
    scales = rng.integers(0, 1 << 32, (2, p["kv_heads"], c.lanes), np.uint64)
    own_beats = max(1, c.lanes // c.keys_per_beat)
    ram = []
    for v in range(2):
        for head in range(p["kv_heads"]):
            for cell in range(p["cells"]):
                for beat in range(own_beats):
                    lanes = [min(beat * c.keys_per_beat + k, c.lanes - 1) for k in range(c.keys_per_beat)]
                    ram.append(int.from_bytes(b"".join(data[v, head, n, cell].tobytes() for n in lanes), "little"))
    memory = rng.integers(0, 256, (p["beats"], c.beat_bytes), np.uint8)
    want = memory.copy()
    place(c, p, want, data, scales)
    names = ("cells", "kv_heads", "slot_stride", "head_stride", "k_narrow", "v_narrow")
    job = {name: p[name] for name in names} | {"kv_address": p["address"]}
    dut.parameters__lanes.value = p["lanes"]
    dut.parameters__position.value = sum(x << 16 * i for i, x in enumerate(p["positions"]))
    dut.parameters__slot.value = sum(x << 8 * i for i, x in enumerate(p["slots"]))
    dut.clear.value = 0
    for at in p.get("clears", ()):  # a job that ends after so many cycles, wherever it is; what it has written may stay
        await RisingEdge(dut.clock)
        dut.start.value = 1
        for name, value in job.items():
            getattr(dut, f"job__{name}").value = value
        dut.own__grant.value = dut.own_scales__grant.value = 1
        dut.writes__ready.value = 0  # the first write stands there
        for _ in range(at):
            await RisingEdge(dut.clock)
            dut.start.value = 0
        dut.clear.value = 1
        await RisingEdge(dut.clock)
        dut.clear.value = 0
        await FallingEdge(dut.clock)
        assert not int(dut.busy.value) and not int(dut.writes__valid.value) and not int(dut.done.value), at
    for run in range(2):  # the second time it must find everything as at first
        chance = random.Random(p["seed"] + run)
        await RisingEdge(dut.clock)
        dut.start.value = 1
        for name, value in job.items():
            getattr(dut, f"job__{name}").value = value
        cycles = 0
        while True:
            dut.own__grant.value = int(chance.random() < p["grant"])
            dut.own_scales__grant.value = int(chance.random() < p["grant"])
            dut.writes__ready.value = int(chance.random() < p["take"])
            await FallingEdge(dut.clock)  # all has settled: this is what the next rising edge sees
            word = scale = None
            if int(dut.own__en.value) and int(dut.own__grant.value):
                word = ram[int(dut.own__address.value)]
            if int(dut.own_scales__en.value) and int(dut.own_scales__grant.value):
                at = int(dut.own_scales__v.value), int(dut.own_scales__head.value), int(dut.own_scales__lane.value)
                scale = int(scales[at])
            if int(dut.writes__valid.value) and int(dut.writes__ready.value):
                payload = dut.writes__payload.value.to_unsigned()
                beat = (payload >> 32 & (1 << 8 * c.beat_bytes) - 1).to_bytes(c.beat_bytes, "little")
                strobe = payload >> 32 + 8 * c.beat_bytes
                for j in range(c.beat_bytes):
                    if strobe >> j & 1:
                        memory[payload & 0xFFFF_FFFF, j] = beat[j]
            done = int(dut.done.value)
            await RisingEdge(dut.clock)
            dut.start.value = 0
            for name in job:  # taken with `start`: the next descriptor's stand there by now
                getattr(dut, f"job__{name}").value = chance.getrandbits(1)
            # A value that is not asked for, so that only data taken in their one cycle are right.
            dut.own__data.value = chance.getrandbits(8 * c.beat_bytes) if word is None else word
            dut.own_scales__data.value = chance.getrandbits(32) if scale is None else scale
            if done:
                break
            cycles += 1
            assert cycles < 20_000
        assert np.array_equal(memory, want), np.argwhere(memory != want)[:4]
        assert not int(dut.busy.value)
        if p.get("clears"):
            continue
        if p["grant"] == p["take"] == 1.0:
            expected = KvWriter(c).expected_cycles(
                positions=p["positions"][: p["lanes"]],
                slots=p["slots"][: p["lanes"]],
                kv_heads=p["kv_heads"],
                cells=p["cells"],
            )
            print(f"{cycles} cycles, expected {expected}")
            assert cycles == expected


def job(config: str, lanes: int, first: int, cells: int, kv_heads: int, slots: list[int]) -> dict[str, Any]:
    """What is written where, in caches that lie one behind the other but for odd gaps."""
    c = CONFIGS[config]
    blocks = -(-min(c.max_context, first + lanes) // c.key_block)
    head_stride = blocks * (2 * c.scale_beats + 2 * cells * c.key_tile) + 1
    slot_stride = kv_heads * head_stride + 3
    positions = [min(first + n, c.max_context - 1) for n in range(lanes)]
    # Lanes of another slot may stand anywhere.
    positions = [p if s == slots[0] else n for n, (p, s) in enumerate(zip(positions, slots, strict=True))]
    beats = 5 + (max(slots) + 1) * slot_stride
    return {
        "config": config, "lanes": lanes, "cells": cells, "kv_heads": kv_heads, "address": 5, "beats": beats,
        "slot_stride": slot_stride, "head_stride": head_stride, "positions": positions, "slots": slots,
        "grant": 1.0, "take": 1.0, "seed": 3, "k_narrow": 0, "v_narrow": 0,
    }  # fmt: skip


def run(*jobs: dict[str, Any]) -> None:
    """On one simulator: what it takes to start is most of what a job takes."""
    folder = harness.build(KvWriter(CONFIGS[jobs[0]["config"]]))
    runner.run(folder, __name__, top="tb_top", testcase="check_jobs", parameters={"jobs": jobs})


@pytest.mark.parametrize(
    ("config", "lanes", "first", "cells", "kv_heads", "slots"),
    [
        ("tiny", 4, 30, 2, 3, [0] * 4),  # over the edge of a block
        ("tiny", 3, 254, 4, 1, [2, 2, 0]),
        ("tiny", 1, 0, 2, 1, [0]),
        ("small", 16, 60, 2, 2, [1] * 8 + [3] * 8),
        ("kv260", 16, 120, 4, 5, [0] * 16),
        ("kv260", 1, 4095, 3, 2, [1]),  # the last position
    ],
)
def test_own_keys_and_values_land_in_the_cache(
    config: str, lanes: int, first: int, cells: int, kv_heads: int, slots: list[int]
) -> None:
    """Elements of 8 and of 4 bits; with refused reads and a slow writer, too."""
    one = job(config, lanes, first, cells, kv_heads, slots)
    ways = product([(0, 0), (0, 1), (1, 1)], [(1.0, 1.0), (0.6, 0.4)])
    run(*(one | {"k_narrow": k, "v_narrow": v, "grant": grant, "take": take} for (k, v), (grant, take) in ways))


def test_as_many_heads_as_there_may_be_land_in_the_cache() -> None:
    run(job("tiny", 1, 3, 1, MAX_HEADS, [0]))


def test_a_job_that_a_soft_reset_ends_leaves_nothing_behind() -> None:
    """Ended in every state, with a write that nobody takes; the next job writes what it should, of narrow values too."""
    run(job("tiny", 3, 30, 2, 2, [2] * 3) | {"v_narrow": 1, "clears": [*range(1, 24), 40]})
