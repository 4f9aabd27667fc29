"""The Hadamard unit against golden, head by head, bit for bit, in every width of words and with pauses between heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cocotb
import numpy as np
import pytest
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

from tellme.golden import fp, hadamard
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.hw.elementwise.hadamard import Hadamard, head_layout
from tellme.hw.elementwise.scales import scale_tag
from tellme.sim.runner import parameters, simulate
from tests.elementwise.bench import pack, same

HALF = replace(TINY, name="half", ports=2)
LARGE = replace(TINY, name="large-heads", max_hidden=1024, max_features=2048, max_kv_dim=512, max_head_dim=256)
CONFIGS = {c.name: replace(c, hadamard=True) for c in (LARGE, HALF, KV260)}
VALUES = ("mixed", "largest", "alike", "zero", "few", "spike")


def features(rng: np.random.Generator, values: str, dim: int) -> Any:
    """A head's integers: also such as bring sums to their limits, and heads below the smallest maximum."""
    top = hadamard.WIDE
    if values == "largest":
        return rng.choice([-top - 1, top], dim)
    if values == "alike":  # every sum but one is 0, which is the largest there is
        return np.full(dim, rng.choice([-top - 1, top]))
    if values == "spike":
        return np.where(np.arange(dim) == rng.integers(dim), rng.choice([-top, top]), 0)
    return (
        rng.integers(-1, 2, dim) * {"zero": 0, "few": 3}.get(values, 1)
        if values != "mixed"
        else rng.integers(-top, top + 1, dim)
    )


def heads(rng: np.random.Generator, config: AcceleratorConfig, count: int) -> Iterator[dict[str, Any]]:
    dims = [d for d in range(32, config.max_head_dim + 1, 32)]
    for i in range(count):
        dim = int(rng.choice(dims)) if i % 20 > 9 else (dims[0], dims[-1])[i // 20 % 2]  # also many of one size
        turn = int(rng.random() < 0.7)
        x = features(rng, str(rng.choice(VALUES)), dim) if turn else rng.integers(-127, 128, dim)
        yield {
            "x": x, "turn": turn, "narrow": int(rng.integers(2)), "target": int(rng.integers(1, 4)), "head": int(rng.integers(200)),
            "lane": int(rng.integers(config.lanes)), "scale": np.float32(rng.lognormal(-5, 3)), "pause": int(rng.integers(4) * (rng.random() < 0.3)),
        }  # fmt: skip


@cocotb.test()
async def check_heads(dut: Any) -> None:
    p = parameters()
    config, rng = CONFIGS[p["config"]], np.random.default_rng(p["seed"])
    size, layout = config.word, head_layout(config)
    todo = list(heads(rng, config, p["count"]))
    cocotb.start_soon(Clock(dut.clk, 10, unit="ns").start())
    dut.valid.value, dut.first.value, dut.last.value, dut.place.value = 0, 0, 0, 0
    dut.rst.value = 1
    for _ in range(3):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    sent: list[int] = []  # cycles of words
    words: dict[int, int] = {}
    scales: list[tuple[int, int, int, int]] = []
    cycle = 0

    async def step() -> None:
        nonlocal cycle
        await RisingEdge(dut.clk)
        words[cycle] = int(dut.o.value) if dut.o.value.is_resolvable else -1
        if int(dut.scaled.value):
            tag = scale_tag(config).from_bits(int(dut.tag.value))
            scales.append((tag.target, tag.head, tag.lane, int(dut.scale.value)))
        cycle += 1

    for h in todo:
        for _ in range(h["pause"]):
            await step()
        count = len(h["x"]) // size
        fields = {k: h[k] for k in ("turn", "narrow", "target", "head", "lane")} | {"scale": int(fp.bits(h["scale"]))}
        dut.head.value = layout.const(fields).as_bits()
        for w in range(count):
            dut.valid.value, dut.first.value, dut.last.value = 1, w == 0, w == count - 1
            dut.place.value = w % (hadamard.BLOCK // size)
            dut.x.value = pack(h["x"][w * size : (w + 1) * size], hadamard.WIDE_BITS)
            sent.append(cycle)
            await step()
        dut.valid.value, dut.place.value = 0, int(rng.integers(hadamard.BLOCK // size))
    for _ in range(Hadamard.delay(config) + 3):
        await step()

    at = 0
    for i, h in enumerate(todo):
        count = len(h["x"]) // size
        most = 7 if h["narrow"] else 127
        q, scale = h["x"].astype(np.int8), h["scale"]
        if h["turn"]:
            q, scale = hadamard.requantise(hadamard.transform(h["x"]), h["scale"], most)
            assert np.abs(q.astype(int)).max() <= most
        raw = [words[sent[n] + Hadamard.delay(config)].to_bytes(size, "little") for n in range(at, at + count)]
        same(f"head {i}", np.frombuffer(b"".join(raw), np.int8), q)
        assert scales[i] == (h["target"], h["head"], h["lane"], int(fp.bits(scale))), f"scale of head {i}"
        at += count
    assert len(scales) == len(todo)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=lambda c: c.name)
def test_heads_equal_golden(config: AcceleratorConfig) -> None:
    simulate(
        Hadamard(config), __name__, testcase="check_heads", parameters={"config": config.name, "seed": 3, "count": 200}
    )
