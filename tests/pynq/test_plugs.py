"""Pulling the plug: whatever goes wrong, there is one clear line, every buffer is freed, and the next run works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pynq
import pytest
from typer.testing import CliRunner

from tellme.golden.boards import build_name
from tellme.golden.config import KV260, TINY
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.cli import app
from tellme.host.errors import DeviceError, TellmeError, UserError
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.board import BoardAccelerator
from tellme.host.machine.program import compile_program
from tellme.host.machine.pynq.device import PynqDevice
from tellme.host.machine.pynq.network import Lock
from tests.pynq.board import ENGINE, FOLDER, MIB, TAG, Board, simulation
from tests.pynq.files import bit, hand_off, write_build

RUN = ["--board", "tiny", "--model", "demo", "--prompt", "One day", "--max-new-tokens", "3"]


def run(bitstream: Path, *options: str, command: str = "run", **kwargs: Any) -> Any:
    """`tellme run --backend board`."""
    return CliRunner().invoke(app, [command, "--backend", "board", "--bitstream", str(bitstream), *options], **kwargs)


def works(bitstream: Path) -> None:
    """The next run tells the story."""
    result = run(bitstream, *RUN)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("One day,")
    assert "accelerator alone" in result.stderr and "wall clock: first token after" in result.stderr


def refused(result: Any, message: str, code: int) -> None:
    """One line that says `message`, and the exit code."""
    assert result.exit_code == code, result.output
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("tellme: ") and message in lines[0], result.stderr


def test_a_run_on_the_board_tells_what_the_golden_model_tells(board: Callable[..., Board], bitstream: Path) -> None:
    made = board()
    works(bitstream)
    checked = run(bitstream, *RUN, "--check")
    assert checked.exit_code == 0 and "logits of 3 passes equal the golden model's" in checked.stderr
    golden = CliRunner().invoke(app, ["run", "--backend", "golden", *RUN])
    assert golden.stdout == checked.stdout
    assert made.loads == 2 and made.allocated == 2


# ---- before the chip is touched --------------------------------------------------------------------------------------


def test_a_wrong_bitstream_is_refused_before_the_chip_is_touched(
    board: Callable[..., Board], bitstream: Path, tmp_path: Path
) -> None:
    made = board()

    def files(name: str = f"{build_name(TINY)}.bit", **changes: Any) -> Path:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        path = folder / name
        path.write_bytes(changes.get("bit", bit({"preset": "tiny"})))
        if "hwh" not in changes or changes["hwh"] is not None:
            path.with_suffix(".hwh").write_text(changes.get("hwh", hand_off(TINY)))
        return path

    real = bit({"preset": "tiny"})
    cases: list[tuple[Path, str, int]] = [
        (tmp_path / "none.bit", f"none.bit: no such bitstream; copy {build_name(TINY)}.bit and .hwh", 2),
        (files("tellme.bin"), "a bitstream's name ends in .bit", 2),
        (files("tellme-tiny-0badf00d.bit"), "was built as tellme-tiny-0badf00d, this version of the host needs", 2),
        (files(hwh=None), ".hwh: is missing; the hardware hand-off must lie beside the bitstream", 2),
        (files(hwh="<EDKSYSTEM"), "cannot be read as a hardware hand-off", 2),
        (files(hwh="<EDKSYSTEM/>"), "is not a hardware hand-off of Vivado", 2),
        (files(bit=real[:-4]), "is cut short", 2),
        (files(bit=b"not a bitstream at all"), "is not a bitstream (.bit) of Vivado", 2),
        (files(bit=bit({}, part="xck26-sfvc784-2LV-c")), "is for xck26-sfvc784-2LV-c, but", 2),
        (files(hwh=hand_off(TINY, vlnv="xilinx.com:hls:resize:1.0")), "the design has 0 accelerators", 1),
        (
            files(hwh=hand_off(TINY, mhz=75)),
            "the design was timed for 75 MHz, the accelerator runs at 80 MHz at least; build it",
            1,
        ),
        (files(hwh=hand_off(TINY, width=64)), "S_AXI_HP0_FPD 64 (bits), the accelerator needs 1 of 128", 1),
    ]
    for path, message, code in cases:
        refused(run(path, *RUN), message, code)
    with pytest.raises(UserError, match="is for xczu48dr-ffvg1517, board 'kv260' has xck26-sfvc784"):
        PynqDevice(write_build(tmp_path / "kv260", KV260), KV260, 100)
    assert made.loads == 0 and made.allocated == 0
    works(bitstream)


def test_a_model_for_another_board_is_refused_before_the_chip_is_touched(
    board: Callable[..., Board], bitstream: Path, tmp_path: Path
) -> None:
    made = board()
    convert(read_checkpoint(demo_folder()), tmp_path / "demo.tlm", KV260)
    result = run(bitstream, "--board", "tiny", "--prompt", "x", "--model", str(tmp_path / "demo.tlm"))
    refused(result, "demo.tlm", 2)
    assert made.loads == 0 and made.allocated == 0
    works(bitstream)


def test_too_little_memory_is_found_before_the_chip_is_touched(board: Callable[..., Board], bitstream: Path) -> None:
    made = board(cma=MIB // 2)
    result = run(bitstream, *RUN)
    refused(result, "the kernel reserves 0.5 MiB of contiguous memory, the model needs 0.6 MiB; boot with the", 1)
    assert "kernel argument cma=100M" in result.stderr and "/etc/default/flash-kernel" in result.stderr
    made.cma = made._free = 0
    refused(run(bitstream, *RUN), "the kernel reserves no contiguous memory, the model needs 0.6 MiB: either cma=", 1)
    assert made.loads == 0 and made.allocated == 0
    made._free, made.cma = 64 * MIB, 64 * MIB
    works(bitstream)


# ---- while it is loaded ----------------------------------------------------------------------------------------------


def test_a_failing_configuration_leaves_nothing(board: Callable[..., Board], bitstream: Path) -> None:
    made = board()
    made.fail_load = OSError(5, "Input/output error")
    refused(run(bitstream, *RUN), "the overlay cannot be loaded (OSError: [Errno 5] Input/output error)", 1)
    assert made.allocated == 0
    works(bitstream)


def test_another_build_in_the_chip_is_refused_by_its_registers(
    board: Callable[..., Board], bitstream: Path, tmp_path: Path
) -> None:
    made = board()
    for register, value in (("identity", 0), ("version", 99), ("build", 0xBAD), ("geometry", 0)):
        path = write_build(tmp_path / register, TINY, registers={register: value})
        refused(run(path, *RUN), f"the accelerator's {register} register is {value:#010x}", 1)
        assert not made.buffers
    works(bitstream)


@pytest.mark.parametrize("network", [False, True], ids=["local", "network"])
def test_memory_that_others_hold_is_reported_and_nothing_is_left(
    network: bool, board: Callable[..., Board], bitstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = board(free=MIB // 2)
    with ExitStack() as stack:
        if network:
            from pynq.pl_server.remote_device import RemoteDevice  # PYNQ 4 has it

            from tests.pynq.remote import serving

            monkeypatch.setattr(RemoteDevice, "gen_cache", lambda *a: None)
            port = stack.enter_context(serving(made))
            pynq.Device.active_device = RemoteDevice(os.getpid(), "127.0.0.1", port)
        result = run(bitstream, *RUN)
        refused(result, "a buffer of 0.6 MiB cannot be allocated", 1)
        assert "0.5 MiB of 512.0 MiB contiguous memory are free; end the programs that hold the rest" in result.stderr
        assert "kernel argument cma=700M" in result.stderr and made.allocated == 0
        made._free = made.cma
        works(bitstream)


def test_a_lock_that_is_a_link_is_not_followed(board: Callable[..., Board], bitstream: Path, tmp_path: Path) -> None:
    board()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    lock = Path(tempfile.gettempdir()) / f"tellme-{pynq.Device.active_device.tag}-local.lock"
    lock.unlink(missing_ok=True)
    lock.symlink_to(victim)
    try:
        refused(run(bitstream, *RUN), "cannot be opened as the board's lock", 2)
        assert victim.read_text() == "precious"
    finally:
        lock.unlink()
    works(bitstream)


def test_a_clock_that_cannot_be_set_is_refused(board: Callable[..., Board], bitstream: Path) -> None:
    made = board(mhz=40, clock_stuck=True)
    refused(run(bitstream, *RUN), "MHz and cannot be set to the 100 MHz that the accelerator was built for", 1)
    made.clock_stuck = False
    works(bitstream)


def test_the_board_runs_at_what_the_build_routed_at(
    board: Callable[..., Board], bitstream: Path, tmp_path: Path
) -> None:
    """The hand-off says another clock than the preset; that is set, and figures are of it."""
    made = board(mhz=100)
    path = tmp_path / bitstream.name
    path.write_bytes(bitstream.read_bytes())
    path.with_suffix(".hwh").write_text(hand_off(TINY, mhz=93.75))  # 1,500 MHz by 16
    result = run(path, *RUN, "--json")
    assert result.exit_code == 0, result.output
    assert made.clock_mhz == 93.75 and json.loads(result.stdout)["clock_hz"] == 93_750_000


def test_a_second_program_is_told_who_uses_the_board(board: Callable[..., Board], bitstream: Path) -> None:
    made = board()
    with PynqDevice(bitstream, TINY, 100):
        refused(run(bitstream, *RUN), f"the board is in use by process {os.getpid()}; end it first", 1)
    assert made.loads == 1
    works(bitstream)


def test_a_bitstream_that_was_loaded_before_may_be_gone(
    board: Callable[..., Board], bitstream: Path, tmp_path: Path
) -> None:
    """PYNQ keeps the name of the last bitstream; 3.0.1 fails where that file is no more."""
    made = board()
    before = write_build(tmp_path / "before", TINY)
    works(before)
    before.unlink()
    works(bitstream)
    state = Path(pynq.pl_server.__file__).parent / "global_pl_state_tests.json"
    for text in ("{", "[]", json.dumps({"bitfile_name": str(before)})):
        state.write_text(text)
        works(bitstream)
        assert not state.exists()
    assert made.loads == 5


# ---- while it works --------------------------------------------------------------------------------------------------


def test_an_accelerator_in_error_is_reset_and_the_next_run_works(
    board: Callable[..., Board], bitstream: Path, demo: Model
) -> None:
    made = board()

    def damage() -> None:
        for dram in made.buffers.values():
            dram[:] = 255

    made.on_status = damage  # as soon as the first pass has begun, before the next one reads
    result = run(bitstream, *RUN)
    assert result.exit_code == 1 and "tellme: the accelerator stopped the pass with error" in result.stderr
    assert "Traceback" not in result.stderr and not made.buffers
    made.on_status = None
    works(bitstream)


def test_an_accelerator_that_hangs_is_given_up_and_stopped(
    board: Callable[..., Board], bitstream: Path, demo: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = board()
    monkeypatch.setattr("tellme.host.machine.board.TIMEOUT_S", 0.3)
    monkeypatch.setattr(made, "advance", lambda cycles=0: False)  # no time goes by
    refused(
        run(bitstream, "--board", "tiny", "--model", "demo", "--prompt", "One", "--json"),
        "the accelerator did not finish a pass in 0.3 s",
        1,
    )
    assert not made.busy() and not made.buffers
    monkeypatch.undo()
    works(bitstream)


def press_at(board: Board, count: int) -> None:
    """Ctrl-C at the count-th look at the status register."""
    seen = []

    def press() -> None:
        seen.append(1)
        if len(seen) == count:
            os.kill(os.getpid(), signal.SIGINT)

    board.on_status = press


@pytest.mark.parametrize("count", [1, 4, 9])
def test_ctrl_c_while_a_run_streams_stops_the_chip_and_frees_the_board(
    count: int, board: Callable[..., Board], bitstream: Path
) -> None:
    made = board()
    press_at(made, count)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs ignore it
    try:
        result = run(bitstream, *RUN[:-1], "20")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert result.exit_code == 130 and result.stderr.strip().endswith("tellme: interrupted")
    assert not made.buffers and not made.busy() and not made.violations
    made.on_status = None
    works(bitstream)


def test_ctrl_c_in_a_chat_stops_the_answer_and_the_chat_goes_on(board: Callable[..., Board], bitstream: Path) -> None:
    made = board()
    press_at(made, 12)
    options = ["--board", "tiny", "--max-new-tokens", "6", "--json"]
    result = run(bitstream, *options, command="chat", input="One day\n and a bird\n")
    assert result.exit_code == 0, result.output
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    assert first["stop"] == "interrupted" and len(first["new_ids"]) < 6
    assert second["stop"] == "length" and second["cached_tokens"] >= first["prompt_tokens"]
    assert second["cycles_decode"] and made.loads == 1


def test_a_device_closed_in_the_middle_of_a_pass_stops_it_before_its_memory_goes(
    board: Callable[..., Board], bitstream: Path, demo: Model
) -> None:
    made = board()
    accelerator = BoardAccelerator(demo, compile_program(demo, TINY), bitstream=bitstream)
    accelerator.write("lanes", 1)
    accelerator.write("head_lanes", first=0, count=1)
    accelerator.write("control", start=1)
    assert made.busy()
    held = accelerator.device.memory  # whoever still holds it
    accelerator.close()
    assert not made.busy() and not made.buffers and not made.violations
    del held


def test_a_forgotten_device_gives_everything_back(board: Callable[..., Board], bitstream: Path) -> None:
    made = board()
    device = PynqDevice(bitstream, TINY, 100)
    assert made.buffers
    del device
    assert not made.buffers
    PynqDevice(bitstream, TINY, 100).close()


CHILD = """
import atexit, sys
from tests.pynq.board import plug
board = plug()
atexit.register(lambda: print("left:", len(board.buffers), board.violations, file=sys.stderr))
from tellme.host.cli import main
main()
"""


def start(bitstream: Path, *options: str) -> subprocess.Popen[str]:
    """`tellme` on a board in a process of its own, as far as its first words."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, "run", "--backend", "board", "--bitstream", str(bitstream), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | ({} if os.environ.get(ENGINE) else {FOLDER: str(simulation("tiny"))})
        | {TAG: pynq.Device.active_device.tag}
        | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert child.stdout is not None
    if not child.stdout.read(len("One day") + 3).startswith("One day"):
        child.kill()
        raise AssertionError(child.communicate()[1])
    return child


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_a_board_that_the_next_run_can_use(
    how: signal.Signals, board: Callable[..., Board], bitstream: Path
) -> None:
    board()
    child = start(bitstream, *RUN[:-1], "100")
    try:
        refused(run(bitstream, *RUN), f"the board is in use by process {child.pid}; end it first", 1)
        child.send_signal(how)
        _, said = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    if how is signal.SIGTERM:
        assert child.returncode == 143 and "left: 0 []" in said and "Traceback" not in said
    works(bitstream)


def test_the_lock_goes_with_its_process_not_with_its_file(board: Callable[..., Board]) -> None:
    made = board()
    device = pynq.Device.active_device
    first = Lock(device)
    with pytest.raises(DeviceError, match=f"in use by process {os.getpid()}"):
        Lock(device)
    first.release()
    Lock(device).release()
    assert issubclass(DeviceError, TellmeError) and made.loads == 0
