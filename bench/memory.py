"""The DRAM model against rates measured on boards: its constants fitted, predictions beside measurements, placements.

`python -m bench.memory` writes docs/measurements/memory.md and its pictures with the constants of golden/boards.py;
`python -m bench.memory --fit` searches for them first, says what it finds, and how well constants that were fitted to one
half of the points do on the other half. What is fitted: `hold` and `path` of golden.boards.Dram, and how many cycles after
one another the ports of the published sweep were started.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tellme.golden.boards import BOARDS, PHASE_PERIOD, Dram
from tellme.golden.config import PRESETS
from tellme.sim import stream
from tellme.sim.timing import TIMINGS, MemoryTiming, timing

MEASUREMENTS = Path(__file__).parent.parent / "docs" / "measurements"
SWEEP = MEASUREMENTS / "silicon" / "k26-port-offsets.csv"
PAGE = MEASUREMENTS / "memory.md"
PICTURE = MEASUREMENTS / "pictures" / "memory-sweep.svg"
REGION = 327_680
"""Bytes that each port of the sweep reads."""
START = 136
"""Cycles from the start of a port of the sweep to that of the next. Fitted."""
KIB = 1024
FEW = ((1, 3.96), (2, 7.89), (3, 11.63))
"""(reading ports, GB/s measured of all): 4.4 MB a run, in all."""


@dataclass(frozen=True)
class Point:
    """offsets : bytes, of each port. rates : GB/s measured, of each port."""

    offsets: tuple[int, ...]
    rates: tuple[float, ...]


def points(path: Path = SWEEP) -> list[Point]:
    """The published sweep."""
    with path.open(newline="") as f:
        rows = [[float(x) for x in row] for row in list(csv.reader(f))[1:]]
    return [Point(tuple(int(x * KIB) for x in row[:4]), tuple(row[4:])) for row in rows]


@cache
def predict(dram: Dram, offsets: tuple[int, ...], start: int = START) -> tuple[float, ...]:
    """GB/s of each port in the sweep's experiment."""
    how = MemoryTiming(name="fit", outstanding=dram.bursts, dram=dram)
    starts = [start * i for i in range(len(offsets))]
    return tuple(r / 1e9 for r in stream.run(how, offsets, length=REGION, starts=starts).rates)


@cache
def predict_few(dram: Dram) -> tuple[float, ...]:
    """GB/s of all ports for the runs of `FEW`, regions in the same bank as an allocator puts them."""
    how = MemoryTiming(name="fit", outstanding=dram.bursts, dram=dram)
    return tuple(n * min(stream.run(how, (0,) * n, length=4_400_000 // n // KIB * KIB).rates) / 1e9 for n, _ in FEW)


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean ranks, as Spearman's correlation takes them."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse]


@dataclass(frozen=True)
class Agreement:
    """Of four times the slowest port: mean and worst relative error, Spearman's rank correlation. ports : mean relative
    error of all ports' rates."""

    mean: float
    bias: float
    worst: float
    rank: float
    ports: float

    @property
    def cost(self) -> float:
        return self.mean + self.ports + 0.1 * (1 - self.rank)


def agreement(predicted: NDArray[np.float64], measured: NDArray[np.float64]) -> Agreement:
    """predicted, measured : GB/s, float64[points, ports]."""
    a, b = predicted.min(1), measured.min(1)
    error = a / b - 1
    return Agreement(
        mean=float(np.abs(error).mean()),
        bias=float(error.mean()),
        worst=float(np.abs(error).max()),
        rank=float(np.corrcoef(ranks(a), ranks(b))[0, 1]),
        ports=float(np.abs(predicted / measured - 1).mean()),
    )


def compare(dram: Dram, some: Sequence[Point], start: int = START) -> Agreement:
    return agreement(np.array([predict(dram, p.offsets, start) for p in some]), np.array([p.rates for p in some]))


STEPS = {"hold": (4, 2, 1), "path": (16, 8, 4), "start": (16, 8, 4)}
STARTS = tuple({"hold": h, "path": p, "start": s} for h in (40, 48) for p in (32, 64, 96) for s in (80, 128))


def fit(some: Sequence[Point]) -> tuple[dict[str, int], Agreement]:
    """Constants with the least cost over some points and `FEW`: from a few starts, each constant in turn a step up or down,
    ever smaller steps."""
    base = TIMINGS["kv260"].dram
    assert base is not None

    def look(v: dict[str, int]) -> Agreement:
        return compare(replace(base, hold=v["hold"], path=v["path"]), some, v["start"])

    def cost(v: dict[str, int]) -> float:
        few = predict_few(replace(base, hold=v["hold"], path=v["path"]))
        return look(v).cost + float(np.mean([abs(a / b - 1) for a, (_, b) in zip(few, FEW, strict=True)]))

    best = min(STARTS, key=cost)
    for level in range(3):
        moved = True
        while moved:
            moved = False
            for name, steps in STEPS.items():
                for step in (-steps[level], steps[level]):
                    v = {**best, name: max(0, best[name] + step)}
                    if cost(v) < cost(best):
                        best, moved = v, True
    return best, look(best)


def cross_validation(all_points: Sequence[Point]) -> list[tuple[dict[str, int], Agreement, Agreement]]:
    """Constants fitted to one half of the points, what they give there, and on the other half; for both halves."""
    halves = all_points[0::2], all_points[1::2]
    base = TIMINGS["kv260"].dram
    assert base is not None
    out = []
    for here, there in (halves, halves[::-1]):
        v, own = fit(here)
        dram = replace(base, hold=v["hold"], path=v["path"])
        out.append((v, own, compare(dram, there, v["start"])))
    return out


def show(a: Agreement) -> str:
    return f"{a.mean:.1%} | {a.worst:.1%} | {a.bias:+.1%} | {a.rank:.3f} | {a.ports:.1%}"


def others() -> list[tuple[str, str, float]]:
    """(what, measured, predicted GB/s) of measurements that nothing was fitted to."""
    t = timing("kv260")
    four = replace(t, dram=replace(t.dram, bursts=4))  # type: ignore[type-var]
    rows = []
    grid = [
        (0, a * 8 * KIB, b * 8 * KIB, c * 8 * KIB) for a in range(0, 8, 2) for b in range(0, 8, 2) for c in range(8)
    ]
    rates = [4 * min(stream.run(t, p, length=1_100_800).rates) / 1e9 for p in grid]
    rows.append(("4 reading ports, phases not told: mean of 128 phases", "13.33", float(np.mean(rates))))
    own = [4 * min(predict(t.dram, (0, 0, b * 8 * KIB, c * 8 * KIB))) for b in range(8) for c in range(8)]
    rows.append(("four ports, the worst of the phases", "11.73", min(own)))
    rows.append(("four ports, the best of the phases", "14.42", max(own)))
    slow = stream.run(four, (0, 0, 0, 0), clock_hz=150e6, burst=4096, length=1 << 20)
    rows.append(("4 ports at 150 MHz, 256-beat bursts, 4 in flight", "9.377 of 9.6", sum(slow.rates) / 1e9))
    for what, phases, measured in (
        ("same bank", (0, 0, 0), 8.5),
        ("16 and 48 KiB apart", (0, 16 * KIB, 48 * KIB), 10.8),
    ):
        r = stream.run(t, phases, length=512 * KIB, writes=[2])
        rows.append((f"2 reads and a write, {what}", f"{measured}", 3 * min(r.rates) / 1e9))
    return rows


BOARD_NAMES = ("kv260", "zcu104", "rfsoc4x2", "ultra96v2", "pynq_z2")


def long_rate(name: str, phases: tuple[int, ...], length: int = 1 << 22) -> float:
    """GB/s of all ports of a board's preset over so many bytes a port, with the preset's bursts and FIFOs."""
    c = PRESETS[name]
    memory = stream.SustainedMemory(timing(name), phases)
    return memory.rate(c, length=length) * c.beat_bytes * c.clock_hz / 1e9


def ranking(name: str, kept: int = 24) -> list[tuple[float, tuple[int, ...]]]:
    """(GB/s, phases) of a board's best placements, the best first: of all multiples of 8 KiB those `kept` that are best in a
    short run, by a long one."""
    ports = PRESETS[name].ports
    every = [(0, *rest) for rest in product(range(0, PHASE_PERIOD, 8 * KIB), repeat=ports - 1)]
    best = sorted(every, key=lambda p: long_rate(name, p, 1 << 19), reverse=True)[:kept]
    return sorted(((long_rate(name, p), p) for p in best), reverse=True)


def placements() -> list[str]:
    """Lines of a table: what each board's ports get at equal phases and at the board's (golden/boards.py)."""
    lines = []
    for name in BOARD_NAMES:
        t, c = timing(name), PRESETS[name]
        assert t.dram is not None
        best = BOARDS[name].phases or (0,) * c.ports
        rate = [long_rate(name, p) for p in ((0,) * c.ports, best)]
        lines.append(
            f"| `{name}` | {c.clock_hz / 1e6:.0f} | {t.dram.peak / 1e9:.2f} | {c.ports * c.port_bytes * c.clock_hz / 1e9:.2f} "
            f"| {rate[0]:.2f} | {', '.join(f'{p / KIB:g}' for p in best)} | {rate[1]:.2f} |"
        )
    return lines


def draw(all_points: Sequence[Point], path: Path) -> None:
    """Predicted against measured, and both over the offsets of HP2 and HP3."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "tellme"
    dram = TIMINGS["kv260"].dram
    assert dram is not None
    predicted = np.array([predict(dram, p.offsets) for p in all_points])
    measured = np.array([p.rates for p in all_points])
    a, b = 4 * predicted.min(1), 4 * measured.min(1)
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    low, high = min(a.min(), b.min()) - 0.2, max(a.max(), b.max()) + 0.2
    axes[0].plot([low, high], [low, high], color="0.6", linewidth=1)
    axes[0].scatter(b, a, s=18)
    axes[0].set(
        xlabel="measured, GB/s",
        ylabel="predicted, GB/s",
        title="four times the slowest port",
        xlim=(low, high),
        ylim=(low, high),
    )
    columns = sorted({p.offsets[2] // KIB for p in all_points})
    rows = sorted({p.offsets[3] // KIB for p in all_points})
    for axis, values, title in ((axes[1], b, "measured"), (axes[2], a, "predicted")):
        grid = np.full((len(rows), len(columns)), np.nan)
        for p, value in zip(all_points, values, strict=True):
            grid[rows.index(p.offsets[3] // KIB), columns.index(p.offsets[2] // KIB)] = value
        image = axis.imshow(grid, origin="lower", vmin=low, vmax=high, cmap="viridis")
        for y in range(len(rows)):
            for x in range(len(columns)):
                axis.text(x, y, f"{grid[y, x]:.1f}", ha="center", va="center", color="white", fontsize=8)
        axis.set(xlabel="offset of HP2, KiB", ylabel="offset of HP3, KiB", title=f"{title}, GB/s")
        axis.set_xticks(range(len(columns)), [str(c) for c in columns])
        axis.set_yticks(range(len(rows)), [str(r) for r in rows])
        figure.colorbar(image, ax=axis)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def report(folds: list[tuple[dict[str, int], Agreement, Agreement]] | None) -> str:
    """The page. Without folds, their table is kept as it stands."""
    t = timing("kv260")
    d = t.dram
    assert d is not None
    all_points = points()
    best_point = max(all_points, key=lambda p: min(p.rates))
    best, _ = stream.best_phases(t, 4)
    lockstep = {p: long_rate("kv260", p) for p in ((0, 0, 0, 0), best_point.offsets, best)}

    def kib(phases: Sequence[int]) -> str:
        return ", ".join(f"{p / KIB:g}" for p in phases)

    if folds is None:
        old = PAGE.read_text() if PAGE.exists() else ""
        start = old.find("| fitted to |")
        table = old[start : old.find("\n\n", start)].splitlines() if start >= 0 else []
    else:
        table = [
            "| fitted to | hold, path; start | mean error there | on the other half: mean | worst | bias | rank correlation | ports, mean |"
        ]
        table += ["|---|---|---|---|---|---|---|---|"]
        for name, (v, own, there) in zip(("even points", "odd points"), folds, strict=True):
            table.append(f"| {name} | {v['hold']}, {v['path']}; {v['start']} | {own.mean:.1%} | {show(there)} |")
    worst = sorted(all_points, key=lambda p: -abs(min(predict(d, p.offsets)) / min(p.rates) - 1))[:6]
    return "\n".join(
        [
            "# The DRAM model against boards",
            "",
            f"`python -m bench.memory` (or `make memory`); the fit and the halves: `python -m bench.memory --fit`. The model is `sim/dram.hpp`, its values `golden/boards.py`: banks, timing and controller by the registers that the boot image of the K26 writes, FIFOs of the ports by UG1085. Two constants are fitted: a read keeps its place in the window of {d.window} for {d.hold} clocks ({d.hold / d.clock_khz * 1e6:.0f} ns) after its column command, until its data is out of the controller and the place is given back; and the way from port to controller and back takes {d.path} clocks ({d.path / d.clock_khz * 1e6:.0f} ns) besides what is modelled. A third belongs to the experiment: its ports were started {START} cycles apart. Without it the worst placements would be those with HP3 at 0, not at 8 KiB; and HP3, which started last, is measured 1.2 % slower than HP0 everywhere.",
            "",
            "## The sweep: four ports, 64 placements",
            "",
            "Each port reads 327,680 bytes; the rate of a port is over its own time (`docs/measurements/silicon/`). In lockstep: four times the slowest.",
            "",
            "| | mean error | worst | bias | rank correlation (Spearman) | all ports' rates, mean error |",
            "|---|---|---|---|---|---|",
            f"| predicted against measured | {show(compare(d, all_points))} |",
            f"| without the delay between the ports' starts | {show(compare(d, all_points, 0))} |",
            "",
            f"One, two and three ports, 4.4 MB in all, measured {', '.join(str(x) for _, x in FEW)} GB/s: predicted {', '.join(f'{x:.2f}' for x in predict_few(d))}. These are fitted too.",
            "",
            f"![sweep](pictures/{PICTURE.name})",
            "",
            "Fitted to one half of the points, held against the other:",
            "",
            *table,
            "",
            "The points that are worst:",
            "",
            "| HP0, HP1, HP2, HP3, KiB | measured, GB/s | predicted |",
            "|---|---|---|",
            *(
                f"| {kib(p.offsets)} | {', '.join(f'{x:.2f}' for x in p.rates)} | {', '.join(f'{x:.2f}' for x in predict(d, p.offsets))} |"
                for p in worst
            ),
            "",
            "## What nothing was fitted to",
            "",
            "| | measured, GB/s | predicted |",
            "|---|---|---|",
            *(f"| {what} | {measured} | {rate:.2f} |" for what, measured, rate in others()),
            "",
            "Not modelled: the coherent ports HPC0 and HPC1 and the processors, with which four ports were measured 6.4 and 7.5 % slower, or 14.0 GB/s in all.",
            "",
            "## Placement",
            "",
            "The reader keeps its ports in step (`hw/memory/reader.py`), so their streams keep the phases that their regions have. Bytes/s of all four ports, bursts and FIFOs as in the `kv260` preset:",
            "",
            "| phases of HP0, HP1, HP2, HP3, KiB | GB/s, model | |",
            "|---|---|---|",
            f"| {kib((0, 0, 0, 0))} | {lockstep[(0, 0, 0, 0)]:.2f} | all in one bank |",
            f"| {kib(best_point.offsets)} | {lockstep[best_point.offsets]:.2f} | the best of the published points: {4 * min(best_point.rates):.2f} measured |",
            f"| {kib(best)} | {lockstep[best]:.2f} | the best of a search over the model: multiples of 8 KiB, then finer |",
            "",
            "Each board, at its preset's clock and with its preset's bursts; phases as in `golden/boards.py`, found by `python -m bench.memory --phases`:",
            "",
            "| timing | ports, MHz | DRAM's peak, GB/s | ports' width, GB/s | equal phases, GB/s | the board's phases, KiB | GB/s |",
            "|---|---|---|---|---|---|---|",
            *placements(),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fit", action="store_true", help="search for the constants; minutes")
    parser.add_argument("--phases", action="store_true", help="rank placements of each board; minutes")
    arguments = parser.parse_args()
    if arguments.phases:
        for name in BOARD_NAMES:
            for rate, phases in ranking(name)[:6]:
                print(f"{name}: {', '.join(f'{x / KIB:g}' for x in phases)} KiB: {rate:.2f} GB/s", flush=True)
        return
    folds = None
    if arguments.fit:
        v, a = fit(points())
        print(f"all points: {v}: {show(a)}", flush=True)
        folds = cross_validation(points())
        for v, own, there in folds:
            print(f"half: {v}: {show(own)}; other half: {show(there)}", flush=True)
        d = TIMINGS["kv260"].dram
        assert d is not None
        print(f"golden/boards.py has hold {d.hold}, path {d.path}; this file START {START}")
    draw(points(), PICTURE)
    PAGE.write_text(report(folds))
    print(f"wrote {PAGE} and {PICTURE}")


if __name__ == "__main__":
    main()
