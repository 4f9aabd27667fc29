"""Proofs of what benches claim: Amaranth to RTLIL, Yosys to AIGER, and the model checker ABC that lies in the pyosys package.

A bench is a component with `claims`, each a signal that must be 1 in every cycle, whatever its inputs do as long as every signal of `assumed` has
been 1 so far. What is claimed is written beside the design, never in it. `pdr` proves without bound; `bmc3` looks at the first `depth` cycles.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amaranth import Cat, ClockDomain, Module, Signal, Value
from amaranth.hdl._ir import PortDirection

from tellme.hw.emit import to_rtlil
from tellme.hw.synth import yosys


class Monitor:
    """Where a bench writes down its claims and assumptions."""

    def __init__(self, m: Module):
        self.m = m
        self.claims: dict[str, Signal] = {}
        self.assumed: list[Signal] = []

    def claim(self, name: str, condition: Any) -> None:
        """`condition` is to be 1 in every cycle."""
        signal = Signal(name=f"claim_{len(self.claims)}")
        self.m.d.comb += signal.eq(Value.cast(condition).bool())
        self.claims[name] = signal

    def assume(self, condition: Any) -> None:
        """What the surroundings do: `condition` is 1 in every cycle."""
        signal = Signal(name=f"assumed_{len(self.assumed)}")
        self.m.d.comb += signal.eq(condition)
        self.assumed.append(signal)


class Bench(ABC):
    """A design among its surroundings. Subclasses connect it, and claim and assume, in `build`; what is `free` may be anything in any cycle.

    Parameters
    ----------
    arbitrary : registers begin with any contents, and a reset of one cycle comes first. Without it they begin as a bitstream leaves them.
    """

    name = "bench"

    def __init__(self, *, arbitrary: bool = False):
        self.arbitrary = arbitrary
        self._inputs: dict[str, Signal] = {}

    def free(self, width: int, name: str) -> Signal:
        """An input that may have any value in any cycle."""
        self._inputs[name] = Signal(width, name=name)
        return self._inputs[name]

    @abstractmethod
    def build(self, m: Module, monitor: Monitor) -> None:
        """Connects the design and says what is claimed and assumed."""

    def rtlil(self, only: Sequence[str] = ()) -> tuple[str, list[str]]:
        """The bench as RTLIL, with an output for each claim (of `only`, if any are named), 1 where it is broken; and the claims' names."""
        self._inputs.clear()
        m = Module()
        m.domains.sync = sync = ClockDomain("sync")
        m.domains.always = always = ClockDomain("always", reset_less=True)
        clock, begun = Signal(name="clk"), Signal(name="begun")
        m.d.comb += [always.clk.eq(clock), sync.clk.eq(clock), sync.rst.eq(~begun if self.arbitrary else 0)]
        m.d.always += begun.eq(1)
        monitor = Monitor(m)
        self.build(m, monitor)
        # What was assumed in every cycle so far, this one included.
        held, broken = Signal(init=1), Signal()
        m.d.comb += broken.eq(~(held & (Cat(monitor.assumed).all() if monitor.assumed else 1)))
        m.d.sync += held.eq(~broken)
        claims = {name: s for name, s in monitor.claims.items() if not only or name in only}
        assert claims, f"{self.name} has no claim of these: {list(only)}"
        bad = Signal(len(claims), name="bad")
        running = begun if self.arbitrary else 1
        m.d.comb += bad.eq(Cat(~s for s in claims.values()) & (~broken & running).replicate(len(bad)))
        ports = {"clk": (clock, PortDirection.Input), "bad": (bad, PortDirection.Output)}
        ports |= {name: (signal, PortDirection.Input) for name, signal in self._inputs.items()}
        return to_rtlil(m, "top", ports=ports), list(claims)


@dataclass(frozen=True)
class Result:
    """What the model checker says: `proved` without bound or up to `depth`; or a claim that breaks in cycle `cycle`."""

    proved: bool
    bounded: bool
    depth: int
    seconds: float
    broken: str = ""
    cycle: int = 0
    registers: int = 0
    inputs: int = 0

    @property
    def undecided(self) -> bool:
        """Whether time ran out before a claim was proved or broken; `depth` cycles have been looked at."""
        return not self.proved and (not self.broken or self.broken.startswith("undecided"))


def abc() -> Path:
    """The model checker.

    Raises
    ------
    RuntimeError : the pyosys package is not installed, or has none.
    """
    spec = importlib.util.find_spec("pyosys")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("proofs need the pyosys package, which has the model checker; install the synthesis extra")
    path = Path(next(iter(spec.submodule_search_locations))) / "yosys-abc"
    if not path.exists():
        raise RuntimeError(f"{path} is not there: this pyosys has no model checker; install pyosys 0.70")
    return path


def prove(bench: Bench, *, seconds: float = 600, depth: int | None = None, only: Sequence[str] = ()) -> Result:
    """Proves a bench's claims, without bound if `depth` is None, else for that many cycles.

    Parameters
    ----------
    seconds : wall clock after which the model checker gives up.
    only : names of the claims to prove; all if empty.
    """
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tellme-formal-") as name:
        folder = Path(name)
        text, claims = bench.rtlil(only)
        (folder / "bench.il").write_text(text)
        # A bitstream leaves zeros where nothing else is said; memories, too.
        begins = ["setattr -unset init w:* w:*begun* %d"] if bench.arbitrary else ["setundef -init -zero"]
        yosys.run(
            [
                "read_rtlil bench.il",
                "hierarchy -top top",
                "proc",
                "flatten",
                "memory -nordff",
                "opt -full -nodffe -nosdff",
                "techmap",
                "opt -fast -nodffe -nosdff",
                "dffunmap",
                *begins,
                "opt_clean",
                "setundef -undriven -zero",
                "aigmap",
                "opt_clean",
                "write_aiger -zinit bench.aig",
            ],
            folder,
        )

        def ask(script: str, limit: float) -> str:
            done = subprocess.run(
                [abc(), "-c", script], cwd=folder, capture_output=True, text=True, timeout=limit + 120
            )
            return done.stdout + done.stderr

        engine = f"bmc3 -F {depth} -T {seconds:.0f}" if depth else f"pdr -T {seconds:.0f}"
        out = ask(f"read_aiger bench.aig; orpos; strash; scorr; dc2; print_stats; {engine}; print_status", seconds)
        counted = re.search(r"i/o =\s*(\d+)/\s*\d+\s+lat =\s*(\d+)", out)
        inputs, registers = (int(counted[1]), int(counted[2])) if counted else (0, 0)
        if counted and not registers:
            # The engines say nothing of a circuit without registers. What is left of a proof is the constant 0.
            ask("read_aiger bench.aig; orpos; strash; scorr; dc2; write_aiger left.aig", seconds)
            head, literal = (folder / "left.aig").read_bytes().split(b"\n")[:2]
            if head.split()[-1] == b"0" and literal == b"0":
                return Result(True, False, 0, time.monotonic() - begin, registers=0, inputs=inputs)
            out = ask(f"read_aiger bench.aig; orpos; strash; pdr -T {seconds:.0f}; print_status", seconds)
        if found := re.search(r"was asserted in frame (\d+)", out):
            cycle = int(found[1])
            which = ask(f"read_aiger bench.aig; strash; bmc3 -F {cycle + 1}", seconds)
            broken = re.search(r"Output (\d+) of miter", which)
            name = claims[int(broken[1])] if broken else "one of the claims"
            return Result(False, bool(depth), depth or 0, time.monotonic() - begin, name, cycle, registers, inputs)
    took = time.monotonic() - begin
    if re.search(r"^Property proved", out, re.MULTILINE) and "Status = 1" in out:
        return Result(True, False, 0, took, registers=registers, inputs=inputs)
    if depth and (found := re.search(r"No output asserted in (\d+) frames", out)):
        return Result(int(found[1]) >= depth, True, int(found[1]), took, registers=registers, inputs=inputs)
    return Result(False, bool(depth), 0, took, f"undecided: {out.strip().splitlines()[-3:]}", 0, registers, inputs)
