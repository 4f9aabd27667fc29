"""What the memory tests share: configurations, and driving the test bench from one coroutine a cycle."""

from __future__ import annotations

from typing import Any

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In
from cocotb.triggers import RisingEdge

from tellme.golden.config import AcceleratorConfig
from tellme.sim.harness import SharedMemory

SMALL = AcceleratorConfig(
    name="small", ports=2, port_bytes=8, fifo_beats=64, burst_beats=8, outstanding=4, max_context=256
)
"""Two ports of 64 bits, short bursts and a FIFO that fills quickly."""

SINGLE = AcceleratorConfig(
    name="single", ports=1, port_bytes=16, fifo_beats=64, burst_beats=2, outstanding=2, max_context=256
)
"""One port, bursts of two beats, two in flight: every counter at its smallest."""

CONFIGS = {c.name: c for c in (SMALL, SINGLE)}


def fill(memory: SharedMemory, seed: int) -> np.ndarray:
    """Random bytes in the whole buffer; returns them as uint8[beats, beat_bytes]."""
    memory.array[:] = np.random.default_rng(seed).integers(0, 256, memory.array.shape, np.uint8)
    return beats_of(memory)


def beats_of(memory: SharedMemory) -> np.ndarray:
    """The buffer as the accelerator sees it: uint8[beats, beat_bytes]."""
    return np.ascontiguousarray(memory.array.transpose(1, 0, 2)).reshape(memory.array.shape[1], -1)


async def start(dut: Any, bases: list[int], window: int, timeout: int = 0) -> None:
    """Sets bases, window and time-out, and waits for the end of reset."""
    dut.base.value = sum(b << 64 * i for i, b in enumerate(bases))
    dut.window_beats.value = window
    dut.timeout.value = timeout
    dut.clear.value = 0
    while True:
        await RisingEdge(dut.clock)
        if not int(dut.reset.value):
            return


async def soft_reset(dut: Any, limit: int = 2000) -> int:
    """Pulses `clear` and waits for `quiet`; returns the cycles it took."""
    dut.clear.value = 1
    await RisingEdge(dut.clock)
    dut.clear.value = 0
    for n in range(limit):
        await RisingEdge(dut.clock)
        if int(dut.quiet.value):
            return n
    raise AssertionError(f"not quiet after {limit} cycles")


def cut(segments: list[tuple[int, int]], burst: int) -> list[tuple[int, int]]:
    """(address, beats) of the bursts that segments need at least: what follows one another is one."""
    runs: list[list[int]] = []
    for address, beats in segments:
        if runs and sum(runs[-1]) == address:
            runs[-1][1] += beats
        elif beats:
            runs.append([address, beats])
    out = []
    for address, beats in runs:
        for low in range(address // burst * burst, address + beats, burst):
            first, end = max(low, address), min(low + burst, address + beats)
            out.append((first, end - first))
    return out


def pass_through(m: Module, inner: wiring.Component, outer: wiring.Component) -> None:
    """Connects what a component has to a component around it that has the same and more."""
    for name, member in inner.signature.members.items():
        here, there = getattr(inner, name), getattr(outer, name)
        if member.is_signature:
            for a, b in zip(here, there, strict=True) if member.dimensions else [(here, there)]:
                wiring.connect(m, a, wiring.flipped(b))
        else:
            m.d.comb += here.eq(there) if member.flow is In else there.eq(here)
