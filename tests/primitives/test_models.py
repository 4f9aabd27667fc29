"""Our models of the vendor's primitives against Yosys's, in every mode that the accelerators have and in others that they take.

Without such a reference: URAM288, the codes of W, sums of the pre-adder of more than 25 bits. docs/primitives.md.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from bench.unisims import ROOT, TESTS
from tellme.hw.synth.mapped import models
from tellme.sim.models import OURS, ModelError, cell, unisim, unisims_folder
from tellme.sim.runner import SimulationError
from tests.primitives.bench import (
    INMODES,
    MODES,
    build_bench,
    compare,
    drawn_modes,
    dsp_bench,
    ram_bench,
    refusal_bench,
    trap,
    used,
    used_modes,
    wide_bench,
)


@cache
def bench() -> Path:
    """All pairs of ours and Yosys's in one simulation."""
    parts = [
        dsp_bench("used", used_modes(), "yosys"),
        dsp_bench("drawn", drawn_modes(1, 16), "yosys"),
        dsp_bench("drawn_w", drawn_modes(2, 12, w=True), "yosys"),
        wide_bench(),
        ram_bench(),
        refusal_bench(),
        trap(),
    ]
    (cells,) = models()
    return build_bench(parts, cell("DSP48E1", cells) + cell("RAM32M16", cells, "reference_RAM32M16"))


def test_every_mode_of_the_accelerators_is_one_of_the_models() -> None:
    types = {p.type for p in used()}
    assert types == {"DSP48E2", "RAM32M16"}, "a primitive without a model, or one that is not used any more"
    assert not any(p.parameters for p in used() if p.type == "RAM32M16")
    for mode in used_modes():
        assert mode.constant("OPMODE") in MODES
        assert mode.constant("INMODE") in INMODES or ("INMODE", 0) not in mode.constants
    # Both shifts of a cascade, the cascade, C alone, C in W: five ways to use Z.
    assert {m.constant("OPMODE") for m in used_modes()} == {
        0b00_000_01_01,
        0b00_001_01_01,
        0b00_011_01_01,
        0b00_101_01_01,
        0b11_101_01_01,
    }


def test_modes_of_the_accelerators_do_what_the_dsp48e1_of_yosys_does() -> None:
    compare(bench(), "used")


def test_other_modes_and_27_by_18_bits_are_what_dsp48e1_of_yosys_make() -> None:
    compare(bench(), "drawn", "drawn_w", "wide")


def test_ram32m16_does_what_that_of_yosys_does() -> None:
    compare(bench(), "ram")


def test_dsp48e2_refuses_every_mode_that_it_does_not_model() -> None:
    compare(bench(), "refusals", cycles=600)


@pytest.mark.parametrize("bad", [{"opmode": 0b00_111_01_01}, {"opmode": 0b00_010_00_00}, {"inmode": 0b01000}])
def test_a_refused_mode_stops_the_simulation(bad: dict[str, int]) -> None:
    with pytest.raises(SimulationError, match="DSP48E2: a mode that is not modelled"):
        compare(bench(), trap=bad, cycles=10)


def test_models_of_amd_are_found_from_several_roots_or_refused(tmp_path: Path) -> None:
    for root in (tmp_path / "vivado" / "data" / "verilog" / "src", tmp_path / "checkout" / "verilog" / "src"):
        folder = root / "unisims"
        folder.mkdir(parents=True)
        for name in OURS:
            (folder / f"{name}.v").write_text("module M; endmodule\n")
        for given in (root, folder, root.parents[1], *([root.parents[2]] if root.parents[2] != tmp_path else [])):
            assert unisims_folder(given) == folder.resolve()
    (folder / "DSP48E2.v").unlink()
    with pytest.raises(
        ModelError, match=r"no DSP48E2.v, RAM32M16.v, URAM288.v in .*give Vivado's folder data/verilog/src"
    ):
        unisims_folder(tmp_path / "checkout")


def test_a_model_of_amd_loses_reset_delays_and_high_impedance(tmp_path: Path) -> None:
    for name in OURS:
        (tmp_path / f"{name}.v").write_text(
            f"module {name} (input a, input [1:0] b, output o, output reg p);\n  tri0 glblGSR = glbl.GSR;\n"
            "  assign #1 o = (a === 1'bz) || a; // rv 1\n  always @(b) begin #1; p <= #100 (b[1] !== 1'bz) && b[1]; end\n"
            "endmodule\n"
        )
    text = unisim("RAM32M16", tmp_path, "other")
    assert "module other (" in text and "wire glblGSR = 1'b0;" in text
    assert not any(word in text for word in ("'bz", "glbl.", "#"))
    assert "assign  o = (1'b0) || a;" in text and "p <=  (1'b1) && b[1];" in text
    (tmp_path / "URAM288.v").write_text("module URAM288; wire x = glbl.PLL; endmodule\n")
    with pytest.raises(ModelError, match=r"URAM288.v: 'glbl\.' is not known here"):
        unisim("URAM288", tmp_path)


def _primitive_tests() -> set[str]:
    """Tests whose text asks for a form of primitives: file and function."""
    found = set()
    for path in (p for folder in ("tests", "bench") for p in sorted((ROOT / folder).rglob("test_*.py"))):
        if path.parent.name == "primitives":
            continue
        for node in ast.parse(path.read_text()).body:
            names = {c for k in ast.walk(node) if isinstance(k, ast.keyword) and k.arg == "ids" for c in ast.walk(k)}
            words = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and c not in names}
            if (
                isinstance(node, ast.FunctionDef)
                and node.name.startswith("test_")
                and words & {"primitives", "netlist"}
            ):
                found.add(f"{path.relative_to(ROOT)}::{node.name}")
    return found


def test_make_unisims_runs_every_test_of_a_form_of_primitives() -> None:
    assert {node.split("[")[0] for node in TESTS.values()} == _primitive_tests()


def test_make_unisims_says_in_a_line_what_is_missing(tmp_path: Path) -> None:
    for arguments, message in (
        ([str(tmp_path)], "error: no DSP48E2.v, RAM32M16.v, URAM288.v in "),
        ([""], "error: give AMD's"),
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "bench.unisims", *arguments], cwd=ROOT, capture_output=True, text=True
        )
        assert ran.returncode == 2 and ran.stderr.startswith(message) and ran.stderr.count("\n") == 1
