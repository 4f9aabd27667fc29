"""`tellme tune`: what the memory's ports really get, for a few dozen placements, measured by the accelerator itself.

The program reads and does nothing else: a LOAD, then the output head over a stretch of memory, whatever it holds; nothing is
written. Two figures of each placement:

- a port's own rate: its beats over the cycles in which it waited for beats or got them (registers port_beats and port_stalls),
  in a stream of `SHORT` beats. Ports run freely in it (register port_lead), as far apart as their queues let them
  (hw.memory.reader.burst_queue).
- in lockstep: all beats over all cycles of a stream of many FIFOs, ports in step, which is what a model gets. This is what
  placements are ranked by.

The same program without the head is subtracted from both. Ports start together. Those of the published sweep
(docs/measurements/silicon/k26-port-offsets.csv) did not: each began 136 cycles after the one before (fitted, bench/memory.py), so
it was 2 KiB behind where it would have been. With a file of offsets each region is therefore placed that much earlier, in whole
pages.
"""

from __future__ import annotations

import contextlib
import csv
import math
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from tellme.golden import layout
from tellme.golden.arith import ceil_div
from tellme.golden.boards import PAGE, PHASE_PERIOD, check_phases
from tellme.golden.config import AcceleratorConfig
from tellme.golden.program import DESCRIPTOR_BYTES, Opcode, encode
from tellme.host.commands.common import Bitstream, ConfigFile, Settings, preset, terminate
from tellme.host.errors import DeviceError, UserError
from tellme.host.machine.board import open_board
from tellme.host.machine.device import Device
from tellme.host.machine.driver import Driver
from tellme.host.machine.placement import in_use, store
from tellme.host.machine.simulation import open_simulated
from tellme.host.progress import Status
from tellme.host.provenance import json_line
from tellme.host.tables import grid, show

KIB = 1024
SHORT = 20_480
"""Beats of the stream for the ports' own rates: what the published sweep read at each port, 327,680 bytes of 16 each."""
LONG_FIFOS = 8
"""FIFOs' worth of beats of the stream in lockstep."""
APART = 2 * KIB
"""How far behind the port before each port of the published sweep was, bytes: 136 cycles, but for a little."""
HEAD_DIM = 32
TIMEOUT_S = 1800.0
"""Wall clock of a pass: a simulated one takes seconds, or minutes on a busy machine."""
BETTER = 0.002
"""Share by which a placement must be better than the one in use to take its place."""


@dataclass(frozen=True)
class Measured:
    """What a placement gives.

    Attributes
    ----------
    offsets : what was asked for, bytes. phases : where the regions were, bytes modulo PHASE_PERIOD.
    rates : of each port, its own, bytes/s.
    lockstep : of all ports together, in step, bytes/s; None if not measured.
    """

    offsets: tuple[int, ...]
    phases: tuple[int, ...]
    rates: tuple[float, ...]
    lockstep: float | None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "offsets_kib": [x / KIB for x in self.offsets],
            "phases_kib": [x / KIB for x in self.phases],
            "gb_s": [r / 1e9 for r in self.rates],
            "lockstep_gb_s": None if self.lockstep is None else self.lockstep / 1e9,
        }


def stream_beats(config: AcceleratorConfig, at_least: int) -> int:
    """Beats of the shortest stream that has so many: whole blocks of a head."""
    block = layout.head_block_beats(_inputs(config), config)
    return ceil_div(at_least, block) * block


def _inputs(config: AcceleratorConfig) -> int:
    return config.max_hidden // config.cell * config.cell


def region_beats(config: AcceleratorConfig, stream: int) -> int:
    """Beats of the device's buffer for streams of so many beats: regions can be moved within it by a whole period."""
    return 2 * PHASE_PERIOD // config.port_bytes + stream_beats(config, stream)


class StreamMeter(Driver):
    """An accelerator that reads a stretch of memory, at any placement of the ports' regions within the device's buffer.

    Parameters
    ----------
    device : with a buffer of at least `region_beats`.

    Raises
    ------
    DeviceError : as `Driver`.
    """

    def __init__(self, device: Device, config: AcceleratorConfig, *, timeout_s: float):
        super().__init__(device, config, timeout_s=timeout_s)
        n = _inputs(config)
        self._block = layout.head_block_beats(n, config)
        # Everything but the stream is before the first period's end, and the stream begins at a phase of its own: 0.
        self._start = PHASE_PERIOD // config.port_bytes
        x_beats, rope_beats = layout.float_beats(n, config), layout.rope_beats(HEAD_DIM, config)
        self._x_address = ceil_div(3 * DESCRIPTOR_BYTES, config.beat_bytes)
        self._rope_address = self._x_address + x_beats
        self._load = encode(
            Opcode.LOAD,
            x_address=self._x_address,
            inputs=n,
            x_beats=x_beats,
            rope_address=self._rope_address,
            rope_beats=rope_beats,
            head_dim=HEAD_DIM,
        )
        self._x = layout.pack_floats(np.ones((1, n), np.float32), config)
        if self._rope_address + rope_beats > self._start:
            raise UserError(f"accelerator {config.name!r}: what a pass begins with does not fit before the stream")

    def _code(self, blocks: int) -> bytes:
        if not blocks:  # as long as the other one, so that it takes as many beats
            return self._load + 2 * encode(Opcode.END)
        c, n = self.config, _inputs(self.config)
        rows = blocks * c.key_block
        head = encode(
            Opcode.HEAD,
            norm_in=1,
            address=self._start,
            blocks=blocks,
            tiles=layout.tiles(n, c),
            inputs=n,
            inv_n=1 / n,
            eps=1e-5,
            logits_stride=layout.float_beats(rows, c),
            rows=rows,
        )
        return self._load + head + encode(Opcode.END)

    def _counters(self, phases: Sequence[int], blocks: int, free: bool) -> tuple[int, list[int], list[int]]:
        """cycles of a pass; beats and stalls of each port. free : ports do not wait for one another."""
        c = self.config
        device = self.device
        shifts = [(p - base) % PHASE_PERIOD for p, base in zip(phases, device.port_bases, strict=True)]
        code = self._code(blocks)
        width = c.beat_bytes
        program = np.frombuffer(code + bytes(-len(code) % width), np.uint8).reshape(-1, width)
        for address, beats in ((0, program), (self._x_address, self._x)):
            for region, part, shift in zip(device.memory, layout.stripe(beats, c), shifts, strict=True):
                at = shift // c.port_bytes + address
                region[at : at + len(part)] = part
        device.flush(0, max(shifts) // c.port_bytes + self._start)
        bases = [base + shift for base, shift in zip(device.port_bases, shifts, strict=True)]
        self.point(bases, self._start + blocks * self._block)
        values = {
            "program_address": 0,
            "program_length": len(code) // DESCRIPTOR_BYTES,
            "context": 1,
            "slots": 1,
            "timeout": self.timeout_cycles,
            "lanes": 1,
        }
        for name, value in values.items():
            self.write(name, value)
        self.write("irq_enable", done=1)
        self.write("port_lead", free=int(free))
        self.write("head_lanes", first=0, count=1)
        self.write("write_logits", every=0)
        for name in ("position", "slot"):
            self.write(name, 0, 0)
        self.execute()
        ports = range(c.ports)
        return (
            self.read("cycles"),
            [self.read("port_beats", i) for i in ports],
            [self.read("port_stalls", i) for i in ports],
        )

    def stream(self, phases: Sequence[int], beats: int, *, free: bool) -> tuple[tuple[float, ...], float]:
        """Reads about so many beats; gives each port's own rate, and that of all in lockstep, bytes/s.

        Parameters
        ----------
        phases : of the ports' regions, bytes modulo PHASE_PERIOD.
        free : ports do not wait for one another, as far as their queues go; else they are kept in step.

        Raises
        ------
        DeviceError : the counters do not add up, or as `execute`.
        """
        c = self.config
        blocks = ceil_div(beats, self._block)
        none = self._counters(phases, 0, free)
        some = self._counters(phases, blocks, free)
        total = blocks * self._block
        own = []
        for port in range(c.ports):
            moved, stalls = some[1][port] - none[1][port], some[2][port] - none[2][port]
            if moved != total:
                raise DeviceError(
                    f"port {port} counted {moved:,} beats of a stream of {total:,}; load the bitstream again"
                )
            own.append(moved * c.port_bytes * c.clock_hz / (moved + max(stalls, 0)))
        return tuple(own), total * c.beat_bytes * c.clock_hz / (some[0] - none[0])

    def measure(self, offsets: Sequence[int], phases: Sequence[int], *, lockstep: bool) -> Measured:
        """Both streams, or the short one alone."""
        own, _ = self.stream(phases, SHORT, free=True)
        together = self.stream(phases, LONG_FIFOS * self.config.fifo_beats, free=False)[1] if lockstep else None
        return Measured(tuple(offsets), tuple(phases), own, together)


# ---- placements ------------------------------------------------------------------------------------------------------


def candidates(config: AcceleratorConfig, board: Sequence[int]) -> list[tuple[int, ...]]:
    """Placements to begin with: the board's, all equal, equal distances, each port in a bank of its own in every order."""
    n, step = config.ports, 8 * KIB
    out = [tuple(board)] if board else []
    out += [tuple(i * k * step % PHASE_PERIOD for i in range(n)) for k in range(PHASE_PERIOD // step)]
    if n == 4:
        out += [(0, *p) for p in permutations(range(2 * step, PHASE_PERIOD, 2 * step))]
        out.append((0, 0, 6 * step, 3 * step))  # the best that was published
    return list(dict.fromkeys(out))


def neighbours(phases: Sequence[int], step: int) -> list[tuple[int, ...]]:
    """One port's region a step up or down, the first one's stays."""
    return [
        (*phases[:i], (phases[i] + d) % PHASE_PERIOD, *phases[i + 1 :])
        for i in range(1, len(phases))
        for d in (-step, step)
    ]


def search(
    meter: StreamMeter, board: Sequence[int], done: Callable[[Measured], None] = lambda _: None
) -> list[Measured]:
    """Measures candidates, then the neighbours of the best at 8 and 4 KiB: a few dozen in all."""
    found: dict[tuple[int, ...], Measured] = {}

    def look(many: Sequence[tuple[int, ...]]) -> None:
        for phases in many:
            if phases not in found:
                found[phases] = meter.measure(phases, phases, lockstep=True)
                done(found[phases])

    look(candidates(meter.config, board))
    for step in (8 * KIB, PAGE):
        look(neighbours(best(list(found.values())).phases, step))
    return list(found.values())


def best(measured: Sequence[Measured]) -> Measured:
    """The highest rate in lockstep; where that was not measured, the fastest slowest port."""
    return max(measured, key=lambda m: m.lockstep if m.lockstep is not None else len(m.rates) * min(m.rates))


def read_offsets(path: Path, ports: int) -> list[tuple[int, ...]]:
    """Offsets of a file as the published sweep is: columns hp0_offset_kib and so on; others do not matter.

    Raises
    ------
    UserError : which line, and what is wrong.
    """
    try:
        with path.open(newline="") as f:
            rows = list(csv.reader(f))
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror})") from e
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path}: is not a CSV file ({e})") from e
    header = [name.strip() for name in rows[0]] if rows else []
    columns = []
    for port in range(ports):
        name = f"hp{port}_offset_kib"
        if header.count(name) != 1:
            raise UserError(f"{path}: must have one column {name} for each of the accelerator's {ports} ports")
        columns.append(header.index(name))
    out = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        try:
            values = [float(row[c]) for c in columns]
            if not all(math.isfinite(v) and (KIB * v).is_integer() for v in values):
                raise ValueError("an offset is no whole number of bytes")
            phases = tuple(int(KIB * v) for v in values)
            check_phases(phases, ports)
        except (ValueError, IndexError) as e:
            what = "has too few columns" if isinstance(e, IndexError) else str(e)
            raise UserError(f"{path}, line {number}: {what}") from e
        out.append(phases)
    if not out:
        raise UserError(f"{path}: has no offsets")
    return out


def as_published(offsets: Sequence[int]) -> tuple[int, ...]:
    """Where the regions must begin for ports that start together to be as those of the published sweep were: each `APART`
    behind the one before, in whole pages."""
    return tuple((x - round(i * APART / PAGE) * PAGE) % PHASE_PERIOD for i, x in enumerate(offsets))


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes
    ----------
    points : every placement that was asked for.
    best : the best of them, in lockstep too. before : the placement that was in use.
    stored : the file that now holds the best; None if it is no better than what was in use.
    """

    points: tuple[Measured, ...]
    best: Measured
    before: Measured
    stored: Path | None


def tune(
    meter: StreamMeter,
    backend: str,
    *,
    offsets: Sequence[tuple[int, ...]] | None = None,
    done: Callable[[Measured], None] = lambda _: None,
) -> Tuned:
    """Measures placements, and keeps the best for the board if it is better than what is in use.

    Parameters
    ----------
    backend : `sim` or `board`; what is stored for one is not used by the other.
    offsets : those of the published experiment; None: a search.
    done : told of each placement.
    """
    config = meter.config
    used = in_use(config, backend).phases or tuple(base % PHASE_PERIOD for base in meter.device.port_bases)
    points: list[Measured] = []
    if offsets is None:
        points = search(meter, used, done)
    else:
        for x in offsets:
            points.append(meter.measure(x, as_published(x), lockstep=False))
            done(points[-1])

    def whole(m: Measured) -> Measured:
        return m if m.lockstep is not None else meter.measure(m.offsets, m.phases, lockstep=True)

    first = whole(best(points))
    before = next((m for m in points if m.phases == used and m.lockstep), None)
    before = before or meter.measure(used, used, lockstep=True)
    assert first.lockstep is not None and before.lockstep is not None
    stored = None
    if first.lockstep > (1 + BETTER) * before.lockstep:
        stored = store(config, backend, first.phases, first.lockstep)
    return Tuned(tuple(points), first, before, stored)


def show_tuned(tuned: Tuned, config: AcceleratorConfig, backend: str, console: Console) -> None:
    """Prints the table, the best first, and what became of it."""

    def kib(values: Sequence[int]) -> str:
        return ", ".join(f"{x / KIB:g}" for x in values)

    def row(m: Measured) -> tuple[object, ...]:
        together = "-" if m.lockstep is None else f"{m.lockstep / 1e9:.2f}"
        own = [f"{r / 1e9:.2f}" for r in m.rates]
        return (kib(m.offsets), kib(m.phases), *own, f"{len(own) * min(m.rates) / 1e9:.2f}", together)

    points = sorted(tuned.points, key=lambda m: -(m.lockstep or len(m.rates) * min(m.rates)))
    ports = [f"port {i}" for i in range(config.ports)]
    header = ("offsets, KiB", "regions at, KiB", *ports, f"{config.ports} x the slowest", "in lockstep")
    what = "simulated" if backend == "sim" else "measured"
    show(grid(f"{config.name}, {what}, GB/s", header, [row(m) for m in points], left=header[:2]), console)
    lines = [
        f"best: {kib(tuned.best.phases)} KiB: {(tuned.best.lockstep or 0) / 1e9:.2f} GB/s in lockstep",
        f"was in use: {kib(tuned.before.phases)} KiB: {(tuned.before.lockstep or 0) / 1e9:.2f} GB/s",
        "kept, as the best is not better" if tuned.stored is None else f"the best is in use now ({tuned.stored})",
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def command(
    backend: Annotated[
        str, typer.Option("--backend", help="board: a board, through PYNQ; sim: the RTL under Verilator.")
    ] = "board",
    board_name: Annotated[
        str | None, typer.Option("--board", help="Preset. Default: what the bitstream is for, else kv260.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    bitstream: Bitstream = None,
    offsets: Annotated[
        Path | None,
        typer.Option(
            "--offsets",
            help="CSV with columns hp0_offset_kib and so on: the published experiment at these offsets, instead of a search.",
        ),
    ] = None,
    timing: Annotated[
        str | None, typer.Option("--timing", help="Timing of the simulated memory. Default: the board's.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Measure what the memory gives for a few dozen placements of the ports' regions, and keep the best for the board."""
    if backend not in ("sim", "board"):
        raise UserError(f"backend {backend!r} cannot be tuned; there are sim, board")
    if bitstream is not None and backend != "board":
        raise UserError("--bitstream needs --backend board")
    if timing is not None and backend != "sim":
        raise UserError("--timing needs --backend sim")
    config = preset(board_name, "board", bitstream, None, config_file, settings)
    given = None if offsets is None else read_offsets(offsets, config.ports)
    in_use(config, backend)  # what is stored must be readable before anything is measured
    beats = region_beats(config, max(SHORT, LONG_FIFOS * config.fifo_beats))
    signal.signal(signal.SIGTERM, terminate)
    with contextlib.ExitStack() as stack:
        status = stack.enter_context(Status(Console(stderr=True), "opening the accelerator"))
        device = (
            open_simulated(config, beats, timing, status) if backend == "sim" else open_board(config, beats, bitstream)
        )
        stack.callback(device.close)
        meter = StreamMeter(device, config, timeout_s=TIMEOUT_S)
        total = "" if given is None else f" of {len(given)}"
        count = 0

        def done(point: Measured) -> None:
            nonlocal count
            count += 1
            status(f"{count}{total} placements measured")

        tuned = tune(meter, backend, offsets=given, done=done)
    if as_json:
        facts = {
            "board": config.name,
            "backend": backend,
            "simulated": backend == "sim",
            "clock_hz": config.clock_hz,
            "points": [m.record() for m in tuned.points],
            "best": tuned.best.record(),
            "in_use_before": tuned.before.record(),
            "stored": None if tuned.stored is None else str(tuned.stored),
        }
        print(json_line(facts))
        return
    show_tuned(tuned, config, backend, Console())
