"""Every test of a form of primitives, on AMD's own models; and our models against them, clock by clock.

    make unisims UNISIMS=DIR

DIR: data/verilog/src of a Vivado installation, or a checkout of github.com/Xilinx/XilinxUnisimLibrary. Writes
docs/measurements/unisims.md. Nothing of the models is copied into the project (`sim.models`).
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tellme.sim.models import OURS, UNISIMS, ModelError, unisim, unisims_folder
from tellme.sim.runner import SimulationError
from tests.primitives.bench import (
    CYCLES,
    Part,
    build_bench,
    compare,
    drawn_modes,
    dsp_bench,
    ram_bench,
    trap,
    uram_bench,
    used_modes,
)

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "measurements" / "unisims.md"

TESTS = {
    "multipliers and their cascades": "tests/fp/test_dsp.py::test_multipliers_of_primitives_are_those_of_plain_logic",
    "floating-point units": "tests/fp/test_units.py::test_every_unit_equals_golden_bit_for_bit[primitives]",
    "TLMM engine, tables of groups of 3": "tests/tlmm/test_engine.py::test_tables_of_primitives_are_exact[tiny]",
    "TLMM engine, tables of groups of 2": "tests/tlmm/test_engine.py::test_tables_of_primitives_are_exact[g2]",
    "attention unit: multiplier array, cascades": "tests/attention/test_unit.py::test_two_keys_a_beat[0.4]",
    "attention unit, cache of 4 bits": "tests/attention/test_unit.py::test_caches_below_8_bits[wide-4-0.4]",
    "TLMM engine, netlist of Yosys": "bench/test_netlist.py::test_tlmm",
    "attention unit, netlist of Yosys": "bench/test_netlist.py::test_dot_engine",
    "epilogue and statistics, netlist of Yosys": "bench/test_netlist.py::test_epilogue_and_statistics",
}
"""Tests whose designs are of primitives; tests/primitives holds that none is missing."""


def pair_parts() -> dict[str, tuple[Part, int]]:
    """Parts of the bench of pairs, and how many modes each has."""
    used, drawn = used_modes(), [*drawn_modes(1, 16), *drawn_modes(2, 12, w=True)]
    return {
        "DSP48E2, the modes of the accelerators": (dsp_bench("used", used, "amd"), len(used)),
        "DSP48E2, other modes that ours takes": (dsp_bench("drawn", drawn, "amd"), len(drawn)),
        "RAM32M16": (ram_bench(), 1),
        "URAM288, both ports, both kinds of byte enables": (uram_bench(), 2),
    }


def pairs(root: Path) -> dict[str, tuple[Callable[[], None], int]]:
    """Comparisons of ours with AMD's: what runs each, and its modes."""
    references = "".join(unisim(n, root, f"reference_{n}") for n in OURS)
    parts = pair_parts()
    folder = build_bench([*(p for p, _ in parts.values()), trap()], references)

    def run(part: Part) -> Callable[[], None]:
        return lambda: compare(folder, part.name)

    return {name: (run(part), modes) for name, (part, modes) in parts.items()}


def test(node: str, root: Path) -> bool:
    """Runs a test on AMD's models."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", node]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {UNISIMS: str(root)}).returncode == 0


def main(root: Path) -> int:
    """Returns the exit status."""
    try:
        folder = unisims_folder(root)
    except ModelError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    rows, failed = [], False
    for name, (run, modes) in pairs(folder).items():
        start = time.monotonic()
        try:
            run()
            result = f"equal in {CYCLES:,} cycles"
        except SimulationError as e:
            print(e, file=sys.stderr)
            result, failed = "differs", True
        rows.append((f"{name} ({modes})", "ours against AMD's, random inputs", result, time.monotonic() - start))
    for name, node in TESTS.items():
        start = time.monotonic()
        passed = test(node, folder)
        failed |= not passed
        rows.append((name, f"`{node}`", "passed" if passed else "failed", time.monotonic() - start))
        print(f"{name}: {rows[-1][2]}, {rows[-1][3]:.0f} s", flush=True)
    PAGE.write_text(page(folder, rows))
    print(PAGE.read_text())
    return int(failed)


def page(folder: Path, rows: list[tuple[str, str, str, float]]) -> str:
    """The results as a document."""
    files = ", ".join(f"{n}.v {hashlib.sha256((folder / f'{n}.v').read_bytes()).hexdigest()[:12]}" for n in OURS)
    lines = [
        "# On AMD's models",
        "",
        "`make unisims UNISIMS=DIR` (bench/unisims.py): the models of AMD's primitives in place of ours, global reset tied off, without",
        "delays, tests for high impedance removed; and ours beside them. What the models are: [primitives](../primitives.md).",
        "",
        f"Models (SHA-256, first digits): {files}.",
        "",
        "| what | test | result | seconds |",
        "|---|---|---|---|",
        *(f"| {name} | {what} | {result} | {seconds:.0f} |" for name, what, result, seconds in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1]:
        print("error: give AMD's models: make unisims UNISIMS=DIR (see bench/unisims.py)", file=sys.stderr)
        sys.exit(2)
    sys.exit(main(Path(sys.argv[1]).expanduser().resolve()))
