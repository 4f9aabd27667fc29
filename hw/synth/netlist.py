"""A mapped netlist, from Yosys's JSON: its modules joined and flattened, its cells counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

CONSTANT = -1
"""The net of a bit that is tied to 0, 1 or x."""


class Cell(NamedTuple):
    """A cell of the flattened netlist. ports: nets of each port, bit 0 first."""

    name: str
    type: str
    block: str
    parameters: dict[str, str]
    ports: dict[str, list[int]]
    outputs: dict[str, list[int]]


LUT_MEMORY = {
    "RAM32M16": 8, "RAM64M8": 8, "RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM256X1D": 8,
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8, "RAM32X16DR8": 8, "RAM64X8SW": 8,
    "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
}  # fmt: skip
"""LUTs that a memory primitive occupies (AMD UG474, UG574, UG974)."""


@dataclass(frozen=True)
class Resources:
    """Primitives of a netlist. ramb36 counts two RAMB18 as one; lut is lut_logic + lut_memory."""

    lut_logic: int = 0
    lut_memory: int = 0
    ff: int = 0
    carry: int = 0
    dsp: int = 0
    ramb36: float = 0
    uram: int = 0

    @property
    def lut(self) -> int:
        return self.lut_logic + self.lut_memory

    def __add__(self, other: Resources) -> Resources:
        return Resources(*(getattr(self, f) + getattr(other, f) for f in self.__dataclass_fields__))

    def record(self) -> dict[str, float]:
        """For JSON."""
        return {
            "lut_logic": self.lut_logic,
            "lut_memory": self.lut_memory,
            "lut": self.lut,
            "ff": self.ff,
            "carry": self.carry,
            "dsp": self.dsp,
            "ramb36": self.ramb36,
            "uram": self.uram,
        }


def count(types: Counter[str]) -> Resources:
    """Resources of cells by type, as primitives of AMD's 7 series and UltraScale+. CARRY8 counts as two CARRY4.

    Raises
    ------
    ValueError : a primitive that it does not know: nothing is left out silently.
    """
    n: dict[str, float] = dict.fromkeys(Resources.__dataclass_fields__, 0)
    for name, k in types.items():
        if re.fullmatch(r"LUT[1-6]|INV", name):
            n["lut_logic"] += k
        elif name in LUT_MEMORY:
            n["lut_memory"] += k * LUT_MEMORY[name]
        elif re.fullmatch(r"FD[RSCP]E", name):
            n["ff"] += k
        elif name in ("CARRY4", "CARRY8"):
            n["carry"] += k * (1 if name == "CARRY4" else 2)
        elif name in ("DSP48E1", "DSP48E2"):
            n["dsp"] += k
        elif re.fullmatch(r"RAMB(36|18)E[12]", name):
            n["ramb36"] += k if name.startswith("RAMB36") else k / 2
        elif name == "URAM288":
            n["uram"] += k
        elif not re.fullmatch(r"MUXF[789]|GND|VCC|BUF", name):
            raise ValueError(f"{k} cells of the unknown type {name}: is it mapped to AMD primitives?")
    return Resources(**{k: v if k == "ramb36" else int(v) for k, v in n.items()})


@dataclass
class Netlist:
    """Flat cells, and what is needed to name a net.

    nets: how many. inputs, outputs: nets of the top's ports. names: of nets that have one in the source, with blocks.
    """

    nets: int = 0
    cells: list[Cell] = field(default_factory=list)
    inputs: dict[int, str] = field(default_factory=dict)
    outputs: dict[int, str] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)

    def resources(self) -> dict[str, Resources]:
        """Of each block."""
        by_block: dict[str, Counter[str]] = {}
        for cell in self.cells:
            by_block.setdefault(cell.block, Counter())[cell.type] += 1
        return {block: count(types) for block, types in by_block.items()}


def flatten(files: Iterable[Path], top: str, *, glue: str = "top") -> Netlist:
    """Reads netlists that together hold all modules, and joins them under `top`.

    Parameters
    ----------
    files : JSON of Yosys's write_json.
    top : module at the top. Cells of its direct instances belong to a block of the instance's name, its own cells to
        the block `glue`. Of its blocks those that the files have as black boxes only are left out.

    Raises
    ------
    ValueError : a module is missing.
    """
    modules: dict[str, Any] = {}
    elsewhere: set[str] = set()
    for path in files:
        for name, module in json.loads(path.read_text())["modules"].items():
            if not int(module["attributes"].get("blackbox", "0"), 2):
                modules[name] = module
            elif name.startswith(f"{top}."):
                elsewhere.add(name)
    elsewhere -= modules.keys()
    if top not in modules:
        raise ValueError(f"the netlist has no module {top!r}; it has {', '.join(sorted(modules))}")
    parent: list[int] = []

    def find(n: int) -> int:
        while parent[n] != n:
            parent[n] = parent[parent[n]]
            n = parent[n]
        return n

    raw: list[Cell] = []
    names: list[tuple[int, str]] = []
    ports: list[tuple[int, str, str]] = []

    def place(name: str, path: str, block: str, outside: dict[str, list[int]]) -> None:
        module = modules[name]
        base = len(parent)
        bits = [b for n in module["netnames"].values() for b in n["bits"]]
        bits += [b for c in module["cells"].values() for p in c["connections"].values() for b in p]
        bits += [b for p in module["ports"].values() for b in p["bits"]]
        highest = max((b for b in bits if isinstance(b, int)), default=0)
        parent.extend(range(base, base + highest + 1))

        def nets(local: list[Any]) -> list[int]:
            return [base + b if isinstance(b, int) else CONSTANT for b in local]

        for port, p in module["ports"].items():
            inner = nets(p["bits"])
            if path == "":
                ports.extend((n, port, p["direction"]) for n in inner if n != CONSTANT)
            for a, b in zip(inner, outside.get(port, []), strict=False):
                if a != CONSTANT and b != CONSTANT:
                    parent[find(a)] = find(b)
        for net, n in module["netnames"].items():
            if not n.get("hide_name"):
                for i, b in enumerate(n["bits"]):
                    if isinstance(b, int):
                        index = f"[{i + n.get('offset', 0)}]" if len(n["bits"]) > 1 else ""
                        names.append((base + b, f"{path}{net}{index}"))
        for cell, c in module["cells"].items():
            if c["type"] == "$scopeinfo" or c["type"] in elsewhere:
                continue
            connected = {p: nets(b) for p, b in c["connections"].items()}
            if c["type"] in modules:
                plain = re.sub(r"\$\d+$", "", cell)
                place(c["type"], f"{path}{plain}.", block if path else plain, connected)
                continue
            driven = {p: n for p, n in connected.items() if c["port_directions"][p] != "input"}
            read = {p: n for p, n in connected.items() if p not in driven}
            raw.append(Cell(f"{path}{cell}", c["type"], block, c.get("parameters", {}), read, driven))

    place(top, "", glue, {})
    number: dict[int, int] = {}

    def net(n: int) -> int:
        if n == CONSTANT:
            return CONSTANT
        root = find(n)
        return number.setdefault(root, len(number))

    out = Netlist()
    for c in raw:
        read = {p: [net(n) for n in ns] for p, ns in c.ports.items()}
        out.cells.append(c._replace(ports=read, outputs={p: [net(n) for n in ns] for p, ns in c.outputs.items()}))
    for n, name in names:
        k = net(n)
        if k not in out.names or _better(name, out.names[k]):
            out.names[k] = name
    for n, name, direction in ports:
        (out.inputs if direction == "input" else out.outputs)[net(n)] = name
    out.nets = len(number)
    return out


def _better(name: str, old: str) -> bool:
    """Whether a name says more: one from further inside a block, and then a shorter one."""
    return (-name.count("."), len(name)) < (-old.count("."), len(old))
