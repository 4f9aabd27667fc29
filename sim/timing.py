"""Timing of the simulated memory (sim/memory.cpp). Changing it needs no new build. What is true of a board's memory is in
golden/boards.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from tellme.golden.boards import BOARDS, Board, Dram


def dram_settings(dram: Dram, clock_hz: float) -> str:
    """A DRAM as sim/dram.hpp reads it, for ports of that clock."""
    words = [f"{f.name}:{getattr(dram, f.name)}" for f in fields(dram) if f.name != "ports"]
    words += [f"xpi{i}:{x}" for i, x in enumerate(dram.ports)]
    return ",".join([f"fabric_khz:{round(clock_hz / 1e3)}", *words])


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """How the simulated memory answers.

    Parameters
    ----------
    name : of the preset.
    latency : cycles from an accepted address to the first beat or to the write response, at least.
    jitter : further cycles of latency, drawn for every burst from 0 to this.
    outstanding : bursts of each direction that a port of the memory holds.
    bandwidth : bytes a cycle over all ports and both directions, 0: no limit but the ports'.
    pause, period : no data in `pause` cycles of every `period` (refresh).
    shared : (ports, bytes a cycle): ports that share a controller port, and its rate.
    stall : probability that a channel (AR, R, AW, W, B) begins a stall in a cycle.
    stall_max : longest such stall, cycles.
    reorder : bursts of different IDs overtake each other and interleave.
    error_rate : probability of an SLVERR or DECERR for a burst.
    errors : (first byte, byte behind the last, response 2 or 3): bytes of the buffer that answer with an error.
    hangs : (first byte, byte behind the last): bytes whose bursts are never answered.
    odd : ("id", n), ("twice", n), ("swap", n): what AXI4 does not allow: the n-th burst that is accepted is answered with another
        ID; its last beat or response comes twice; the burst behind it at its port is answered before it.
    dram : banks, controller and ports; `latency` then comes on top where no DRAM is asked (errors), and 1 is enough.
    hazard : stop when a read and a write of the same bytes are in flight together.
    seed : of everything random.
    """

    name: str
    latency: int = 1
    jitter: int = 0
    outstanding: int = 64
    bandwidth: float = 0.0
    pause: int = 0
    period: int = 0
    shared: tuple[tuple[tuple[int, ...], float], ...] = ()
    stall: float = 0.0
    stall_max: int = 1
    reorder: bool = False
    error_rate: float = 0.0
    errors: tuple[tuple[int, int, int], ...] = ()
    hangs: tuple[tuple[int, int], ...] = ()
    odd: tuple[str, int] | None = None
    hazard: bool = False
    seed: int = 1
    dram: Dram | None = None

    def __post_init__(self) -> None:
        if self.latency < 1 or self.outstanding < 1 or self.stall_max < 1:
            raise ValueError("latency, outstanding and stall_max must be at least 1")
        if not 0 <= self.pause <= self.period or (self.pause and self.pause == self.period):
            raise ValueError(f"pause must be from 0 to less than period, not {self.pause} of {self.period}")
        if not (0 <= self.stall < 1 and 0 <= self.error_rate <= 1):
            raise ValueError("stall and error_rate are probabilities; stall must be below 1")

    def read_latency(self, clock_hz: float) -> float:
        """Cycles of that clock from a read's address to its first beat, on average, in an idle memory."""
        d = self.dram
        if d is None:
            return self.latency + self.jitter / 2
        return self.latency + self.jitter / 2 + (d.path + d.rcd + d.cl) * clock_hz / (d.clock_khz * 1e3)

    def settings(self, *, file: str, region: int, bases: Sequence[int], clock_hz: float) -> str:
        """Value of TELLME_MEMORY: this timing over `file`, which holds `region` bytes of each port one behind the other;
        a port finds its own at its byte address of `bases`. For an accelerator of that clock."""
        words = [f"file={file}", f"region={region}", *(f"base={base}" for base in bases)]
        names = ("latency", "jitter", "outstanding", "bandwidth", "pause", "period", "stall", "stall_max", "error_rate")
        words += [f"{n}={getattr(self, n)}" for n in names]
        words += [f"reorder={int(self.reorder)}", f"hazard={int(self.hazard)}", f"seed={self.seed}"]
        words += [f"shared={sum(1 << p for p in ports)}:{rate}" for ports, rate in self.shared]
        words += [f"error={low}:{high}:{response}" for low, high, response in self.errors]
        words += [f"hang={low}:{high}" for low, high in self.hangs]
        words += [f"odd={self.odd[0]}:{self.odd[1]}"] if self.odd else []
        if self.dram is not None:
            words.append(f"dram={dram_settings(self.dram, clock_hz)}")
        return " ".join(words)


IDEAL = MemoryTiming(name="ideal")
"""No limit but the ports' width."""

KV260_IDEAL = MemoryTiming(
    name="kv260-ideal", latency=70, outstanding=16, bandwidth=0.85 * 19.2e9 / 250e6, pause=20, period=1950
)
"""What this project assumed of the KV260 before rates of boards were known: 85 % of 19.2 GB/s, 65.28 bytes a cycle."""

KV260_PESSIMISTIC = MemoryTiming(
    name="kv260-pessimistic",
    latency=120,
    outstanding=8,
    bandwidth=0.85 * 19.2e9 / 250e6,
    pause=88,
    period=1950,
    shared=(((1, 2), 0.8 * 2 * 16),),
)
"""The same at its worst: ports 1 and 2 get 80 % of their width together."""

STRESS = MemoryTiming(name="stress", latency=3, jitter=60, outstanding=6, stall=0.08, stall_max=20, reorder=True)
"""Random stalls on every channel, random latency, reordering between IDs. Results must not change."""


def _of_board(board: Board) -> MemoryTiming:
    return MemoryTiming(name=board.name, outstanding=board.dram.bursts, dram=board.dram)


TIMINGS: dict[str, MemoryTiming] = {
    t.name: t
    for t in (
        IDEAL,
        *map(_of_board, BOARDS.values()),
        KV260_IDEAL,
        KV260_PESSIMISTIC,
        STRESS,
    )
}

KV260_TIMING = TIMINGS["kv260"]
"""The default: the DRAM of the K26 with its banks."""


def timing(name: str, **changes: object) -> MemoryTiming:
    """A preset or a board's by name, with some values changed.

    Raises
    ------
    ValueError : no such preset.
    """
    known = {**TIMINGS, **{b.name: _of_board(b) for b in BOARDS.values()}}  # boards may have been added
    if name not in known:
        raise ValueError(f"no memory timing named {name!r}; there are {', '.join(known)}")
    return replace(known[name], **changes)  # type: ignore[arg-type]
