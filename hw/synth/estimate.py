"""Area of a configuration without synthesis: from what its blocks are written of, fitted to synthesised points.

A block is elaborated (not made into a netlist), and counted: registers, bits of each kind of operator, bits that are chosen among,
memories, vendor primitives. DSPs and UltraRAM follow exactly, as do block RAMs by the rule that Yosys maps memories by (`ram`). Look-up
tables and flip-flops are linear in the counts: one set of coefficients for all blocks, and each block's own as far as its points say
something else. The points are committed (`POINTS`, made by `python -m bench.area`); the fit takes milliseconds.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Elaboratable, Fragment, Instance, Shape, UnusedElaboratable
from amaranth.hdl import _ast as ast
from amaranth.hdl._mem import MemoryInstance
from numpy.typing import NDArray

from tellme.golden.arith import ceil_div, ceil_log2
from tellme.golden.boards import BOARDS
from tellme.golden.config import TINY, AcceleratorConfig
from tellme.hw.emit import uncollected
from tellme.hw.primitives import UltraScalePlus
from tellme.hw.synth.inventory import fragments
from tellme.hw.synth.synthesis import GLUE, children

# Blocks are counted by what they hold; those that another's count stands for are never elaborated. For the whole process: Amaranth
# warns where it deletes them.
warnings.filterwarnings("ignore", category=UnusedElaboratable)

POINTS = Path(__file__).parent / "points.json"
"""What `python -m bench.area` wrote: a list of {"config", "counts", "blocks": {name: resources}}, UltraScale+."""

METRICS = ("lut", "ff", "dsp", "ramb36", "uram")

COUNTS = (
    "one", "ff", "add", "compare", "logic", "absorbed", "table", "choose", "enable", "gate", "clear", "lut_ram", "ram_mux",
)  # fmt: skip
"""What is counted of a block for the fit: the block itself, register bits, bits of sums and differences, of comparisons, of other
operators, of those that a sum takes in (its LUTs have inputs left), LUTs of tables of constants, bits of choices (one less than what
is chosen among), of registers that are held, of what is zero unless it is chosen, of constants under a condition, LUTs of memory, and
bits of memory that are chosen among several of its words."""

TAKEN = {"lut": tuple(c for c in COUNTS if c != "lut_ram"), "ff": ("one", "ff")}
"""Counts that a resource follows from. LUTs of memory are counted as they are, and only the others fitted."""

COST = {"lut": 17, "ramb18": 129, "ramb36": 257, "uram": 1024}
"""By which Yosys's memory_libmap weighs a LUT-RAM (14 bits of 32 words, 7 of 64), half and whole block RAMs, and UltraRAM."""

WIDE = 16
"""Bits of both factors together, beyond which a product of two signals becomes a DSP."""

SHIFT = 3
"""Registers in a row that become a shift register (xilinx_srl -minlen)."""

TABLE = 3
"""Cases with constants that are a table."""

ADD, COMPARE = ("+", "-"), ("<", "<=", ">", ">=", "==", "!=")
FREE = ("u", "s", "~", "<<", ">>", "b", "r|", "r&", "r^")
"""Operators that are wiring, or small."""

Resources = dict[str, float]


# ---- counting --------------------------------------------------------------------------------------------------------


_Place = tuple[Any, ...]
"""What is assigned: the same for every statement that assigns it."""


def _place(v: Any) -> _Place:
    if isinstance(v, ast.Slice):
        return (*_place(v.value), v.start, v.stop)
    if isinstance(v, ast.Part):
        return (*_place(v.value), id(v.offset))
    return tuple(x for part in v.parts for x in _place(part)) if isinstance(v, ast.Concat) else (id(v),)


@dataclass
class _Sources:
    """What a signal is assigned: always, under conditions, and constants under conditions."""

    bits: int
    always: int = 0
    chosen: int = 0
    constants: int = 0


def _table(values: Sequence[int], bits: int, inputs: int) -> int:
    """LUTs of a table of constants: of its columns those that are neither constant nor another's (complement)."""
    every = (1 << len(values)) - 1
    columns = set()
    for bit in range(bits):
        column = sum((v >> bit & 1) << i for i, v in enumerate(values))
        columns.add(min(column, every ^ column))
    columns.discard(0)
    return len(columns) << max(0, min(inputs, ceil_log2(len(values)) + 2) - 6)


class _Counter:
    """Walks values and statements, each value once."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._absorbed: set[int] = set()
        self._uses: Counter[int] = Counter()
        self._copies: dict[int, tuple[Any, Any, int]] = {}  # registers, what they take, and when
        self._seen: set[int] = set()
        self._kept: list[Any] = []  # so that no address is used twice

    def value(self, v: Any) -> None:
        stack = [v]
        while stack:
            v = stack.pop()
            if isinstance(v, ast.Signal):
                self._uses[id(v)] += 1
                continue
            if id(v) in self._seen:
                continue
            self._seen.add(id(v))
            self._kept.append(v)
            if isinstance(v, ast.Operator):
                if v.operator == "*":
                    a, b = v.operands
                    constant = isinstance(a, ast.Const) or isinstance(b, ast.Const)
                    self.counts["dsp"] += not constant and len(a) + len(b) > WIDE
                if v.operator in ADD:
                    self.counts["add"] += len(v)
                    self._absorbed |= {id(o) for o in v.operands}
                elif v.operator in COMPARE:
                    self.counts["compare"] += max(len(o) for o in v.operands)
                elif v.operator not in FREE:
                    self.counts["absorbed" if id(v) in self._absorbed else "logic"] += len(v)
                stack += v.operands
            elif isinstance(v, ast.SwitchValue):
                among = sum(not isinstance(value, ast.Const) for _, value in v.cases)
                self.counts["choose"] += len(v) * max(0, among - 1)
                if among == 0:
                    self.counts["table"] += _table([c.value for _, c in v.cases], len(v), len(v.test))
                elif among < len(v.cases):
                    self.counts["gate"] += len(v)
                stack += [v.test, *(value for _, value in v.cases)]
            elif isinstance(v, ast.Part):
                self.counts["choose"] += len(v) * (min(1 << len(v.offset), ceil_div(len(v.value), v.stride)) - 1)
                stack += [v.value, v.offset]
            elif isinstance(v, ast.Slice):
                stack.append(v.value)
            elif isinstance(v, ast.Concat):
                stack += v.parts

    def statements(self, statements: Iterable[Any], registers: bool = False) -> None:
        """registers : of a clock domain, which hold what is not assigned."""
        sources: dict[_Place, _Sources] = {}
        self._walk(statements, registers, 0, sources)
        for found in sources.values():
            among = found.always + found.chosen
            self.counts["choose"] += found.bits * max(0, among - 1)
            if among and not found.always:
                self.counts["enable" if registers else "gate"] += found.bits
            self.counts["clear"] += found.bits * found.constants

    def _walk(self, statements: Iterable[Any], registers: bool, when: int, sources: dict[_Place, _Sources]) -> None:
        """when : stands for the condition that they are under, 0: none."""
        for s in statements:
            if isinstance(s, ast.Assign):
                self.value(s.rhs)
                if registers and isinstance(s.lhs, ast.Signal) and s.lhs.reset_less:
                    self._copies[id(s.lhs)] = s.lhs, s.rhs, when
                found = sources.setdefault(_place(s.lhs), _Sources(len(s.lhs)))
                if when == 0:
                    found.always = 1
                elif not isinstance(s.rhs, ast.Const):
                    found.chosen += 1
            elif isinstance(s, ast.Switch):
                self.value(s.test)
                constants: dict[_Place, dict[int, int]] = {}  # by case
                for i, case in enumerate(s.cases):
                    for x in case[1]:
                        if isinstance(x, ast.Assign) and isinstance(x.rhs, ast.Const):
                            constants.setdefault(_place(x.lhs), {})[i] = x.rhs.value
                    self._walk(case[1], registers, id(case), sources)
                for place, values in constants.items():
                    found = sources[place]
                    if len(values) >= TABLE:
                        found.chosen += 1
                        every = [values.get(i, 0) for i in range(len(s.cases))]
                        self.counts["table"] += _table(every, found.bits, len(s.test))
                    else:
                        found.constants += len(values)

    def shifts(self) -> tuple[int, int]:
        """(Register bits, LUTs) of chains of at least `SHIFT` registers of which only the last is read: shift registers."""
        after = {
            id(source): register
            for register, source, when in self._copies.values()
            if id(source) in self._copies
            and self._copies[id(source)][2] == when
            and self._uses[id(source)] == 1
            and len(source) == len(register)
        }
        followed = {id(register) for register in after.values()}
        bits = luts = 0
        for first, _, _ in self._copies.values():
            if id(first) in followed:
                continue
            length, at = 1, first
            while id(at) in after:
                at = after[id(at)]
                length += 1
            if length >= SHIFT:
                bits += length * len(first)
                luts += ceil_div(length, 32) * len(first)
        return bits, luts


def ram(width: int, depth: int, style: str, *, ultra: bool, registered: bool = True) -> tuple[float, float, float]:
    """(LUTs, RAMB36, URAM288) of a memory with a write and a read port, as Yosys maps it: by its style, else the cheapest."""
    luts = ceil_div(width, 14) if depth <= 32 else ceil_div(width, 7) * ceil_div(depth, 64)
    if style == "distributed" or not registered:
        return 8 * luts, 0, 0
    wide = next((w for w, d in ((72, 512), (36, 1024), (18, 2048), (9, 4096), (4, 8192), (2, 16384)) if depth <= d), 1)
    deep = ceil_div(depth, 32768)
    full, rest = divmod(width, wide)
    half = rest > 0 and 2 * rest <= wide
    whole = deep * (full + (rest > 0 and not half))
    blocks = whole + deep * half / 2
    price = COST["ramb36"] * whole + COST["ramb18"] * deep * half
    # Narrow and deep: several words side by side.
    large = min(ceil_div(width << k, 72) * ceil_div(depth, 4096 << k) for k in range(3))
    if ultra and style != "block" and (style == "ultra" or COST["uram"] * large < min(price, COST["lut"] * luts)):
        return 0, 0, large
    if style in ("ultra", "block") or price < COST["lut"] * luts:
        return 0, blocks, 0
    return 8 * luts, 0, 0


def count(component: Elaboratable, platform: object) -> dict[str, float]:
    """What a block is written of: COUNTS, and dsp, ramb36, uram."""
    c = _Counter()
    registers = ast.SignalSet()
    memory, read = np.zeros(3), 0
    ultra = bool(getattr(platform, "ultra_ram", True))
    for _, part in fragments(Fragment.get(component, platform)):
        if isinstance(part, Instance):
            c.counts["dsp"] += str(part.type).startswith("DSP")
            c.counts["lut_ram"] += 8 * (part.type == "RAM32M16")
        elif isinstance(part, MemoryInstance):
            width, depth = Shape.cast(part._data.shape).width, part._data.depth
            registered = all(p._domain != "comb" for p in part._read_ports)
            if part._write_ports:
                style = str(part._attrs.get("ram_style", ""))
                if (style == "distributed" or not registered) and depth > 64:
                    # A LUT for two of the words; MUXF7 and MUXF8 choose among these.
                    c.counts["ram_mux"] += len(part._read_ports) * width * ceil_div(ceil_div(depth, 64), 2)
                one = ram(width, depth, style, ultra=ultra, registered=registered)
                if one[2] and depth > 4096:
                    c.counts["ram_mux"] += len(part._read_ports) * width * ceil_div(ceil_div(depth, 4096), 2)
                if one[0] and registered:  # what was read is kept beside the LUTs
                    read += len(part._read_ports) * width
                memory += len(part._read_ports) * np.array(one)
            else:
                c.counts["table"] += width * ceil_div(depth, 64)  # a ROM
        else:
            for domain, statements in part.statements.items():
                c.statements(statements, domain != "comb")
                if domain != "comb":
                    for s in statements:
                        registers |= s._lhs_signals()
    counts = {name: float(c.counts[name]) for name in (*COUNTS, "dsp")}
    counts["one"] = 1.0
    shifted, luts = c.shifts()
    counts["ff"] = float(sum(len(s) for s in registers) - shifted + read)
    counts["lut_ram"] += float(memory[0]) + luts
    return {**counts, "ramb36": float(memory[1]), "uram": float(memory[2])}


# ---- blocks of a configuration ---------------------------------------------------------------------------------------

_BEAT = ("ports", "port_bytes")
_PASS = ("lanes", "key_tile", "narrow_cache")
_MAXIMA = ("max_hidden", "max_features", "max_kv_dim", "max_heads", "max_head_dim", "max_context", "max_descriptors")

AFFECTS = {
    "tlmm": (*_BEAT, "lanes", "group_size", "block_rows", "max_features", "weight_format"),
    "elementwise": (*_BEAT, *_PASS, *_MAXIMA, "block_rows", "weight_format", "hadamard"),
    "screened_head": (*_BEAT, "lanes", "block_rows", "screen_entries", *_MAXIMA, "weight_format", "ternary_head"),
    "reader": (*_BEAT, "fifo_beats", "outstanding", "burst_beats"),
    "writer": (*_BEAT, "outstanding", "burst_beats"),
    "program": (*_BEAT, "max_descriptors"),
}
"""Parameters that a block is made of, of those blocks that most configurations share; the others: all but group size, clock and
FIFO."""

WITHOUT = ("name", "group_size", "clock_hz", "fifo_beats")

_counted: dict[tuple[Any, ...], dict[str, float]] = {}
_EVERY = tuple(f for f in AcceleratorConfig.__dataclass_fields__ if f not in WITHOUT)


class _Chip(UltraScalePlus):
    """UltraScale+ with or without UltraRAM. A Zynq-7000 is counted as one without: its DSPs and LUTs are nearly the same."""

    def __init__(self, ultra: bool) -> None:
        self._ultra = ultra

    @property
    def ultra_ram(self) -> bool:
        return self._ultra


def counts(config: AcceleratorConfig, only: Iterable[str] | None = None) -> dict[str, dict[str, float]]:
    """What each block of an accelerator is written of, on its board's chip; kept for blocks of the same parameters.

    Parameters
    ----------
    only : these blocks, if there are such; all if None.
    """
    board = BOARDS.get(config.name)
    chip = _Chip(board is None or board.urams > 0)
    out: dict[str, dict[str, float]] = {}
    parts: Mapping[str, Any] | None = None
    for name in _block_names() if only is None else [n for n in _block_names() if n in only]:
        key = (chip.ultra_ram, name, *(getattr(config, f) for f in AFFECTS.get(name, _EVERY)))
        if key not in _counted:
            with uncollected():
                parts = parts or children(config, chip)
                _counted[key] = count(parts[name], chip)
        out[name] = _counted[key]
    return out


@lru_cache(maxsize=1)
def _block_names() -> tuple[str, ...]:
    return tuple(children(TINY, UltraScalePlus()))


# ---- the fit ---------------------------------------------------------------------------------------------------------

FLOOR = 200.0
"""LUTs or flip-flops that are added to what was measured in the weight of a row: small blocks count less."""


def _least(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Coefficients of at least 0 with a small squared error: those that would be negative are left out one after the other."""
    scale = np.maximum(np.sqrt((x**2).sum(0)), 1e-12)
    a = x / scale
    gram, target = a.T @ a + 1e-6 * np.eye(a.shape[1]), a.T @ y
    taken = np.flatnonzero(np.abs(x).sum(0) > 0)
    w = np.zeros(a.shape[1])
    while len(taken):
        found = np.linalg.solve(gram[np.ix_(taken, taken)], target[taken])
        if found.min() >= 0:
            w[taken] = found
            break
        taken = np.delete(taken, found.argmin())
    return w / scale


@dataclass(frozen=True)
class Point:
    """A synthesised configuration. counts, blocks: what its blocks are written of, and their resources; not all need be there.

    The counts are those of the RTL that was synthesised, so that a point stays true when the RTL changes.
    """

    config: AcceleratorConfig
    counts: dict[str, dict[str, float]]
    blocks: dict[str, dict[str, float]]


def points(path: Path = POINTS) -> list[Point]:
    """The committed points."""
    return [Point(AcceleratorConfig(**p["config"]), p["counts"], p["blocks"]) for p in json.loads(path.read_text())]


@dataclass(frozen=True)
class AreaModel:
    """Fitted coefficients of "lut" and "ff": of all blocks, and of each block that has points."""

    common: dict[str, NDArray[np.float64]]
    own: dict[str, dict[str, NDArray[np.float64]]]
    glue: float
    """LUTs of the top itself."""

    def blocks(self, config: AcceleratorConfig) -> dict[str, Resources]:
        """Resources of each block."""
        out = {name: self.block(name, c) for name, c in counts(config).items()}
        out[GLUE] = {**dict.fromkeys(METRICS, 0.0), "lut": self.glue}
        return out

    def block(self, name: str, c: Mapping[str, float]) -> Resources:
        """Resources of a block from its counts."""
        row = np.array([c[k] for k in COUNTS])
        fitted = {m: float(row @ self.own.get(name, {}).get(m, self.common[m])) for m in ("lut", "ff")}
        fitted["lut"] += c["lut_ram"]
        return {**fitted, **{m: c[m] for m in ("dsp", "ramb36", "uram")}}

    def total(self, config: AcceleratorConfig) -> Resources:
        """Resources of the accelerator."""
        found = self.blocks(config).values()
        return {m: sum(b[m] for b in found) for m in METRICS}


HOLD = 0.03
"""How strongly a block's coefficients are held to those of all blocks."""


def _own(
    x: NDArray[np.float64], y: NDArray[np.float64], weight: NDArray[np.float64], common: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Coefficients of a block: those of all blocks in its measure, as far as its own rows say nothing else."""
    a, b = x * weight[:, None], y * weight
    before = a @ common
    held = common * float(before @ b) / max(1e-12, float(before @ before))
    ties = np.diag(HOLD**0.5 * np.sqrt((a**2).mean(0)))
    return _least(np.vstack([a, ties]), np.concatenate([b, ties @ held]))


def _rows(
    found: Sequence[tuple[NDArray[np.float64], Mapping[str, float]]], metric: str
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Counts that a metric is made of [blocks, COUNTS], what is to be explained by them [blocks], and the weight of each row [blocks]."""
    x, total = np.array([c for c, _ in found]), np.array([r[metric] for _, r in found], np.float64)
    y = total - x[:, COUNTS.index("lut_ram")] if metric == "lut" else total
    return x * np.array([k in TAKEN[metric] for k in COUNTS]), y, 1 / (total + FLOOR)


def fit(known: Sequence[Point]) -> AreaModel:
    """A model of points."""
    rows: dict[str, list[tuple[NDArray[np.float64], Mapping[str, float]]]] = {}
    for p in known:
        for name, c in p.counts.items():
            rows.setdefault(name, []).append((np.array([c[k] for k in COUNTS]), p.blocks[name]))
    every = [row for found in rows.values() for row in found]
    common: dict[str, NDArray[np.float64]] = {}
    own: dict[str, dict[str, NDArray[np.float64]]] = {}
    for metric in ("lut", "ff"):
        x, y, weight = _rows(every, metric)
        common[metric] = _least(x * weight[:, None], y * weight)
        for name, found in rows.items():
            own.setdefault(name, {})[metric] = _own(*_rows(found, metric), common[metric])
    tops = [p.blocks[GLUE]["lut"] for p in known if GLUE in p.blocks]
    return AreaModel(common, own, float(np.mean(tops)) if tops else 0.0)


@lru_cache(maxsize=1)
def model() -> AreaModel:
    """The model of the committed points."""
    return fit(points())


def left_out(known: Sequence[Point]) -> list[dict[str, Any]]:
    """Error of each block of each point, predicted from the other points.

    Returns
    -------
    For each: point (its place in `known`), block, metric, measured, predicted, error (relative), others (points that
    have the block).
    """
    out = []
    for i, p in enumerate(known):
        rest = [*known[:i], *known[i + 1 :]]
        others = fit(rest)
        for name, c in p.counts.items():
            predicted = others.block(name, c)
            for metric in METRICS:
                measured = p.blocks[name][metric]
                error = (predicted[metric] - measured) / measured if measured else float(predicted[metric] > 0)
                out.append(
                    {
                        "point": i, "block": name, "metric": metric, "measured": measured, "predicted": predicted[metric],
                        "error": error, "others": sum(name in q.blocks for q in rest),
                    }
                )  # fmt: skip
    return out
