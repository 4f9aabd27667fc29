"""Designs beside ready-made sets of AXI properties, which whoever has them brings along: `attached.v` connects them by the names of ZipCPU's wb2axip.

How it is called: docs/verilog.md.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from amaranth import Cat, Module, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import TINY
from tellme.golden.registers import ADDRESS_BITS
from tellme.hw import emit
from tellme.hw.control.registers import ControlRegisters
from tellme.hw.memory.axi import ADDRESS_WIDTH, ID_WIDTH, Axi, AxiLite
from tellme.hw.memory.reader import StreamReader
from tellme.hw.memory.writer import BeatWriter
from tellme.hw.primitives import Inferred
from tellme.hw.synth import yosys
from tests.formal.memory import BASE, BEAT, FIRST, WINDOW, _elaborated, scaled, short_queues
from tests.formal.prover import Result, abc

WRAPPER = Path(__file__).with_name("attached.v")


class Port(wiring.Component):
    """The reader and the writer of one memory port, scaled down as in `memory`. `free` : what they are asked, in any cycle anything."""

    def __init__(self) -> None:
        super().__init__({"axi": Out(Axi(data_bytes=BEAT)), "free": In(24)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = scaled()
        with short_queues():
            m.submodules.reader = r = _elaborated(StreamReader(c))
            m.submodules.writer = w = _elaborated(BeatWriter(c))
        free = iter(self.free)

        def take(bits: int) -> Value:
            return Cat(next(free) for _ in range(bits))

        for unit in (r, w):
            m.d.comb += [
                unit.base[0].eq(BASE),
                unit.window_beats.eq(WINDOW),
                unit.timeout.eq(0),
                unit.clear.eq(take(1)),
            ]
            port = unit.m_axi[0]
            for name, member in port.signature.members.items():
                inner, outer = getattr(port, name), getattr(self.axi, name)
                m.d.comb += outer.eq(inner) if member.flow is Out else inner.eq(outer)
        m.d.comb += [
            r.segments.valid.eq(take(1)), r.segments.payload.address.eq(FIRST + take(3)), r.segments.payload.beats.eq(take(3)), r.beats.ready.eq(take(1)),
            w.writes.valid.eq(take(1)), w.writes.payload.address.eq(FIRST + take(3)), w.writes.payload.data.eq(take(1)), w.writes.payload.strobe.eq(take(2)), w.more.eq(take(1)),
        ]  # fmt: skip
        return m


class Registers(wiring.Component):
    """The registers of the tiny preset. `free` : what locks them."""

    def __init__(self) -> None:
        super().__init__({"axi": In(AxiLite(address_width=ADDRESS_BITS)), "free": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.registers = r = ControlRegisters(TINY)
        wiring.connect(m, wiring.flipped(self.axi), r.bus)
        m.d.comb += r.locked.eq(self.free)
        return m


def prove_attached(
    master: bool,
    module: str,
    sources: Sequence[Path],
    *,
    parameters: str = "",
    depth: int | None = None,
    seconds: float = 600,
) -> Result:
    """Proves a set of properties of a design: of an AXI4 master, or of an AXI4-Lite slave. What the set assumes of the other side is assumed.

    Parameters
    ----------
    module : of the properties. sources : Verilog files that it is in. parameters : more of its parameters, as in "#(...)".
    depth : cycles from the start; None: without bound.

    Raises
    ------
    SynthesisError : Yosys cannot read the sources.
    """
    begin = time.monotonic()
    design = Port() if master else Registers()
    address, width = (ADDRESS_WIDTH, 8 * BEAT) if master else (ADDRESS_BITS, 32)
    with tempfile.TemporaryDirectory(prefix="tellme-formal-") as name:
        folder = Path(name)
        (folder / "design.v").write_text(
            emit.to_readable_verilog(design, "design", Inferred(ultra_ram=True), separator="_")
        )
        given = f", {parameters}" if parameters else ""
        defines = {
            "PROPERTIES": module,
            "PARAMETERS": given,
            "FREE": len(design.free),
            "ADDRESS_BITS": address,
            "DATA_BITS": width,
            "ID_BITS": ID_WIDTH,
        }
        head = "".join(f"`define {k} {v}\n" for k, v in defines.items()) + ("`define MASTER\n" if master else "")
        (folder / "attached.v").write_text(head + WRAPPER.read_text())
        files = [str(s.resolve()) for s in sources]
        yosys.run(
            [
                "read_verilog -sv design.v",
                *(f'read_verilog -sv -formal "{f}"' for f in files),
                "read_verilog -sv -formal attached.v",
                "hierarchy -check -top attached",
                "proc",
                "flatten",
                "memory -nordff",
                "opt -full -nodffe -nosdff",
                "chformal -cover -remove",
                "async2sync",
                "techmap",
                "opt -fast -nodffe -nosdff",
                "dffunmap",
                "setundef -init -zero",
                "setundef -undriven -zero",
                "aigmap",
                "opt_clean",
                "write_aiger -zinit attached.aig",
            ],
            folder,
        )
        engine = f"bmc3 -F {depth} -T {seconds:.0f}" if depth else f"pdr -T {seconds:.0f}"

        def ask(simplified: str) -> tuple[str, int, int]:
            script = f"read_aiger attached.aig; fold; orpos; strash; {simplified} print_stats; {engine}; print_status"
            done = subprocess.run(
                [abc(), "-c", script], cwd=folder, capture_output=True, text=True, timeout=seconds + 300
            )
            text = done.stdout + done.stderr
            counted = re.search(r"i/o =\s*(\d+)/\s*\d+\s+lat =\s*(\d+)", text)
            return (text, int(counted[1]), int(counted[2])) if counted else (text, 0, 0)

        out, inputs, registers = ask("scorr; dc2;")
        if not registers:  # the engines say nothing of a circuit that was simplified to none
            out, inputs, registers = ask("")
    took = time.monotonic() - begin
    if found := re.search(r"was asserted in frame (\d+)", out):
        return Result(False, bool(depth), depth or 0, took, f"a property of {module}", int(found[1]), registers, inputs)
    if re.search(r"^Property proved", out, re.MULTILINE) and "Status = 1" in out:
        return Result(True, False, 0, took, registers=registers, inputs=inputs)
    if depth and (found := re.search(r"No output asserted in (\d+) frames", out)):
        return Result(int(found[1]) >= depth, True, int(found[1]), took, registers=registers, inputs=inputs)
    return Result(False, bool(depth), 0, took, f"undecided: {out.strip().splitlines()[-6:]}", 0, registers, inputs)
