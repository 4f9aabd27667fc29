"""The whole element-wise pipeline against golden: layers of a model, black box, bit for bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cocotb
import numpy as np
import pytest

from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.program import Kind
from tellme.hw.elementwise import Elementwise
from tellme.sim.runner import parameters, simulate
from tests.elementwise.bench import Bench

GROUPED = replace(TINY, name="grouped", weight_format="grouped")
LARGE = replace(TINY, name="large-heads", max_hidden=1024, max_features=2048, max_kv_dim=512, max_head_dim=256)
HADAMARD = replace(TINY, name="hadamard", hadamard=True)
TURNED = [HADAMARD, replace(GROUPED, name="grouped-hadamard", hadamard=True)]
CONFIGS = {c.name: c for c in (KV260, TINY, GROUPED, LARGE, *TURNED)}


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
    values: str = "mixed",
    gate_scale: float = 0.02,
    qk_norm: bool = False,
    eps: float = 1e-5,
    narrow: tuple[int, int] = (0, 0),
    turn: bool = False,
) -> None:
    """LOAD, then a layer and a head: every job, in the order of a program."""
    rng = bench.rng
    h, kv, dim = heads

    def gains(n: int) -> Any:
        return rng.normal(1, 0.3, n).astype(np.float32) if gain else None

    def acc(rows: int) -> Any:
        top = 1 << bench.config.row_width - 1
        a = rng.integers(-4000, 4000, (bench.lanes, rows))
        a[rng.random(a.shape) < 0.02] = 0
        a[rng.random(a.shape) < 0.01] = top - 1
        a[rng.random(a.shape) < 0.01] = -top
        return {"mixed": a, "zero": 0 * a, "largest": np.where(a < 0, -top, top - 1)}[values]

    x = rng.normal(0, 1, (bench.lanes, hidden)).astype(np.float32) * np.float32(values != "zero")
    if bench.config.packing.group:  # groups of every exponent
        x *= np.repeat(2.0 ** -rng.integers(0, 9, (bench.lanes, hidden // 32)), 32, axis=1).astype(np.float32)
    angle = rng.uniform(0, 7, (bench.lanes, dim // 2))
    await bench.load(x, gains(hidden), np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32))
    scales = (0.01, 0.02, 0.03)
    of_heads = rng.normal(1, 0.5, 2 * dim).astype(np.float32) if qk_norm else None
    rows = acc((h + 2 * kv) * dim)
    made = await bench.linear(
        Kind.QKV, rows, scales, norm=norm, eps=eps, gain=of_heads, heads=heads, q_scale=0.3, narrow=narrow, turn=turn
    )
    await bench.check_heads(made, heads, 0.3, eps, narrow, turn)
    out = rng.normal(0, 1, (bench.lanes, h * dim)).astype(np.float32) * np.float32(values != "zero")
    await bench.attention(out, heads, gains(h * dim))
    await bench.linear(Kind.RESIDUAL, acc(hidden), (0.02, 0, 0), norm=norm, gain=gains(hidden))
    await bench.linear(gate, acc(2 * ffn), (gate_scale, 0.01, 0), norm=norm, gain=gains(ffn))
    await bench.linear(Kind.RESIDUAL, acc(hidden), (0.001, 0, 0), norm=norm, gain=gains(hidden))
    # What a HEAD does: quantise only.
    await bench.linear(Kind.RESIDUAL, acc(hidden), (0.5, 0, 0), norm=norm, head=True)


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


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=lambda c: c.name)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_layers_equal_golden_with_any_lanes_gates_gains_and_norms(stall: float, config: AcceleratorConfig) -> None:
    cases = [
        dict(lanes=4, hidden=256, ffn=352, heads=[4, 2, 64], gate=SILU, norm=True, gain=True),
        dict(lanes=1, hidden=64, ffn=100, heads=[1, 1, 32], gate=RELU2, norm=True, gain=False),
        dict(lanes=3, hidden=96, ffn=40, heads=[2, 1, 96], gate=SILU, norm=False, gain=True),
        dict(lanes=2, hidden=160, ffn=12, heads=[2, 2, 128], gate=RELU2, norm=False, gain=False),
        dict(lanes=4, hidden=64, ffn=12, heads=[4, 2, 64], gate=SILU, norm=True, gain=True, narrow=[0, 1]),
        dict(lanes=3, hidden=64, ffn=12, heads=[2, 2, 32], gate=RELU2, norm=False, gain=False, narrow=[1, 1]),
    ]
    run(config, "check_layers", seed=1, stall=stall, cases=cases)


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=lambda c: c.name)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_normalised_heads_equal_golden(stall: float, config: AcceleratorConfig) -> None:
    """QK-norm beside normalised and other inputs, of zeros (epsilon alone), of sums that overflow, and between layers without."""
    silu = dict(hidden=64, ffn=36, gate=SILU, gain=True, qk_norm=True)
    cases = [
        dict(silu, lanes=4, heads=[4, 2, 64], norm=True),
        dict(silu, lanes=1, heads=[3, 1, 32], norm=False),
        dict(silu, lanes=3, heads=[2, 1, 96], norm=True, eps=0.3),
        dict(silu, lanes=2, heads=[2, 2, 128], norm=True, values="zero"),
        dict(silu, lanes=2, heads=[2, 2, 128], norm=True, qk_norm=False),
        dict(silu, lanes=2, heads=[4, 2, 32], norm=True, values="largest"),
    ]
    run(config, "check_layers", seed=4, stall=stall, cases=cases)


@pytest.mark.parametrize("config", TURNED, ids=lambda c: c.name)
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_turned_heads_equal_golden(stall: float, config: AcceleratorConfig) -> None:
    """Heads that pass the Hadamard transform, of every cache, with and without QK-norm, of the edges; and heads that do not, between."""
    silu = dict(hidden=64, ffn=36, gate=SILU, gain=True, norm=True)
    cases = [
        dict(silu, lanes=4, heads=[4, 2, 64], turn=True),
        dict(silu, lanes=1, heads=[1, 1, 32], turn=True, narrow=[1, 1]),
        dict(silu, lanes=4, heads=[3, 1, 32]),
        dict(silu, lanes=3, heads=[2, 1, 96], turn=True, narrow=[0, 1], qk_norm=True, eps=0.3),
        dict(silu, lanes=2, heads=[2, 2, 128], narrow=[1, 1], qk_norm=True),
        dict(silu, lanes=2, heads=[2, 2, 128], turn=True, values="zero"),
        dict(silu, lanes=4, heads=[4, 2, 32], turn=True, values="largest", narrow=[1, 1], qk_norm=True),
        dict(silu, lanes=2, heads=[4, 2, 64], turn=True, values="largest"),
    ]
    run(config, "check_layers", seed=6, stall=stall, cases=cases)


def test_heads_of_256_equal_golden() -> None:
    """64 words of a head; and a residual stream as wide as there is room, with tiles that reach beyond it."""
    silu = dict(gate=SILU, norm=True, gain=True)
    cases = [
        dict(silu, lanes=2, hidden=64, ffn=36, heads=[2, 1, 256]),
        dict(silu, lanes=3, hidden=64, ffn=36, heads=[4, 2, 256], qk_norm=True),
        dict(silu, lanes=1, hidden=1024, ffn=2048, heads=[1, 1, 192], qk_norm=True),
    ]
    run(LARGE, "check_layers", seed=5, stall=0.0, cases=cases)


@pytest.mark.parametrize("config", [TINY, GROUPED], ids=lambda c: c.name)
def test_edges_equal_golden(config: AcceleratorConfig) -> None:
    """All zeros (the absolute maximum's lower bound), saturated accumulators, gates at which exp clamps, a tile to the
    end of the buffer, the largest QKV matrix."""
    silu = dict(lanes=2, hidden=64, gate=SILU, norm=True, gain=True, heads=[2, 1, 32])
    cases = [
        dict(silu, ffn=36, values="zero"),
        dict(silu, ffn=36, values="largest"),
        dict(silu, ffn=36, values="zero", narrow=[1, 1]),
        dict(silu, ffn=36, values="largest", narrow=[1, 1]),
        dict(silu, ffn=36, gate=RELU2, values="largest"),
        dict(silu, ffn=100, gate_scale=20.0),
        dict(silu, ffn=1024, lanes=4, hidden=256),
        dict(silu, ffn=8, lanes=4, heads=[4, 2, 128]),
    ]
    run(config, "check_layers", seed=2, stall=0.1, cases=cases)


@cocotb.test()
async def check_cycles(dut: Any) -> None:
    p = parameters()
    config = CONFIGS[p["config"]]
    bench = Bench(dut, config, np.random.default_rng(1))
    await bench.start()
    for kind, lanes, n, heads, head_norm in p["grid"]:
        rows = (heads[0] + 2 * heads[1]) * heads[2] if kind == Kind.QKV else n
        bench.lanes = lanes
        quantise, epilogue = await bench.timed(Kind(kind), rows=rows, heads=tuple(heads), n=n, gain_out=head_norm)
        tiles = -(-n // config.beat_weights)
        want = Elementwise.expected_quantise_cycles(config, tiles=tiles, lanes=lanes)
        case = f"kind {kind}, lanes {lanes}, n {n}, heads {heads}, head_norm {head_norm}"
        assert quantise == want, f"quantise, {case}: {quantise} cycles, expected {want}"
        want = Elementwise.expected_epilogue_cycles(
            config, kind=Kind(kind), rows=rows, lanes=lanes, head_dim=heads[2], head_norm=head_norm
        )
        assert epilogue == want, f"epilogue, {case}: {epilogue} cycles, expected {want}"


@pytest.mark.parametrize("config", [TINY, HADAMARD], ids=lambda c: c.name)
def test_cycles_are_as_expected(config: AcceleratorConfig) -> None:
    grid = [
        (int(kind), lanes, n, heads, head_norm)
        for kind in Kind
        for head_norm in ((False, True) if kind == Kind.QKV else (False,))
        for lanes in (1, 2, 3, 4)
        for n, heads in ((64, [1, 1, 32]), (256, [4, 2, 64]), (96, [2, 2, 96]))
    ]
    run(config, "check_cycles", grid=grid)


def test_layers_equal_golden_at_full_width() -> None:
    cases = [
        dict(lanes=16, hidden=320, ffn=336, heads=[4, 2, 96], gate=SILU, norm=True, gain=True),
        dict(lanes=1, hidden=96, ffn=64, heads=[2, 1, 128], gate=RELU2, norm=True, gain=True, qk_norm=True),
        dict(lanes=5, hidden=64, ffn=32, heads=[2, 2, 32], gate=RELU2, norm=False, gain=False),
    ]
    run(KV260, "check_layers", seed=3, stall=0.1, cases=cases)
