"""What every unit did, cycle by cycle: the records of sim/trace.svh, as spans, and as a trace that Perfetto and
Chrome (`chrome://tracing`) show.

A record is 16 bytes, {cycle uint64, state uint32, level uint32}: state holds the cause of the last cycle without a beat
(bits 5:0, `golden.registers.STALLS`, 0: a beat passed), the busy units (11:6, `BUSY`), whether a pass runs (15) and the
index of the next descriptor (31:16); level is the FIFO's, in beats.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellme.golden.registers import BUSY, STALLS

RECORD = np.dtype([("cycle", "<u8"), ("state", "<u4"), ("level", "<u4")])
_RUNNING = 1 << 15


@dataclass(frozen=True)
class Span:
    """`name` on `track`, cycles [start, end)."""

    track: str
    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Trace:
    """The last pass of a recording. Cycles count from its start.

    Attributes
    ----------
    cycles : of the pass.
    spans : busy units, causes of cycles without a beat, and descriptors in execution.
    level_cycles, levels : samples of the FIFO's level, in beats.
    """

    cycles: int
    spans: tuple[Span, ...]
    level_cycles: NDArray[np.int64]
    levels: NDArray[np.int64]


def _spans(
    track: str, names: Sequence[str], cycles: NDArray[np.int64], values: NDArray[np.int64], end: int
) -> list[Span]:
    """Spans of a track that shows `names[value - 1]`, and nothing for 0."""
    edges = np.flatnonzero(np.diff(values, prepend=-1))
    bounds = [*(int(cycles[e]) for e in edges), end]
    return [
        Span(track, names[int(values[e]) - 1], start, stop)
        for e, start, stop in zip(edges, bounds, bounds[1:], strict=False)
        if values[e] and stop > start
    ]


def read(path: Path, descriptors: Sequence[str]) -> Trace:
    """The last pass of a recording.

    Parameters
    ----------
    path : what the simulation wrote.
    descriptors : a name for each descriptor of the program.

    Raises
    ------
    ValueError : the recording holds no pass.
    """
    raw = path.read_bytes()
    records = np.frombuffer(raw[: len(raw) // RECORD.itemsize * RECORD.itemsize], RECORD)
    running = (records["state"] & _RUNNING) != 0
    starts = np.flatnonzero(np.diff(running.astype(np.int8), prepend=0) == 1)
    if not len(starts):
        raise ValueError(f"{path}: no pass was recorded")
    part = records[starts[-1] :]
    stop = np.flatnonzero((part["state"] & _RUNNING) == 0)
    length = int(stop[0]) if len(stop) else len(part) - 1
    first = int(part["cycle"][0])
    end = int(part["cycle"][length]) - first
    part = part[:length]
    cycles = part["cycle"].astype(np.int64) - first
    state = part["state"].astype(np.int64)
    spans = _spans("descriptor", descriptors, cycles, state >> 16, end)
    for i, unit in enumerate(BUSY):
        spans += _spans(unit, (unit,), cycles, state >> (6 + i) & 1, end)
    causes = np.zeros(len(state), np.int64)
    for i in range(len(STALLS)):
        causes[state >> i & 1 == 1] = i + 1
    spans += _spans("no beat", STALLS, cycles, causes, end)
    return Trace(end, tuple(spans), cycles, part["level"].astype(np.int64))


def write_chrome(trace: Trace, path: Path, *, clock_hz: int, title: str) -> None:
    """Writes the trace-event JSON; times are microseconds at `clock_hz` of simulated cycles."""
    scale = 1e6 / clock_hz
    tracks = ["descriptor", *BUSY, "no beat"]
    events: list[dict[str, object]] = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": title}},
        *(
            {"ph": "M", "pid": 1, "tid": i, "name": "thread_name", "args": {"name": name}}
            for i, name in enumerate(tracks)
        ),
    ]
    events += (
        {
            "ph": "X",
            "pid": 1,
            "tid": tracks.index(s.track),
            "name": s.name,
            "ts": s.start * scale,
            "dur": (s.end - s.start) * scale,
            "args": {"cycle": s.start, "cycles": s.end - s.start},
        }
        for s in trace.spans
    )
    events += (
        {"ph": "C", "pid": 1, "name": "FIFO beats", "ts": int(c) * scale, "args": {"beats": int(v)}}
        for c, v in zip(trace.level_cycles, trace.levels, strict=True)
    )
    path.write_text(json.dumps({"traceEvents": events, "displayTimeUnit": "ns"}))


def read_chrome(path: Path) -> tuple[Trace, str]:
    """What `write_chrome` wrote, and its title.

    Raises
    ------
    OSError : it cannot be read.
    ValueError : it is not such a file.
    """
    try:
        events = json.loads(path.read_text())["traceEvents"]
        title = next(str(e["args"]["name"]) for e in events if e["ph"] == "M" and e["name"] == "process_name")
        names = {e["tid"]: str(e["args"]["name"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
        blocks = [e for e in events if e["ph"] == "X"]
        spans = tuple(
            Span(
                names[e["tid"]], str(e["name"]), int(e["args"]["cycle"]), int(e["args"]["cycle"] + e["args"]["cycles"])
            )
            for e in blocks
        )
        longest = max(blocks, key=lambda e: e["args"]["cycles"])
        scale = longest["args"]["cycles"] / longest["dur"]
        samples = [(round(e["ts"] * scale), int(e["args"]["beats"])) for e in events if e["ph"] == "C"]
    except (KeyError, TypeError, ValueError, StopIteration, ZeroDivisionError) as e:
        raise ValueError(f"{path}: is no trace that tellme bench --trace wrote") from e
    levels = np.array(samples, np.int64).reshape(-1, 2)
    return Trace(max(s.end for s in spans), spans, levels[:, 0], levels[:, 1]), title
