"""Traces that `tellme bench --trace` wrote: reading them, and what is in a layer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tellme.golden.registers import STALLS
from tellme.host.errors import UserError
from tellme.host.machine.simulation import unloadable

if TYPE_CHECKING:
    from tellme.sim.trace import Trace


def read(path: Path) -> tuple[Trace, str]:
    """A trace and its title.

    Raises
    ------
    UserError : there is no such file, or it is none of ours.
    """
    try:
        from tellme.sim.trace import read_chrome
    except ImportError as e:
        raise unloadable(e, "") from e
    try:
        return read_chrome(path)
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except ValueError as e:
        raise UserError(str(e)) from e


def layer_of(descriptor: str) -> str:
    """The layer that a descriptor belongs to; or it itself: load, screened head, head, end."""
    words = descriptor.split()
    return words[1] if words[0] == "layer" else descriptor


def layers(trace: Trace) -> dict[str, tuple[int, int]]:
    """(first cycle, end) of every layer of a trace, and of what is before and behind, by the names of `layer_of`."""
    out: dict[str, tuple[int, int]] = {}
    for s in trace.spans:
        if s.track == "descriptor":
            name = layer_of(s.name)
            first, end = out.get(name, (s.start, s.end))
            out[name] = min(first, s.start), max(end, s.end)
    return out


def causes(trace: Trace) -> dict[str, dict[str, float]]:
    """For each descriptor its cycles with a beat (`beats`) and without, by cause."""
    stalls = [s for s in trace.spans if s.track == "no beat"]
    out: dict[str, dict[str, float]] = {}
    for part in (s for s in trace.spans if s.track == "descriptor" and s.end > s.start):
        counts = dict.fromkeys(("beats", *STALLS), 0.0)
        for s in stalls:
            counts[s.name] += max(0, min(s.end, part.end) - max(s.start, part.start))
        counts["beats"] = part.end - part.start - sum(counts.values())
        out[part.name] = counts
    return out
