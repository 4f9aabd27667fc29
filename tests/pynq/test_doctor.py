"""`tellme doctor`: a line a check; what fails says what to do, and what depends on it is not guessed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pynq
import pytest
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.host.cli import app
from tests.host.talk.test_session import sensor
from tests.pynq.board import MIB, OLD, Board
from tests.pynq.files import hand_off, write_build

NAMES = [
    "python",
    "placement",
    "pynq",
    "bitstream",
    "device",
    "memory",
    "free",
    "design",
    "memory ports",
    "configuration",
    "PL clock",
    "power",
    "accelerator",
    "self-test",
]


def doctor(bitstream: Path, *options: str) -> Any:
    return CliRunner().invoke(app, ["doctor", "--bitstream", str(bitstream), *options])


def checks(result: Any) -> dict[str, tuple[bool | None, str]]:
    return {c["name"]: (c["ok"], c["said"]) for c in json.loads(result.stdout)["checks"]}


def test_a_good_board_passes_every_check(
    board: Callable[..., Board], bitstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tellme.host.talk.power.HWMON", tmp_path)
    sensor(tmp_path, 0, "ina260_u14", power1_input=4_800_000)
    made = board(mhz=50, uio=True)
    result = doctor(bitstream)  # the preset is in the bitstream's name
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line[5:23].strip() for line in lines] == NAMES and all(line.startswith("ok ") for line in lines)
    text = result.stdout
    assert "tellme_0 at 0xa0000000" in text and "S_AXI_HP0_FPD 128 bits" in text and "ina260_u14 4.80 W" in text
    assert "99.999 MHz" in text and "done by interrupt" in text
    assert "logits of 9 passes of the demo model equal the golden model's, with --kv 8, 8-4, 4;" in text
    assert not made.buffers and not made.busy()


def test_selftest_runs_patterns_behind_the_usual_checks(board: Callable[..., Board], bitstream: Path) -> None:
    made = board()
    result = doctor(bitstream, "--selftest", "--json")
    assert result.exit_code == 0, result.output
    found = checks(result)
    assert list(found) == [*NAMES, "patterns"]
    assert "equal the golden model's: walking ones in each port" in found["patterns"][1]
    assert not made.buffers and not made.busy()


def failing(name: str, made: Board, tmp_path: Path) -> tuple[Path, str]:
    """Breaks one thing; the bitstream to use and what the line must say."""
    path = write_build(tmp_path, TINY)
    if name == "bitstream":
        path.with_suffix(".hwh").unlink()
        return path, "is missing"
    if name == "memory":
        made.cma = MIB // 2
        return path, "kernel argument cma="
    if name == "design":
        path.with_suffix(".hwh").write_text(hand_off(TINY, vlnv="xilinx.com:ip:axi_dma:7.1"))
        return path, "load a bitstream of tellme build"
    if name == "memory ports":
        path.with_suffix(".hwh").write_text(hand_off(TINY, width=32))
        return path, "build it with tellme build --board tiny"
    if name == "configuration":
        made.fail_load = RuntimeError("FPGA manager: failed")
        return path, "power it off and on"
    if name == "PL clock":
        made.clock_stuck = True
        return path, "power the board off and on"
    assert name == "accelerator"
    return write_build(tmp_path, TINY, registers={"build": 1}), "load the bitstream (or build the simulation)"


@pytest.mark.parametrize(
    "name", ["bitstream", "memory", "design", "memory ports", "configuration", "PL clock", "accelerator"]
)
def test_each_fault_has_its_line_with_a_fix_and_what_needs_it_is_not_checked(
    name: str, board: Callable[..., Board], tmp_path: Path
) -> None:
    made = board(mhz=50)
    path, fix = failing(name, made, tmp_path)
    result = doctor(path, "--board", "tiny", "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["ok"] is False
    found = checks(result)
    assert list(found) == NAMES
    assert found[name][0] is False and fix in found[name][1]
    assert [n for n, (ok, _) in found.items() if ok is False] == [name]
    assert found["self-test"] == (None, "not checked: needs accelerator")
    assert not made.buffers


def test_a_wrong_answer_fails_the_self_test(board: Callable[..., Board], bitstream: Path) -> None:
    made = board()

    def damage() -> None:
        for dram in made.buffers.values():
            dram[: dram.size // 3] ^= 1

    made.on_status = damage
    result = doctor(bitstream, "--json")
    assert result.exit_code == 1
    ok, said = checks(result)["self-test"]
    assert ok is False and ("differs from the golden model's" in said or "stopped the pass" in said)


def test_without_a_board_or_pynq_the_first_line_that_fails_says_where_to_go(
    bitstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with no_device():
        monkeypatch.delenv("PYNQ_REMOTE_DEVICES", raising=False)
        result = doctor(bitstream, "--json")
        assert result.exit_code == 1
        assert "run on the board, in PYNQ's environment" in checks(result)["device"][1]
        monkeypatch.setenv("PYNQ_REMOTE_DEVICES", "192.0.2.1")
        wanted = "pynq 3.0.1 knows no boards over the network" if OLD else "the board at 192.0.2.1 does not answer"
        assert wanted in checks(doctor(bitstream, "--json"))["device"][1]
        run = CliRunner().invoke(app, ["run", "--backend", "board", "--bitstream", str(bitstream), "--prompt", "x"])
        said = [line for line in run.stderr.splitlines() if line.strip()]
        assert run.exit_code == (2 if OLD else 1) and len(said) == 1 and wanted in said[0]
        assert OLD or "check PYNQ_REMOTE_DEVICES" in said[0]


@contextmanager
def no_device() -> Iterator[None]:
    """PYNQ as it is on this machine."""
    before = pynq.Device.__dict__.get("_active_device")
    if "_active_device" in pynq.Device.__dict__:
        del pynq.Device._active_device
    try:
        yield
    finally:
        if before is not None:
            pynq.Device._active_device = before
