"""Logic levels between registers of a mapped netlist.

What a path costs, in LUT levels: a LUT 1, a LUT-RAM's read 1 (it is a LUT), MUXF7..9 nothing (inside the slice of
their LUTs, no routing), a carry chain 2 up to 32 bits between its entry and its exit and in proportion beyond, besides
the LUTs in front of it. In a DSP48E1 or DSP48E2 the multiplier costs 3 and the adder 2, up to the next register that is
switched on inside. Registers, block RAM, UltraRAM, the registers of a DSP48E1 or DSP48E2 and shift registers begin and end paths;
so do the ports of the top, as their other side is a register.

A path out of a RAM begins with its clock-to-out: 4 levels from an UltraRAM and 3 from a block RAM (public timing reports
of the K26: 1.6 to 1.7 ns and 1.2 ns, at 0.4 ns a level with its routing), 1 where the primitive's output register is
used (OREG_A, OREG_B; DOA_REG, DOB_REG; DO_REG): what is left is the way out of the column. Yosys maps no output registers: a
register behind a RAM stays in the fabric, so that its path counts 4 or 3 levels here, and less once Vivado has moved it in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tellme.hw.synth.netlist import CONSTANT, Cell, Netlist

CLOCKS = {"C", "CLK", "WCLK", "CLKARDCLK", "CLKBWRCLK"}
"""Pins that are no ends of paths. (C of a DSP48 is data; its clock is not among what `_dsp_inputs` gives.)"""

DSP = ("DSP48E1", "DSP48E2")

CARRY_LEVELS, CARRY_BITS = 2, 32
MULTIPLIER_LEVELS, ADDER_LEVELS = 3, 2

ULTRA_RAM_LEVELS, BLOCK_RAM_LEVELS, OUTPUT_REGISTER_LEVELS = 4, 3, 1
"""Clock-to-out of a RAM without, and of any RAM with its output register."""


@dataclass(frozen=True)
class Path:
    """A longest path: its levels, where it begins and ends (blocks), and the nets on its way, from its start."""

    levels: float
    source: str
    block: str
    nets: tuple[str, ...]


class LevelError(ValueError):
    """The netlist has a combinational loop, or a cell whose timing is unknown."""


def _carry_cost(bits: int) -> float:
    return max(float(CARRY_LEVELS), CARRY_LEVELS * bits / CARRY_BITS)


class Levels:
    """Longest paths of a netlist, in one topological walk over its cells."""

    def __init__(self, netlist: Netlist) -> None:
        self._netlist = netlist
        n = netlist.nets
        self.arrival = [0.0] * n
        """Levels from the registers to each net."""
        self._before = [-1] * n
        self._source = [""] * n
        self._chains: dict[int, list[tuple[float, int, int]]] = {}
        self.ends: list[tuple[float, int, str, str]] = []
        """(levels, net, block, pin) of each end of a path; levels include those between the pin and its register."""
        self._walk()

    def longest(self, blocks: set[str] | None = None) -> dict[str, Path]:
        """The longest path that ends in each block. Blocks without a register are left out."""
        best: dict[str, tuple[float, int, str, str]] = {}
        for end in self.ends:
            if end[2] not in best or end[0] > best[end[2]][0]:
                best[end[2]] = end
        return {b: self._path(end) for b, end in best.items() if blocks is None or b in blocks}

    def worst(self, n: int, block: str | None = None) -> list[Path]:
        """The n longest paths, at most one for each register name they end at."""
        found: list[Path] = []
        seen: set[str] = set()
        for end in sorted(self.ends, key=lambda e: -e[0]):
            if block is not None and end[2] != block:
                continue
            path = self._path(end)
            stem = "".join(c for c in path.nets[-1] if not c.isdigit())
            if stem not in seen:
                seen.add(stem)
                found.append(path)
            if len(found) == n:
                break
        return found

    def _path(self, end: tuple[float, int, str, str]) -> Path:
        levels, net, block, pin = end
        nets = []
        while net >= 0:
            nets.append(net)
            net = self._before[net]
        names = self._netlist.names
        shown = [names[k] for k in reversed(nets) if k in names]
        return Path(round(levels, 2), self._source[nets[-1]], block, (*shown, f"-> {pin}"))

    # ---- the walk

    def _walk(self) -> None:
        cells = self._netlist.cells
        arcs: list[tuple[Cell, list[int], list[int]]] = []
        waiting: list[int] = []
        readers: dict[int, list[int]] = {}
        driven = bytearray(self._netlist.nets)
        for cell in cells:
            for inputs, outputs in self._arcs(cell):
                k = len(arcs)
                arcs.append((cell, inputs, outputs))
                for o in outputs:
                    driven[o] = 1
                distinct = {i for i in inputs if i != CONSTANT}
                waiting.append(len(distinct))
                for i in distinct:
                    readers.setdefault(i, []).append(k)
        ready = [k for k, w in enumerate(waiting) if w == 0]
        for net in readers:
            if not driven[net]:
                for k in readers[net]:
                    waiting[k] -= 1
                    if waiting[k] == 0:
                        ready.append(k)
        done = 0
        while ready:
            k = ready.pop()
            done += 1
            cell, inputs, outputs = arcs[k]
            self._evaluate(cell, inputs, outputs)
            for o in outputs:
                for r in readers.get(o, ()):
                    waiting[r] -= 1
                    if waiting[r] == 0:
                        ready.append(r)
        if done != len(arcs):
            stuck = next(arcs[k][0].name for k, w in enumerate(waiting) if w)
            raise LevelError(f"combinational loop through {stuck}")
        for cell in cells:
            self._finish(cell)
        for net, name in self._netlist.outputs.items():
            if net != CONSTANT:
                self.ends.append((self.arrival[net], net, "ports", name))
        for net in self._netlist.inputs:
            if net != CONSTANT:
                self._source[net] = "ports"

    def _arcs(self, cell: Cell) -> list[tuple[list[int], list[int]]]:
        """Combinational parts of a cell: nets read, nets driven. Marks the sources of paths."""
        t, p, out = cell.type, cell.ports, cell.outputs
        everything = [n for ns in p.values() for n in ns]
        driven = [n for ns in out.values() for n in ns]
        if t.startswith(("LUT", "MUXF", "INV", "BUF")):
            return [(everything, driven)]
        if t in ("CARRY4", "CARRY8"):
            return [(everything, driven)]
        for n in driven:
            self._source[n] = cell.block
        if t.startswith(("RAMB", "URAM")):
            for port, nets in out.items():
                levels = _clock_to_out(cell, port)
                for n in nets:
                    self.arrival[n] = levels
            return []
        if t.startswith(("FD", "GND", "VCC")):
            return []
        if t.startswith("SRL"):
            return [(p["A"] if "A" in p else [n for k, ns in p.items() if k.startswith("A") for n in ns], driven)]
        if t in ("RAM32M16", "RAM64M8", "RAM32M", "RAM64M"):
            return [(p[f"ADDR{letter[2]}"], nets) for letter, nets in out.items()]
        if t in ("RAM32X1D", "RAM64X1D", "RAM128X1D", "RAM256X1D"):
            low = [n for k, ns in p.items() if k.startswith("A") for n in ns]
            high = [n for k, ns in p.items() if k.startswith("DPRA") for n in ns]
            return [(low, out.get("SPO", [])), (high, out.get("DPO", []))]
        if t in ("RAM32X1S", "RAM64X1S", "RAM128X1S", "RAM256X1S", "RAM512X1S", "RAM32X16DR8", "RAM64X8SW"):
            return [([n for k, ns in p.items() if k.startswith(("A", "R")) for n in ns], driven)]
        if t in DSP:
            if _on(cell, "PREG"):
                return []
            for n in driven:  # from the last register inside
                self.arrival[n] = ADDER_LEVELS + (0 if _on(cell, "MREG") else MULTIPLIER_LEVELS)
            inputs = [n for k, _, ns in self._dsp_inputs(cell) for n in ns if k is not None]
            return [(inputs, driven)]
        raise LevelError(f"{cell.name}: the levels of a {t} are not known")

    def _evaluate(self, cell: Cell, inputs: list[int], outputs: list[int]) -> None:
        t = cell.type
        if t.startswith("CARRY"):
            self._carry(cell)
            return
        if t in DSP:
            delays = {n: k for k, _, ns in self._dsp_inputs(cell) if k is not None for n in ns}
            pairs = [(self.arrival[n] + d, n) for n, d in delays.items() if n != CONSTANT]
        else:
            cost = 0 if t.startswith(("MUXF", "BUF")) else 1
            pairs = [(self.arrival[n] + cost, n) for n in inputs if n != CONSTANT]
        if not pairs:
            return
        at, before = max(pairs)
        for o in outputs:
            self._reach(o, at, before)

    def _reach(self, net: int, at: float, before: int) -> None:
        if net != CONSTANT and at >= self.arrival[net]:
            self.arrival[net] = at
            self._before[net] = before

    def _carry(self, cell: Cell) -> None:
        """Bit by bit; a chain's entries stay open (arrival, bits, net) until it is left."""
        p, o = cell.ports, cell.outputs
        entries: list[tuple[float, int, int]] = []
        for port in ("CI", "CI_TOP", "CYINIT"):
            for net in p.get(port, []):
                if net in self._chains:
                    entries += self._chains[net]
                elif net != CONSTANT:
                    entries.append((self.arrival[net], 0, net))
        for bit in range(len(p["S"])):
            entries = [(a, bits + 1, net) for a, bits, net in entries]
            fresh = [p[port][bit] for port in ("S", "DI")]
            entries += [(self.arrival[net], 1, net) for net in fresh if net != CONSTANT]
            entries = _undominated(entries)
            if not entries:
                continue
            at, before = max((a + _carry_cost(bits), net) for a, bits, net in entries)
            for port in ("O", "CO"):
                if port in o:
                    net = o[port][bit]
                    self._reach(net, at, before)
                    if port == "CO" and net != CONSTANT:
                        self._chains[net] = entries

    # ---- ends

    def _finish(self, cell: Cell) -> None:
        t = cell.type
        if t.startswith(("FD", "RAMB", "URAM", "SRL")):
            pins = [(0.0, k, ns) for k, ns in cell.ports.items() if not (t.startswith("SRL") and k.startswith("A"))]
        elif t.startswith("RAM"):
            pins = [(0.0, k, ns) for k, ns in cell.ports.items() if k.startswith(("D", "A", "W"))]
        elif t in DSP:
            pins = [(d, k, ns) for comb, (k, d), ns in self._dsp_inputs(cell) if comb is None or _on(cell, "PREG")]
        else:
            return
        name = self._output_name(cell)
        for delay, pin, nets in pins:
            for net in nets:
                if net != CONSTANT and (pin not in CLOCKS or t in DSP):
                    self.ends.append((self.arrival[net] + delay, net, cell.block, f"{name}.{pin}"))

    def _output_name(self, cell: Cell) -> str:
        for nets in cell.outputs.values():
            for n in nets:
                if n in self._netlist.names:
                    return self._netlist.names[n]
        return cell.name

    @staticmethod
    def _dsp_inputs(cell: Cell) -> list[tuple[int | None, tuple[str, float], list[int]]]:
        """Inputs of a DSP48E1 or DSP48E2: (levels to P, None if a register is on the way; (pin, levels to that register); nets)."""
        found: list[tuple[int | None, tuple[str, float], list[int]]] = []
        multiplies = "MULT" in cell.parameters.get("USE_MULT", "MULTIPLY")
        final = 0 if not _on(cell, "PREG") else None
        for pin, nets in cell.ports.items():
            if pin in ("A", "B", "D", "ACIN", "BCIN"):
                first = {"A": "AREG", "ACIN": "AREG", "B": "BREG", "BCIN": "BREG", "D": "DREG"}[pin]
                if _on(cell, first):
                    found.append((None, (pin, 0), nets))
                elif multiplies and _on(cell, "MREG"):
                    found.append((None, (pin, MULTIPLIER_LEVELS), nets))
                else:
                    levels = (MULTIPLIER_LEVELS if multiplies else 0) + ADDER_LEVELS
                    found.append((levels if final is not None else None, (pin, levels), nets))
            elif pin in ("C", "PCIN", "CARRYIN", "OPMODE", "ALUMODE", "INMODE", "CARRYINSEL", "CARRYCASCIN"):
                register = {"CARRYIN": "CARRYINREG", "CARRYINSEL": "CARRYINSELREG"}.get(pin, f"{pin}REG")
                if pin not in ("PCIN", "CARRYCASCIN") and _on(cell, register):
                    found.append((None, (pin, 0), nets))
                else:
                    found.append((ADDER_LEVELS if final is not None else None, (pin, ADDER_LEVELS), nets))
            elif pin.startswith(("CE", "RST")):
                found.append((None, (pin, 0), nets))
        return found


def _on(cell: Cell, register: str) -> bool:
    """Whether a register of a DSP48E1 or DSP48E2 is used (the primitive's default is 1)."""
    value = cell.parameters.get(register, "1")
    return any(c == "1" for c in value)


def _clock_to_out(cell: Cell, port: str) -> float:
    """Levels from the clock to an output of a block RAM or UltraRAM.

    An output belongs to port B if its name says so (DOUTBDOUT, DOUT_B), else to port A; so do its cascade, error and parity
    bits. Without a parameter the primitive's default holds (UG974, UG953): E2 registered, E1 and UltraRAM not.
    """
    ultra = cell.type.startswith("URAM")
    letter = "B" if re.search(r"_B$|^CAS\w*B$|^DO(UT)?P?B", port) else "A"
    if ultra:
        value = cell.parameters.get(f"OREG_{letter}", "FALSE")
    else:
        default = "1" if cell.type.endswith("E2") else "0"
        value = cell.parameters.get(f"DO{letter}_REG", cell.parameters.get("DO_REG", default))
    if value.strip().upper() == "TRUE" or "1" in value:
        return OUTPUT_REGISTER_LEVELS
    return ULTRA_RAM_LEVELS if ultra else BLOCK_RAM_LEVELS


def _undominated(entries: list[tuple[float, int, int]]) -> list[tuple[float, int, int]]:
    """Of several ways into a chain, those that may still be the longest further on."""
    best: dict[float, tuple[float, int, int]] = {}
    for e in entries:
        if e[0] not in best or e[1] > best[e[0]][1]:
            best[e[0]] = e
    kept: list[tuple[float, int, int]] = []
    for e in sorted(best.values(), key=lambda e: -e[0]):
        if not kept or e[1] > kept[-1][1]:
            kept.append(e)
    return kept
