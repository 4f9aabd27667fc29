"""The TLMM self-test: what an FPGA without a processor computes by itself, and the checksum it must arrive at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tellme.golden import ternary
from tellme.golden.config import AcceleratorConfig
from tellme.golden.layout import pack_linear

SELFTEST = AcceleratorConfig(
    name="selftest",
    ports=2,
    port_bytes=8,
    lanes=1,
    block_rows=64,
    attention_lanes=1,
    key_tile=16,
    max_hidden=128,
    max_features=256,
    max_kv_dim=32,
    max_heads=1,
    max_head_dim=32,
    max_context=32,
    score_words=64,
    fifo_beats=64,
    burst_beats=16,
    max_descriptors=16,
    clock_hz=80_000_000,
)
"""The engine of the self-test: a 16-byte beat, two lanes."""

SEED = 1


@dataclass(frozen=True)
class Job:
    """A matrix and the activations it is multiplied with.

    Parameters
    ----------
    weights : int8[rows, K] of -1, 0, 1; K whole tiles of config.beat_weights, rows a multiple of 8.
    activations : int8[lanes, K].
    block_rows : rows of a row block.
    """

    weights: NDArray[np.int8]
    activations: NDArray[np.int8]
    block_rows: int

    def tiles(self, config: AcceleratorConfig) -> int:
        return self.weights.shape[1] // config.beat_weights

    def beats(self, config: AcceleratorConfig) -> NDArray[np.uint8]:
        """uint8[beats, beat_bytes] in the order the engine reads."""
        return pack_linear(self.weights, config, self.block_rows)

    def results(self, config: AcceleratorConfig) -> NDArray[np.int64]:
        """int64[rows, config.lanes]: accumulators as they leave the engine, 0 in idle lanes."""
        out = np.zeros((len(self.weights), config.lanes), np.int64)
        out[:, : len(self.activations)] = ternary.linear(self.weights, self.activations).T
        return out


def jobs(config: AcceleratorConfig, seed: int = SEED) -> list[Job]:
    """The jobs of the self-test: several row blocks with every lane, a single tile with one lane, and the extremes."""
    rng = np.random.default_rng(seed)
    block, tiles = config.block_rows, config.max_features // config.beat_weights
    out = []
    for rows, k, lanes in ((block + 8, tiles, config.lanes), (24, 1, 1), (16, tiles, config.lanes)):
        w = rng.integers(-1, 2, (rows, k * config.beat_weights), dtype=np.int8)
        q = rng.integers(-128, 128, (lanes, k * config.beat_weights), dtype=np.int16).astype(np.int8)
        out.append(Job(w, q, block))
    # The largest accumulators there are.
    out[-1].activations[:] = -128
    out[-1].weights[:8], out[-1].weights[8:] = -1, 1
    return out


def checksum(accumulators: Sequence[NDArray[np.int64]]) -> int:
    """Fletcher's checksum of accumulators in the order row, lane: `a += acc; b += a`, both modulo 2^32; `b << 32 | a`."""
    values = np.concatenate([x.reshape(-1) for x in accumulators])
    a = np.cumsum(values)
    low, high = int(a[-1]) % (1 << 32), sum(map(int, a)) % (1 << 32)
    return high << 32 | low


def expected(config: AcceleratorConfig, work: Sequence[Job]) -> int:
    """Checksum of the results of `work`."""
    return checksum([j.results(config) for j in work])
