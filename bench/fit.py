"""Whether the presets of the small boards are inside their chips: `python -m bench.fit [board ...]`.

Yosys maps each block of the top by itself (no logic is shared across blocks, so the sum is on the high side); LUTs of
distributed RAM and shift registers are counted as LUTs. Results: docs/measurements/boards.md.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from amaranth.back import rtlil
from amaranth.hdl._ir import PortDirection
from amaranth.lib.wiring import Out

from golden.boards import BOARDS, ZYNQMP, Board
from hw.platforms import platform_of
from hw.top import Accelerator

LUT_RAM = {
    "RAM32M16": 8, "RAM64M8": 8, "RAM32M": 4, "RAM64M": 4, "RAM32X1D": 2, "RAM64X1D": 2, "RAM128X1D": 4, "RAM256X1D": 8,
    "RAM32X1S": 1, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
}  # fmt: skip
"""LUTs that a primitive occupies (UG474, UG574)."""

SCRIPT = """
read_rtlil top.il
synth_xilinx -family {family} {options} -noiopad -noclkbuf -top tellme -run begin:map_luts
opt_expr -mux_undef -noclkinv
abc -luts 2:2,3,6:5,10,20
clean
xilinx_srl -fixed -minlen 3
techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6
xilinx_dffopt
opt_lut_ins -tech xilinx
clean
tee -q -o stat.json stat -json
"""
# abc in place of synth_xilinx's abc9, which stops with an assertion on this design (Yosys 0.70).

RUN = "import sys\nfrom pyosys import libyosys\nd = libyosys.Design()\n" + (
    "for line in open('script.ys'):\n    line.strip() and libyosys.run_pass(line.strip(), d)\n"
)


def cells(board: Board, folder: Path) -> dict[str, int]:
    """Cells of the whole top by type."""
    top = Accelerator(board.config)
    ports = {
        "_".join(map(str, path)): (value, PortDirection.Output if m.flow is Out else PortDirection.Input)
        for path, m, value in top.signature.flatten(top)
    }
    text = rtlil.convert(top, name="tellme", platform=platform_of(board.config), ports=ports, emit_src=False)
    (folder / "top.il").write_text(text)
    family, options = ("xcup", "-uram" if board.urams else "") if board.ps == ZYNQMP else ("xc7", "")
    (folder / "script.ys").write_text(SCRIPT.format(family=family, options=options))
    with open(folder / "yosys.log", "w") as log:
        subprocess.run([sys.executable, "-c", RUN], cwd=folder, stdout=log, stderr=subprocess.STDOUT, check=True)
    modules = json.loads((folder / "stat.json").read_text())["modules"]
    return count({k.lstrip("\\"): v["num_cells_by_type"] for k, v in modules.items()}, "tellme")


def count(modules: dict[str, dict[str, int]], name: str) -> dict[str, int]:
    """Cells of a module and all below it. (The totals that `stat` gives leave types out; Yosys 0.70.)"""
    total: dict[str, int] = {}
    for cell, n in modules[name].items():
        below = count(modules, cell.lstrip("\\")) if cell.lstrip("\\") in modules else {cell: 1}
        for kind, m in below.items():
            total[kind] = total.get(kind, 0) + n * m
    return total


def resources(found: dict[str, int]) -> dict[str, float]:
    """LUT, FF, BRAM36, URAM and DSP of cells."""
    out = {"lut": 0.0, "ff": 0.0, "bram36": 0.0, "uram": 0.0, "dsp": 0.0}
    for cell, n in found.items():
        if cell.startswith("LUT") and cell[3:].isdigit():
            out["lut"] += n
        elif cell == "INV":
            out["lut"] += n
        elif cell in LUT_RAM:
            out["lut"] += n * LUT_RAM[cell]
        elif cell.startswith("FD"):
            out["ff"] += n
        elif cell.startswith("RAMB36"):
            out["bram36"] += n
        elif cell.startswith("RAMB18"):
            out["bram36"] += n / 2
        elif cell.startswith("URAM"):
            out["uram"] += n
        elif cell.startswith("DSP48"):
            out["dsp"] += n
        elif cell.startswith(("RAM", "SRL")):
            raise ValueError(f"cell {cell} is not counted")
    return out


def main() -> int:
    names = sys.argv[1:] or ["pynq_z2", "ultra96v2"]
    fits = True
    for name in names:
        b, start = BOARDS[name], time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            used = resources(cells(b, Path(folder)))
        has = {"lut": b.luts, "ff": b.ffs, "bram36": b.bram36, "uram": b.urams, "dsp": b.dsps}
        row = ", ".join(f"{k} {used[k]:,.0f} of {has[k]:,} ({used[k] / max(has[k], 1):.0%})" for k in has)
        print(f"{name}: {row}; {time.monotonic() - start:.0f} s", flush=True)
        fits &= all(used[k] <= has[k] for k in has)
    return int(not fits)


if __name__ == "__main__":
    sys.exit(main())
