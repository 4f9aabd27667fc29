"""Analysis of the weight buffer: when the engines ask for beats, what the memory gives, and how deep the FIFO between
them must be. From a model's shape, a configuration and a board's memory timing; nothing is simulated.

A pass is a list of steps: in each, the engines take some beats in at least so many cycles. The memory fills the FIFO at
its sustained rate whatever the engines do. So a step without beats (a quantiser's lead, a drain) fills the FIFO, and a step
that takes a beat a cycle empties it by what the memory lacks. What a step waits for beats is a memory stall; the cycles of a
step beyond its beats are stalls of the engine named as its cause.
"""

from __future__ import annotations

from dataclasses import dataclass

from golden.config import AcceleratorConfig
from sim.timing import MemoryTiming

URAM_DEPTH, URAM_BITS = 4096, 72
"""Geometry of a URAM288 (UG573)."""


@dataclass(frozen=True)
class Step:
    """`beats` that the engines take in `cycles` cycles at least; `cause` of the cycles beyond the beats."""

    name: str
    cause: str
    cycles: int
    beats: int


@dataclass(frozen=True)
class Prediction:
    """A pass as predicted.

    Attributes
    ----------
    cycles, beats : of the pass.
    stalls : cycles without a beat, by cause (`golden.registers.STALLS`).
    """

    cycles: int
    beats: int
    stalls: dict[str, int]


def sustained_rate(timing: MemoryTiming, config: AcceleratorConfig) -> float:
    """Beats a cycle that the memory gives in the long run: the least of the ports' rates, at most 1."""
    port = config.port_bytes
    rate = 1.0
    if timing.bandwidth:
        rate = min(rate, timing.bandwidth / config.beat_bytes)
    for ports, bytes_a_cycle in timing.shared:
        here = sum(p < config.ports for p in ports)
        if here:
            rate = min(rate, bytes_a_cycle / (here * port))
    if timing.pause:
        rate *= 1 - timing.pause / timing.period
    bursts = min(timing.outstanding, config.outstanding)
    # What is in flight covers the latency, and the pause that may fall into it.
    return min(rate, bursts * config.burst_beats / (timing.latency + timing.jitter / 2 + ROUND_TRIP))


ROUND_TRIP = 8
"""Cycles of a burst besides the memory's latency: address and data registers of reader and memory."""


def uram_count(config: AcceleratorConfig, depth: int | None = None) -> int:
    """URAM288 of the stream FIFOs at a depth in beats (`fifo_beats` if None)."""
    d = config.fifo_beats if depth is None else depth
    return config.ports * -(-config.port_bytes * 8 // URAM_BITS) * -(-d // URAM_DEPTH)
