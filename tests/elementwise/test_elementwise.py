"""The whole element-wise pipeline against golden: layers of a model, black box, bit for bit."""

from __future__ import annotations

from typing import Any

import cocotb
import numpy as np
import pytest

from golden.config import KV260, TINY
from golden.program import Kind
from hw.elementwise import Elementwise
from sim.runner import parameters, simulate
from tests.elementwise.bench import Bench

CONFIGS = {c.name: c for c in (KV260, TINY)}


def run(config: Any, testcase: str, **params: Any) -> None:
    simulate(
        Elementwise(config), __name__, testcase=testcase, parameters={"config": config.name, **params}, name=testcase
    )


async def layer(
    bench: Bench,
    *,
    hidden: int,
    ffn: int,
    heads: tuple[int, int, int],
    gate: Kind,
    norm: bool,
    gain: bool,
) -> None:
    """LOAD, then a layer and a head: every job, in the order of a program."""
    rng = bench.rng
    h, kv, dim = heads

    def gains(n: int) -> Any:
        return rng.normal(1, 0.3, n).astype(np.float32) if gain else None

    def acc(rows: int) -> Any:
        a = rng.integers(-4000, 4000, (bench.lanes, rows))
        a[rng.random(a.shape) < 0.02] = 0
        a[rng.random(a.shape) < 0.01] = (1 << bench.config.row_width - 1) - 1
        a[rng.random(a.shape) < 0.01] = -(1 << bench.config.row_width - 1)
        return a

    x = rng.normal(0, 1, (bench.lanes, hidden)).astype(np.float32)
    angle = rng.uniform(0, 7, (bench.lanes, dim // 2))
    await bench.load(x, gains(hidden), np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
    scales = (0.01, 0.02, 0.03)
    y = await bench.linear(Kind.QKV, acc((h + 2 * kv) * dim), scales, norm=norm, heads=heads, q_scale=0.3)
    await bench.check_heads(y, heads, 0.3)
    await bench.attention(rng.normal(0, 1, (bench.lanes, h * dim)).astype(np.float32), heads, gains(h * dim))
    await bench.linear(Kind.RESIDUAL, acc(hidden), (0.02, 0, 0), norm=norm, gain=gains(hidden))
    await bench.linear(gate, acc(2 * ffn), (0.02, 0.01, 0), norm=norm, gain=gains(ffn))
    await bench.linear(Kind.RESIDUAL, acc(hidden), (0.001, 0, 0), norm=norm, gain=gains(hidden))
    # What a HEAD does: quantise only.
    await bench.linear(Kind.RESIDUAL, acc(hidden), (0.5, 0, 0), norm=norm)


@cocotb.test()
async def check_layers(dut: Any) -> None:
    p = parameters()
    config = CONFIGS[p["config"]]
    bench = Bench(dut, config, np.random.default_rng(p["seed"]), stall=p["stall"])
    await bench.start()
    for case in p["cases"]:
        bench.lanes = case.pop("lanes")
        case["gate"] = Kind(case["gate"])
        await layer(bench, **case)


SILU, RELU2 = int(Kind.GATE_SILU), int(Kind.GATE_RELU2)


@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_layers_equal_golden_with_any_lanes_gates_gains_and_norms(stall: float) -> None:
    cases = [
        dict(lanes=4, hidden=256, ffn=352, heads=[4, 2, 64], gate=SILU, norm=True, gain=True),
        dict(lanes=1, hidden=64, ffn=100, heads=[1, 1, 32], gate=RELU2, norm=True, gain=False),
        dict(lanes=3, hidden=96, ffn=40, heads=[2, 1, 96], gate=SILU, norm=False, gain=True),
        dict(lanes=2, hidden=160, ffn=12, heads=[2, 2, 128], gate=RELU2, norm=False, gain=False),
    ]
    run(TINY, "check_layers", seed=1, stall=stall, cases=cases)
