"""The open-toolchain bitstream: `tellme build --board ulx3s` routes it, here, fast enough."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tellme.host.cli import app
from tellme.hw.platforms.ulx3s import DIVIDER, ULX3SPlatform, build_name, figures, plan

FMAX_MHZ = 80


def test_the_self_test_becomes_a_bitstream_of_80_mhz(tmp_path: Path) -> None:
    out = tmp_path / "b"
    r = CliRunner().invoke(app, ["build", "--board", "ulx3s", "--out", str(out), "--json"])
    assert r.exit_code == 0, r.output
    facts = json.loads(r.stdout)
    assert facts["fmax_mhz"] >= FMAX_MHZ == facts["clock_mhz"]
    # The whole engine is in there: tables, trees and accumulators, the jobs in block RAM.
    assert facts["comb"] > 4000 and facts["ff"] > 2000 and facts["ram"] >= 4
    bits = Path(facts["bitstream"]).read_bytes()
    # ecppack's comment, then the preamble of an ECP5 bitstream (Lattice FPGA-TN-02039).
    assert b"Part: LFE5U-85F-6CABGA381" in bits[:200] and b"\xff\xff\xbd\xb3" in bits[:400]
    assert len(bits) > 100_000
    for tool in ("yosys", "nextpnr-ecp5", "ecppack"):
        assert f"s  {tool}" in r.stderr


def test_the_pll_makes_the_clock_within_its_limits() -> None:
    """FPGA-TN-02200: oscillator 400 to 800 MHz, phase detector 3.125 to 400 MHz."""
    text = plan(build_name()).files[f"{build_name()}.il"]
    assert isinstance(text, str)
    value = {name: int(text.split(f"parameter \\{name} ")[1].split()[0]) for name in ("CLKI_DIV", "CLKFB_DIV")}
    detector = 25e6 / value["CLKI_DIV"]
    assert detector * value["CLKFB_DIV"] == ULX3SPlatform.clock_hz == FMAX_MHZ * 1e6
    assert 3.125e6 <= detector <= 400e6 and 400e6 <= ULX3SPlatform.clock_hz * DIVIDER <= 800e6


def test_a_clock_that_is_missed_fails_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With tools that write a report of 79.9 MHz."""
    used = {k: {"used": 1, "available": 2} for k in ("TRELLIS_COMB", "TRELLIS_FF", "DP16KD")}
    report = {"fmax": {"clk": {"achieved": 79.9, "constraint": 80.0}}, "utilization": used}
    assert figures(report)["fmax_mhz"] == 79.9
    name = build_name()
    (tmp_path / "report").write_text(json.dumps(report))
    tool = tmp_path / "tool"
    files = " ".join(f"{name}.{e}" for e in ("json", "config", "bit"))
    tool.write_text(f"#!/bin/sh\ntouch {files}; cp {tmp_path / 'report'} {name}.report.json\n")
    tool.chmod(0o755)
    for variable in ("YOSYS", "NEXTPNR_ECP5", "ECPPACK"):
        monkeypatch.setenv(variable, str(tool))
    r = CliRunner().invoke(app, ["build", "--board", "ulx3s", "--out", str(tmp_path / "b")])
    assert r.exit_code == 1 and "timing is not met: 79.9 MHz routed, 80 MHz needed" in r.stderr
