"""Streams against the DRAM model alone: what each port gets of the memory when nothing computes. Milliseconds a run.

The model is that of the simulated memory (sim/dram.hpp), so what is found here about placement and bursts holds there.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellme.golden.boards import phases as board_phases
from tellme.golden.config import AcceleratorConfig
from tellme.hw.memory.reader import LEAD
from tellme.sim import runner
from tellme.sim.timing import MemoryTiming, dram_settings

HERE = Path(__file__).parent
ROW_BYTES = 1 << 26
"""Distance of the ports' regions: other rows everywhere, and the same bank unless their phases differ."""
COMMANDS = ("read", "write", "activate", "precharge", "refresh")
LIMIT = 1 << 26
"""Cycles after which a run is given up."""
TURNAROUND = 19
"""Cycles besides the latency after which a burst makes room for another one, counted from its address."""


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(runner.library([HERE / "stream.cpp"])))
    u64, integer = ctypes.POINTER(ctypes.c_uint64), ctypes.POINTER(ctypes.c_int)
    library.tellme_stream.argtypes = [
        ctypes.c_char_p, ctypes.c_int, u64, u64, integer, u64, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64,
        ctypes.c_uint64, ctypes.c_uint64, u64, u64, u64,
    ]  # fmt: skip
    return library


@dataclass(frozen=True)
class Streams:
    """What came of a run.

    Attributes
    ----------
    clock_hz : of the ports.
    length : bytes of each port.
    finished : cycles until each port's last beat (a write's last response), from the start of the run.
    commands : uint64[n, 4]: clock of the controller, index into COMMANDS, bank, row of each command to the DRAM; n is 0
        unless they were asked for.
    """

    clock_hz: float
    length: tuple[int, ...]
    finished: tuple[int, ...]
    commands: NDArray[np.uint64]

    @property
    def rates(self) -> tuple[float, ...]:
        """Bytes/s of each port over its own time, which for a slow one goes on when others have finished."""
        return tuple(n * self.clock_hz / c for n, c in zip(self.length, self.finished, strict=True))


def run(
    timing: MemoryTiming,
    phases: Sequence[int],
    *,
    clock_hz: float = 250e6,
    length: int | Sequence[int] = 1 << 20,
    burst: int = 1024,
    width: int = 16,
    writes: Sequence[int] = (),
    starts: Sequence[int] = (),
    fifo: int = 0,
    ahead: int = 0,
    commands: bool = False,
) -> Streams:
    """Runs a stream on each port.

    Parameters
    ----------
    timing : with a `dram`.
    phases : bytes from the beginning of each port's region to a place where all would be in the same bank.
    clock_hz : of the ports. width : bytes of a port.
    length : bytes of all or of each port. burst : bytes of a burst; bursts begin at its multiples.
    writes : the ports that write; the others read.
    starts : first cycle of each port; 0 if not given.
    fifo : bytes of the FIFO behind a reading port, for a machine that takes the beats of all of them together: what a port has
        asked for keeps its place until all have that beat. 0: each port is on its own.
    ahead : bursts that a reading port may be ahead of the last one (hw.memory.reader.LEAD), 0: any number.
    commands : write down what the DRAM is told.

    Raises
    ------
    ValueError : the timing has no DRAM or is wrong, there are too many ports, or the run does not end.
    """
    if timing.dram is None:
        raise ValueError(f"memory timing {timing.name!r} has no DRAM")
    n = len(phases)
    if not 1 <= n <= len(timing.dram.ports):
        raise ValueError(f"memory timing {timing.name!r} has {len(timing.dram.ports)} ports, {n} were asked for")
    lengths = tuple([length] * n if isinstance(length, int) else length)
    if len(lengths) != n or min(lengths) < width or any(x % width for x in (*lengths, *phases, burst)):
        raise ValueError(f"phases, lengths and bursts must be whole beats of {width} bytes, a length for each port")

    def array(values: Sequence[int]) -> ctypes.Array[ctypes.c_uint64]:
        return (ctypes.c_uint64 * len(values))(*values)

    finished = array([0] * n)
    kinds = (ctypes.c_int * n)(*(int(i in writes) for i in range(n)))
    room = 4 * (sum(lengths) // timing.dram.block + 1024) if commands else 0
    log, logged = np.zeros((room, 4), np.uint64), ctypes.c_uint64(room)
    code = _library().tellme_stream(
        dram_settings(timing.dram, clock_hz).encode(),
        n,
        array([i * ROW_BYTES + p for i, p in enumerate(phases)]),
        array(lengths),
        kinds,
        array([*starts, *[0] * n][:n]),
        burst,
        width,
        fifo,
        ahead,
        LIMIT,
        finished,
        log.ctypes.data_as(ctypes.POINTER(ctypes.c_uint64)) if commands else None,
        ctypes.byref(logged) if commands else None,
    )
    if code:
        raise ValueError(("the DRAM's settings are wrong", f"no end after {LIMIT} cycles")[code - 1])
    return Streams(clock_hz, lengths, tuple(finished), log[: min(room, logged.value)])


@lru_cache(maxsize=4096)
def sustained_rate(
    timing: MemoryTiming,
    phases: tuple[int, ...],
    *,
    clock_hz: float = 250e6,
    burst: int = 1024,
    width: int = 16,
    fifo: int = 1 << 17,
    ahead: int = LEAD,
    length: int = 1 << 20,
) -> float:
    """Bytes/s of all ports together when their beats are used together: the number of ports times the slowest's rate.

    Parameters as in `run`, with FIFOs and lead of the reader (hw/memory/reader.py).
    """
    r = run(timing, phases, clock_hz=clock_hz, length=length, burst=burst, width=width, fifo=fifo, ahead=ahead)
    return len(phases) * min(r.rates)


@dataclass(frozen=True)
class SustainedMemory:
    """What a memory gives an accelerator in the long run, for `hw.plan`.

    Parameters
    ----------
    timing : of the memory.
    regions : with a DRAM, the byte at which each port's region begins, modulo its banks; the board's phases if None.
    """

    timing: MemoryTiming
    regions: tuple[int, ...] | None = None

    def latency(self, config: AcceleratorConfig) -> float:
        """Cycles from a read's address to its first beat, on average, in an idle memory."""
        return self.timing.read_latency(config.clock_hz)

    def rate(self, config: AcceleratorConfig, burst: float | None = None, *, length: int = 1 << 21) -> float:
        """Beats a cycle: the least of the ports' rates, at most 1; bursts of `burst_beats` if None. With a DRAM, over `length`
        bytes a port."""
        timing, regions = self.timing, self.regions
        rate = 1.0
        if timing.dram is not None:
            d = replace(timing.dram, bursts=min(timing.dram.bursts, config.outstanding))
            bytes_a_second = sustained_rate(
                replace(timing, dram=d),
                tuple(regions or board_phases(config) or [0] * config.ports),
                clock_hz=config.clock_hz,
                burst=max(1, round(config.burst_beats if burst is None else burst)) * config.port_bytes,
                width=config.port_bytes,
                fifo=config.fifo_beats * config.port_bytes,
                ahead=LEAD if config.ports > 1 else 0,
                length=length,
            )
            return min(rate, bytes_a_second / (config.beat_bytes * config.clock_hz))
        if timing.bandwidth:
            rate = min(rate, timing.bandwidth / config.beat_bytes)
        for ports, bytes_a_cycle in timing.shared:
            here = sum(p < config.ports for p in ports)
            if here:
                rate = min(rate, bytes_a_cycle / (here * config.port_bytes))
        # What is asked for ahead must cover the latency, and there must be room for it in the FIFO.
        flying = min(timing.outstanding, config.outstanding) * (config.burst_beats if burst is None else burst)
        rate = min(rate, min(flying, config.fifo_beats) / (timing.latency + timing.jitter / 2 + TURNAROUND))
        return rate * (1 - timing.pause / timing.period if timing.pause else 1)


def best_phases(
    timing: MemoryTiming,
    ports: int,
    *,
    clock_hz: float = 250e6,
    burst: int = 1024,
    width: int = 16,
    coarse: int = 8192,
    fine: int = 2048,
) -> tuple[tuple[int, ...], float]:
    """Where the ports' regions should begin: phases in bytes (the first is 0), and what they give, bytes/s of all ports.

    All ports run together, as the reader keeps them in step. All multiples of `coarse` are tried, then neighbours of the best at distances down to `fine`. Of placements that
    are equally good within 0.2 %, the one whose neighbours are best is taken.

    Raises
    ------
    ValueError : as `run`.
    """
    if timing.dram is None:
        raise ValueError(f"memory timing {timing.name!r} has no DRAM")
    period = 1 << timing.dram.row_low

    def rate(phases: tuple[int, ...]) -> float:
        return sustained_rate(timing, phases, clock_hz=clock_hz, burst=burst, width=width, length=8 * period)

    def neighbours(phases: tuple[int, ...], step: int) -> list[tuple[int, ...]]:
        return [
            (*phases[:i], (phases[i] + d) % period, *phases[i + 1 :]) for i in range(1, ports) for d in (-step, step)
        ]

    def robust(phases: tuple[int, ...]) -> float:
        return min(rate(p) for p in (phases, *neighbours(phases, fine)))

    candidates = [(0, *rest) for rest in product(range(0, period, coarse), repeat=ports - 1)]
    best = max(candidates, key=rate)
    step = coarse // 2
    while step >= fine:
        best = max((best, *neighbours(best, step)), key=rate)
        step //= 2
    good = [p for p in {best, *candidates} if rate(p) >= 0.998 * rate(best)]
    chosen = max(sorted(good), key=robust)
    return chosen, rate(chosen)
