"""TlmmEngine against exact integer products, in many shapes, with stalls, and its rate against expected_cycles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cocotb
import numpy as np
import pytest

from tellme.golden.config import KV260, TINY, ULTRA96V2, AcceleratorConfig
from tellme.golden.ternary import EXPONENT, EXPONENT_STEP, GROUP, LARGEST_SCALE
from tellme.hw.tlmm.engine import expected_cycles
from tellme.sim.runner import parameters
from tests.tlmm.bench import Job, check, play, run

SMALL = replace(TINY, name="small", block_rows=64)
WIDE = (1 << 17, 1 << 15)
CONFIGS: dict[str, AcceleratorConfig] = {
    "tiny": TINY,
    "kv260": KV260,
    "one": replace(SMALL, name="one", lanes=1),
    "g2": replace(SMALL, name="g2", lanes=2, group_size=2),
    "g4": replace(SMALL, name="g4", lanes=2, group_size=4),
    "g5": replace(SMALL, name="g5", lanes=2, group_size=5),
    "grouped": replace(TINY, name="grouped", weight_format="grouped"),
    "grouped-g2": replace(SMALL, name="grouped-g2", lanes=2, group_size=2, weight_format="grouped"),
    "grouped-g5": replace(SMALL, name="grouped-g5", lanes=1, group_size=5, weight_format="grouped"),
    "grouped-wide": replace(KV260, name="grouped-wide", lanes=2, block_rows=64, weight_format="grouped"),
    "grouped-two": replace(ULTRA96V2, name="grouped-two", block_rows=64, weight_format="grouped"),
}


def make(
    config: AcceleratorConfig, rng: np.random.Generator, rows: int, tiles: int, lanes: int, block: int, kind: str
) -> Job:
    k = tiles * config.beat_weights
    w = rng.integers(-1, 2, (rows, k), dtype=np.int8)
    q = rng.integers(-128, 128, (lanes, k), dtype=np.int16).astype(np.int8)
    if kind in ("plus", "minus", "zero"):
        w[:] = {"plus": 1, "minus": -1, "zero": 0}[kind]
    if kind == "saturated":
        q[:] = np.where(rng.random((lanes, k)) < 0.5, -128, 127)
    if kind == "lowest":
        q[:] = -128
        w[: rows // 2] = -1
        w[rows // 2 :] = 1
    if not config.packing.group:
        return Job(w, q, block)
    # Of every kind, groups with the largest scale, with others, and with 0.
    scales = rng.integers(0, LARGEST_SCALE + 1, (rows, k // GROUP))
    if kind in ("lowest", "saturated"):
        scales[:] = LARGEST_SCALE
    exponents = rng.integers(0, EXPONENT // EXPONENT_STEP + 1, (lanes, k // GROUP)) * EXPONENT_STEP
    if kind == "lowest":
        exponents[:] = 0
    return Job((w * np.repeat(scales, GROUP, axis=1)).astype(np.int16), q, block, exponents.astype(np.int8))


KINDS = ("random", "plus", "minus", "zero", "saturated", "lowest")


def grid(config: AcceleratorConfig, seed: int) -> list[Job]:
    """Every number of lanes of interest, tile counts, row counts around the block, and extreme contents."""
    rng = np.random.default_rng(seed)
    block = config.block_rows
    jobs = []
    for lanes in sorted({1, min(3, config.lanes), config.lanes}):
        for tiles in (1, 2, 5):
            for rows in (8, 16, block, block + 8, 2 * block + 24):
                jobs.append(make(config, rng, rows, tiles, lanes, block, KINDS[len(jobs) % len(KINDS)]))
        jobs.append(make(config, rng, 40, 3, lanes, 16, "random"))
        jobs.append(make(config, rng, 72, 2, lanes, 24, "saturated"))
        jobs.append(make(config, rng, 24, 4, lanes, 8, "lowest"))
    for kind in KINDS:
        jobs.append(make(config, rng, 16, 2, config.lanes, block, kind))
    return [jobs[i] for i in rng.permutation(len(jobs))]


@cocotb.test()
async def check_grid(dut: Any) -> None:
    p = parameters()
    config = CONFIGS[p["preset"]]
    jobs = grid(config, p["seed"])
    await check(dut, config, jobs, seed=p["seed"], beats=p["beats"], rows=p["rows"], quantised=p["quantised"])


@pytest.mark.parametrize(
    "beats,rows,quantised", [(256, 256, 256), (128, 256, 256), (256, 40, 256), (256, 256, 60), (200, 100, 128)]
)
def test_engine_is_exact_in_every_shape_and_under_stalls(beats: int, rows: int, quantised: int) -> None:
    run(
        CONFIGS["tiny"],
        __name__,
        "check_grid",
        WIDE,
        preset="tiny",
        seed=7,
        beats=beats,
        rows=rows,
        quantised=quantised,
    )


@pytest.mark.parametrize("config", ["one", "g2", "g4", "g5"])
def test_other_group_sizes_and_one_lane(config: str) -> None:
    run(CONFIGS[config], __name__, "check_grid", WIDE, preset=config, seed=11, beats=240, rows=200, quantised=200)


@pytest.mark.parametrize("config", ["grouped-g2", "grouped-g5", "grouped-wide", "grouped-two"])
def test_group_scales_are_exact_in_beats_and_groups_of_every_size(config: str) -> None:
    run(CONFIGS[config], __name__, "check_grid", WIDE, preset=config, seed=12, beats=240, rows=200, quantised=200)


@pytest.mark.parametrize("beats,rows,quantised", [(256, 256, 256), (256, 40, 60)])
def test_group_scales_are_exact_in_every_shape_and_under_stalls(beats: int, rows: int, quantised: int) -> None:
    p = {"preset": "grouped", "seed": 8, "beats": beats, "rows": rows, "quantised": quantised}
    run(CONFIGS["grouped"], __name__, "check_grid", WIDE, **p)


@pytest.mark.parametrize("config", ["tiny", "g2", "grouped-two"])
def test_tables_of_primitives_are_exact(config: str) -> None:
    p = {"preset": config, "seed": 13, "beats": 230, "rows": 180, "quantised": 180}
    run(CONFIGS[config], __name__, "check_grid", WIDE, form="primitives", **p)


@cocotb.test()
async def check_bad_weight(dut: Any) -> None:
    config = CONFIGS["tiny"]
    rng = np.random.default_rng(3)
    jobs = [make(config, rng, 16, 2, 2, 64, "random") for _ in range(4)]
    jobs[1].bad = (0, 0)
    jobs[2].bad = (31, config.beat_bytes - 1)
    results = await play(dut, config, jobs)
    assert [r.bad for r in results] == [False, True, True, False]


def test_a_byte_that_is_no_code_is_flagged_until_the_next_start() -> None:
    run(CONFIGS["tiny"], __name__, "check_bad_weight", WIDE)


@cocotb.test()
async def check_cycles(dut: Any) -> None:
    name = parameters()["preset"]
    config = CONFIGS[name]
    rng = np.random.default_rng(5)
    shapes = [
        (tiles, rows, block, lanes)
        for lanes in sorted({1, config.lanes})
        for tiles in (1, 2, 7)
        for rows, block in ((8, 64), (16, 8), (64, 64), (72, 64), (280, 64), (64, 32))
    ]
    jobs = [make(config, rng, r, t, n, b, "random") for t, r, b, n in shapes]
    results = await check(dut, config, jobs)
    for (t, r, b, n), result in zip(shapes, results, strict=True):
        e = expected_cycles(config, tiles=t, rows=r, block_rows=b, lanes=n)
        print(f"tiles {t} rows {r} block {b} lanes {n}: {result.cycles} cycles, expected {e}")
        assert result.cycles == e, (t, r, b, n)


@pytest.mark.parametrize("config", ["tiny", "g2", "g4", "g5"])
def test_expected_cycles_is_exact(config: str) -> None:
    run(CONFIGS[config], __name__, "check_cycles", WIDE, preset=config)


@cocotb.test()
async def check_rate(dut: Any) -> None:
    config = KV260
    rng = np.random.default_rng(9)
    jobs = [
        make(config, rng, 2560, 22, config.lanes, config.block_rows, "random"),
        make(config, rng, 6912, 8, config.lanes, config.block_rows, "random"),
        make(config, rng, 2560, 8, 1, config.block_rows, "saturated"),
    ]
    for job, result in zip(jobs, await check(dut, config, jobs), strict=True):
        lanes, k = job.q.shape
        e = expected_cycles(config, tiles=k // 320, rows=len(job.weights), block_rows=512, lanes=lanes)
        print(f"{job.weights.shape} lanes {lanes}: {result.taken} beats in {result.cycles} cycles, expected {e}")
        assert result.taken >= 0.98 * result.cycles
        assert result.cycles == e


def test_a_beat_a_cycle_at_real_shapes() -> None:
    run(KV260, __name__, "check_rate", (1 << 18, 1 << 15))
