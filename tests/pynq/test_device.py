"""One driver: the same passes through the simulation, through PYNQ on the board and over the network, bit for bit.

All devices hold the RTL of the tiny preset; they differ in the device class alone.
"""

from __future__ import annotations

import ast
import asyncio
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pynq
import pytest
from typer.testing import CliRunner

from tellme.golden.boards import CELL, PAGE, PHASE_PERIOD, VLNV, buffer_bytes, region_bytes
from tellme.golden.config import TINY
from tellme.golden.model import GoldenModel
from tellme.golden.registers import IDENTITY, offset
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.cli import app
from tellme.host.errors import DeviceError
from tellme.host.image.model import Model, convert
from tellme.host.machine.backends import GoldenBackend
from tellme.host.machine.board import BoardAccelerator
from tellme.host.machine.device import Device
from tellme.host.machine.driver import Driver
from tellme.host.machine.passes import PassResult
from tellme.host.machine.program import compile_program
from tellme.host.machine.pynq.device import PynqDevice
from tellme.host.machine.pynq.network import find_device
from tellme.host.machine.pynq.overlay import loading
from tellme.host.talk.engine import Engine
from tellme.host.text.sampling import Sampling
from tests.host.support import WORD, write_checkpoint
from tests.models import small_spec
from tests.pynq.board import Board, LocalDevice, reference, simulation
from tests.pynq.files import write_build

PROMPT = [0, 7, 300, 41, 1000, 6]
KINDS = ("simulation", "pynq", "pynq with interrupts", "pynq over the network")


def passes(accelerator: Driver) -> list[PassResult]:
    """Two prefill passes and three decode passes, every logit of the last tokens."""
    results = accelerator.prefill(PROMPT, logits=True)
    for position in range(len(PROMPT), len(PROMPT) + 3):
        results.append(accelerator.decode(results[-1].best_index[-1], position, logits=True))
    return results


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Serves boards on localhost and gives their PYNQ devices."""
    with ExitStack() as stack:

        def make(board: Board) -> Any:
            from pynq.pl_server.remote_device import RemoteDevice  # PYNQ 4 has it

            from tests.pynq.remote import serving

            monkeypatch.setattr(RemoteDevice, "gen_cache", lambda *a: None)  # it writes into the installed package
            device = RemoteDevice(os.getpid(), "127.0.0.1", stack.enter_context(serving(board)))
            pynq.Device.active_device = device
            return device

        yield make


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_passes_give_the_same_bits_and_counters_on_every_device(
    kind: str, board: Callable[..., Board], remote: Callable[..., Any], demo: Model, bitstream: Path
) -> None:
    if kind == "simulation":
        from tellme.sim.device import SimDevice

        program = compile_program(demo, TINY)
        device = SimDevice(TINY, program.window_beats, accelerator=simulation("tiny"), memory_timing="ideal")
        accelerator = Driver(device, TINY)
        accelerator.load(demo, program)
    else:
        made = board(uio="interrupts" in kind)
        if "network" in kind:
            remote(made)
        accelerator = BoardAccelerator(demo, compile_program(demo, TINY), bitstream=bitstream)
    with accelerator:
        assert isinstance(accelerator.device, Device)
        results = passes(accelerator)
        if kind != "simulation":
            assert isinstance(accelerator.device, PynqDevice)
            assert accelerator.device.interrupts == ("interrupts" in kind)
            assert made.interrupts >= (len(results) if "interrupts" in kind else 0)
    golden = GoldenModel(demo.weights(), TINY)
    tokens = list(PROMPT)
    for i, result in enumerate(results):
        part = tokens[4 * i : 4 * i + 4] if i < 2 else [results[i - 1].best_index[-1]]
        first = 4 * i if i < 2 else len(PROMPT) + i - 2
        lanes = len(part)
        want = golden.run_pass(part, list(range(first, first + lanes)), [0] * lanes, (lanes - 1, 1 if i else 0))
        if i:
            assert result.logits is not None and want.logits is not None
            assert np.array_equal(result.logits.view(np.uint32), want.logits.view(np.uint32))
            assert result.best_index == tuple(want.best)
    # Counters too: the memory timing is the same, so cycles are.
    counted = [(r.cycles, r.beats, r.writes, r.stalls) for r in results]
    assert all(c[0] for c in counted)
    assert _COUNTED.setdefault("passes", counted) == counted


_COUNTED: dict[str, Any] = {}


def test_conversations_side_by_side_say_what_each_says_alone(
    board: Callable[..., Board], demo: Model, bitstream: Path
) -> None:
    """Chunks of prompts, guesses, a copied prefix, a cancelled answer and drawn tokens, on the board's device."""
    board()
    start = [int(t) for t in demo.tokenizer.encode("Once upon a time there was a little fox.")]
    asked: list[tuple[list[int], Sampling]] = [
        (start, Sampling()),
        (start[:-2], Sampling(temperature=0.8, top_k=20, seed=5)),
        ([*start, 7, 300], Sampling(temperature=1.0, top_p=0.9, seed=6)),
        (start, Sampling(repetition_penalty=1.3)),
        (start, Sampling()),
    ]
    golden = GoldenBackend(demo.weights(), TINY, context=64)

    def alone(prompt: list[int], sampling: Sampling) -> list[int]:
        engine = Engine(golden)
        ticket = engine.submit(prompt, max_new_tokens=6, sampling=sampling)
        while engine.busy:
            engine.step()
        return [c.token for c in ticket.new]

    with BoardAccelerator(demo, compile_program(demo, TINY, slots=3, context=64), bitstream=bitstream) as accelerator:
        engine = Engine(accelerator)
        tickets = [engine.submit(p, max_new_tokens=6, sampling=s, speculate=i != 1) for i, (p, s) in enumerate(asked)]
        gone = engine.submit(start, max_new_tokens=50)
        widest = 0
        while engine.busy:
            engine.step()
            if engine.last is not None:
                widest = max(widest, len(engine.last.parts))
            if len(gone.new) == 2:
                engine.cancel(gone)
    for ticket, (prompt, sampling) in zip(tickets, asked, strict=True):
        assert [c.token for c in ticket.new] == alone(prompt, sampling)
    assert widest == 3 and gone.stop == "cancelled" and tickets[4].accepted > 0
    assert any(t.conversation.cached for t in tickets)


@pytest.mark.parametrize("phases", [(61440, 0), (4096, 20480), (0, 0)])
@pytest.mark.parametrize("where", ["pynq", "pynq over the network"])
def test_regions_begin_at_the_boards_phases_whatever_was_allocated(
    where: str,
    phases: tuple[int, ...],
    tmp_path: Path,
    board: Callable[..., Board],
    remote: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The allocator gives pages that are no multiple of 64 KiB; passes are as ever, bit by bit."""
    monkeypatch.setattr("tellme.host.machine.placement.board_phases", lambda config: phases)
    spec = small_spec()
    convert(read_checkpoint(write_checkpoint(tmp_path / "m", spec)), tmp_path / "m.tlm", WORD)
    made = board(engine=reference, mhz=250)
    if "network" in where:
        remote(made)
    with Model.open(tmp_path / "m.tlm", WORD) as model:
        with BoardAccelerator(
            model, compile_program(model, WORD), bitstream=write_build(tmp_path, WORD)
        ) as accelerator:
            assert tuple(base % PHASE_PERIOD for base in accelerator.device.port_bases) == phases
            beats = len(accelerator.device.memory[0])
            need = buffer_bytes(WORD, beats, phases)
            if "network" in where:
                need = 2 * (region_bytes(WORD, beats) + PHASE_PERIOD - PAGE)
            assert sum(b.size for b in made.buffers.values()) == need
            for base in accelerator.device.port_bases:  # the whole region is in a buffer
                (fits,) = [a for a, b in made.buffers.items() if a <= base < a + b.size]
                assert base + beats * WORD.port_bytes <= fits + made.buffers[fits].size
            accelerator.prefill([1, 2, 3])
            result = accelerator.decode(4, 3, logits=True)
        golden = GoldenModel(model.weights(), WORD)
        golden.run_pass([1, 2, 3], [0, 1, 2], [0] * 3, (2, 0))
        want = golden.run_pass([4], [3], [0], (0, 1))
    assert result.logits is not None and want.logits is not None
    assert np.array_equal(result.logits.view(np.uint32), want.logits.view(np.uint32))


def test_contiguous_memory_must_hold_what_placement_takes_too(tmp_path: Path, board: Callable[..., Board]) -> None:
    phases = (61440, 4096)
    bitstream = write_build(tmp_path, WORD)
    needed = buffer_bytes(WORD, 1000, phases)
    assert needed > 2 * region_bytes(WORD, 1000)
    board(engine=reference, mhz=250, cma=needed)
    PynqDevice(bitstream, WORD, 1000, phases=phases).close()
    board(engine=reference, mhz=250, cma=needed - 4096)
    with pytest.raises(DeviceError, match="of contiguous memory, the model needs"):
        PynqDevice(bitstream, WORD, 1000, phases=phases)


def test_a_board_is_tuned_by_what_its_ports_get_in_simulation(
    board: Callable[..., Board], bitstream: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    board()
    r = CliRunner().invoke(app, ["tune", "--board", "tiny", "--bitstream", str(bitstream), "--json"])
    assert r.exit_code == 0, r.output
    said = json.loads(r.stdout)
    # tiny has no board's phases: where the allocator put its one region, and 0, if that is another place.
    phases = [p["phases_kib"] for p in said["points"]]
    assert phases[-1] == [0.0] and len(phases) == len({*map(tuple, phases)}) <= 2 and said["simulated"] is False
    assert 1.5 < said["points"][0]["gb_s"][0] <= 1.6 and 1.5 < said["points"][0]["lockstep_gb_s"] <= 1.6


def test_two_ports_are_striped_over_one_buffer(tmp_path: Path, board: Callable[..., Board]) -> None:
    """A preset with two ports, interpreted; locally one buffer, its second half the second port's."""
    spec = small_spec()
    convert(read_checkpoint(write_checkpoint(tmp_path / "m", spec)), tmp_path / "m.tlm", WORD)
    made = board(engine=reference, mhz=250)
    with Model.open(tmp_path / "m.tlm", WORD) as model:
        with BoardAccelerator(
            model, compile_program(model, WORD), bitstream=write_build(tmp_path, WORD)
        ) as accelerator:
            ports = accelerator.device.port_bases
            assert ports[1] - ports[0] == accelerator.device.memory[0].nbytes
            assert all(base % 4096 == 0 for base in ports)
            result = accelerator.prefill([1, 2, 3], logits=True)[-1]
        want = GoldenModel(model.weights(), WORD).run_pass([1, 2, 3], [0, 1, 2], [0] * 3, (2, 1))
    assert result.logits is not None and want.logits is not None
    assert np.array_equal(result.logits.view(np.uint32), want.logits.view(np.uint32))
    assert made.allocated == 1


def test_two_ports_over_the_network_have_a_buffer_each(
    tmp_path: Path, board: Callable[..., Board], remote: Callable[..., Any]
) -> None:
    spec = small_spec()
    convert(read_checkpoint(write_checkpoint(tmp_path / "m", spec)), tmp_path / "m.tlm", WORD)
    made = board(engine=reference, mhz=250)
    remote(made)
    with Model.open(tmp_path / "m.tlm", WORD) as model:
        with BoardAccelerator(
            model, compile_program(model, WORD), bitstream=write_build(tmp_path, WORD)
        ) as accelerator:
            accelerator.prefill([1, 2, 3])
            # The second pass must not send the host's idea of the cache over what the first one wrote.
            result = accelerator.decode(4, 3, logits=True)
        golden = GoldenModel(model.weights(), WORD)
        golden.run_pass([1, 2, 3], [0, 1, 2], [0] * 3, (2, 0))
        want = golden.run_pass([4], [3], [0], (0, 1))
    assert result.logits is not None and want.logits is not None
    assert np.array_equal(result.logits.view(np.uint32), want.logits.view(np.uint32))
    assert made.allocated == 2


@pytest.mark.parametrize("missing", [None, "flush", "invalidate"])
def test_a_missing_flush_or_invalidate_shows(
    missing: str | None, board: Callable[..., Board], demo: Model, bitstream: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test device has caches: the same pass without one of the two gives other logits."""
    board()
    golden = GoldenModel(demo.weights(), TINY).run_pass([5], [0], [0], (0, 1))
    with BoardAccelerator(demo, compile_program(demo, TINY), bitstream=bitstream) as accelerator:
        if missing:
            monkeypatch.setattr(accelerator.device, missing, lambda start, beats: None)
        accelerator.write("timeout", 20_000)
        try:
            logits = accelerator.decode(5, 0, logits=True).logits
        except DeviceError:
            logits = None
        assert golden.logits is not None
        same = logits is not None and np.array_equal(logits.view(np.uint32), golden.logits.view(np.uint32))
        assert same == (missing is None)


def test_a_pass_syncs_only_what_changed(board: Callable[..., Board], demo: Model, bitstream: Path) -> None:
    """PYNQ 4's own flush would clean the caches for the whole buffer at every token."""
    made = board()
    with BoardAccelerator(demo, compile_program(demo, TINY), bitstream=bitstream) as accelerator:
        program = accelerator._program
        assert program is not None
        made.synced.clear()
        accelerator.decode(5, 0, logits=True)
        width = TINY.beat_bytes
        assert made.synced == [
            ("to", program.x_address * width, program.x_beats * width),
            ("from", program.logits_address * width, program.logits_stride * width),
        ]
        with pytest.raises(ValueError, match="not in the buffer"):
            accelerator.device.flush(len(accelerator.device.memory[0]), 1)


def test_the_overlay_binds_the_accelerator_and_sets_the_clock(
    board: Callable[..., Board], demo: Model, bitstream: Path
) -> None:
    """A board left at 50 MHz would answer correctly at half the speed."""
    made = board(mhz=50)
    here = sorted(os.listdir())
    with PynqDevice(bitstream, TINY, 100) as device:
        assert type(device._ip).bindto == [VLNV] and device._ip._fullpath == CELL
        assert device.read(offset("identity")) == IDENTITY
        assert round(made.clock_mhz) == 100 and device.clock.startswith("99.999 MHz")
        assert [m.shape for m in device.memory] == [(256, 16)]  # whole pages
        with pytest.raises(ValueError, match="0 to 0xffffffff"):
            device.write(offset("timeout"), -1)
    for use in (lambda: device.memory, lambda: device.read(0), lambda: device.flush(0, 1)):
        with pytest.raises(DeviceError, match="the board was closed"):
            use()
    device.close()
    assert sorted(os.listdir()) == here  # XRT's loader leaves loaded.xclbin where it stands


def test_an_interrupt_that_never_comes_is_replaced_by_polling(
    board: Callable[..., Board], demo: Model, bitstream: Path
) -> None:
    made = board(uio=True)
    made.mask_interrupt = True
    with BoardAccelerator(demo, compile_program(demo, TINY), bitstream=bitstream) as accelerator:
        assert isinstance(accelerator.device, PynqDevice) and accelerator.device.interrupts
        first = accelerator.decode(5, 0)
        assert not accelerator.device.interrupts and made.interrupts == 0
        assert accelerator.decode(5, 0).best_index == first.best_index


def test_the_host_is_written_for_the_python_of_the_boards() -> None:
    """Ubuntu 22.04 on the boards has Python 3.10; what runs there must be 3.10's language."""
    for path in (*Path("golden").glob("*.py"), *Path("host").glob("*.py")):
        ast.parse(path.read_text(), str(path), feature_version=(3, 10))


def test_a_board_is_found_in_threads_and_after_asyncio_run(
    board: Callable[..., Board], monkeypatch: pytest.MonkeyPatch
) -> None:
    """PYNQ's devices take an event loop when they are made; neither place has one."""
    made = board()

    class Probed:
        _probe_ = staticmethod(lambda: [LocalDevice(made)])

    monkeypatch.setattr(type(pynq.Device), "_subclasses", {0: Probed})
    monkeypatch.delattr(pynq.Device, "_active_device")
    monkeypatch.setattr(pynq.Device, "_devices", [], raising=False)  # undone: as it is now, there or not
    monkeypatch.delattr(pynq.Device, "_devices")

    def find() -> Any:
        asyncio.run(asyncio.sleep(0))
        return find_device()

    with ThreadPoolExecutor(1) as pool:
        assert isinstance(pool.submit(find).result(), LocalDevice)


def test_the_device_that_is_given_is_the_one(board: Callable[..., Board], monkeypatch: pytest.MonkeyPatch) -> None:
    """With another one there, too."""
    other = LocalDevice(board())
    monkeypatch.setattr(type(pynq.Device), "_active_device", LocalDevice(board()), raising=False)
    assert find_device(other) is other


def test_what_a_loader_leaves_where_it_stands_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """XRT's writes files beside it, whether it succeeds or not."""
    monkeypatch.chdir(tmp_path)
    with loading(Path("some.bit")):
        Path("xclbin").touch()
        beside = Path.cwd()
    with pytest.raises(DeviceError, match="some.bit: the overlay cannot be loaded"), loading(Path("some.bit")):
        Path("xclbin").touch()
        raise RuntimeError("no")
    assert Path.cwd() == tmp_path and not any(tmp_path.iterdir()) and not beside.exists()
