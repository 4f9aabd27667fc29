"""The simulation back end: timings by name, wave files that appear whole, and what happens without a simulator."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest

import tellme.host.machine.simulation
from tellme.golden.boards import phases as board_phases
from tellme.golden.config import TINY
from tellme.host.errors import DeviceError, UserError
from tellme.host.image.model import Model
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import TIMEOUT_S, TIMEOUT_VARIABLE, SimulatedAccelerator, memory_timing
from tests.host.machine.reference_machine import ReferenceMachine
from tests.host.support import DEMO


class FakeSimulation(ReferenceMachine):
    """Takes the arguments of sim.device.SimDevice."""

    made: list[FakeSimulation] = []

    def __init__(
        self,
        config: Any,
        beats: int,
        *,
        memory_timing: Any,
        phases: Any,
        waves: Path | None,
        trace: Any = None,
        random_start: int | None = None,
        started: Any = None,
    ):
        super().__init__(config, beats)
        assert phases == board_phases(config)
        self.timing, self.waves = memory_timing, waves
        self.ended = False
        self.killed = False
        FakeSimulation.made.append(self)
        if waves is not None:
            (waves / "dump.fst").write_bytes(b"half")

    def close(self) -> None:
        super().close()
        self.ended = not self.killed
        if self.waves is not None and self.ended:
            (self.waves / "dump.fst").write_bytes(b"whole")


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> list[FakeSimulation]:
    module = types.ModuleType("tellme.sim.device")
    module.SimDevice = FakeSimulation  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tellme.sim.device", module)
    FakeSimulation.made = []
    return FakeSimulation.made


def test_timings_by_name_and_seed():
    assert memory_timing(None, None).name == tellme.host.machine.simulation.DEFAULT_TIMING == "kv260"
    assert memory_timing("kv260-pessimistic", None).latency == 120
    stress = memory_timing(None, 77)
    assert (stress.name, stress.seed) == ("stress", 77) and stress.stall > 0
    with pytest.raises(UserError, match="no memory timing named 'x'; there are ideal, kv260"):
        memory_timing("x", None)


def test_the_buffer_is_as_large_as_the_program_needs(simulator: list[FakeSimulation]):
    timing = memory_timing("ideal", None)
    with (
        Model.open(DEMO, TINY) as model,
        SimulatedAccelerator(model, compile_program(model, TINY, slots=2), timing=timing) as accelerator,
    ):
        assert accelerator.slots == 2 and accelerator.decode(0, 0, slot=1).cycles
        assert accelerator._program is not None
        assert simulator[0].memory.shape[1] == accelerator._program.window_beats
        assert simulator[0].timing is timing
    assert simulator[0].closed


def test_a_wave_file_appears_whole_when_the_simulation_closes(simulator: list[FakeSimulation], tmp_path: Path):
    target = tmp_path / "run.fst"
    with Model.open(DEMO, TINY) as model:
        accelerator = SimulatedAccelerator(
            model, compile_program(model, TINY), timing=memory_timing(None, None), waves=target
        )
        assert not target.exists()
        accelerator.close()
    assert target.read_bytes() == b"whole"
    assert [p.name for p in tmp_path.iterdir()] == ["run.fst"]


def test_a_simulation_that_was_killed_leaves_no_wave_file(simulator: list[FakeSimulation], tmp_path: Path):
    (tmp_path / "old.fst").write_bytes(b"of another run")
    with Model.open(DEMO, TINY) as model:
        accelerator = SimulatedAccelerator(
            model, compile_program(model, TINY), timing=memory_timing(None, None), waves=tmp_path / "old.fst"
        )
        simulator[0].killed = True
        accelerator.close()
    assert [p.name for p in tmp_path.iterdir()] == ["old.fst"]
    assert (tmp_path / "old.fst").read_bytes() == b"of another run"


def test_a_device_that_is_refused_is_closed_and_leaves_nothing(
    simulator: list[FakeSimulation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(FakeSimulation, "read", lambda self, offset: 0)
    with Model.open(DEMO, TINY) as model, pytest.raises(DeviceError, match="identity register"):
        SimulatedAccelerator(
            model, compile_program(model, TINY), timing=memory_timing(None, None), waves=tmp_path / "x.fst"
        )
    assert simulator[0].closed and list(tmp_path.iterdir()) == []


def test_without_a_simulator_the_message_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "tellme.sim.device", None)
    with Model.open(DEMO, TINY) as model, pytest.raises(UserError, match=r"pip install 'tellme-fpga\[sim\]'"):
        SimulatedAccelerator(
            model, compile_program(model, TINY), timing=memory_timing(None, None), waves=tmp_path / "x.fst"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_wave_file_that_cannot_be_written_is_refused(simulator: list[FakeSimulation], tmp_path: Path):
    target = tmp_path / "no" / "x.fst"
    with Model.open(DEMO, TINY) as model, pytest.raises(UserError, match="x.fst: cannot be written"):
        SimulatedAccelerator(model, compile_program(model, TINY), timing=memory_timing(None, None), waves=target)
    assert simulator == []


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "ten", "1 min"])
def test_a_time_out_that_is_no_number_of_seconds_is_refused_before_anything_is_built(
    simulator: list[FakeSimulation], monkeypatch: pytest.MonkeyPatch, text: str
):
    monkeypatch.setenv(TIMEOUT_VARIABLE, text)
    message = re.escape(f"{TIMEOUT_VARIABLE} must be a positive number of seconds, not {text!r}")
    with Model.open(DEMO, TINY) as model, pytest.raises(UserError, match=f"^{message}$"):
        SimulatedAccelerator(model, compile_program(model, TINY), timing=memory_timing(None, None))
    assert simulator == []


def test_the_time_out_of_a_pass_is_minutes_and_the_environment_sets_another(
    simulator: list[FakeSimulation], monkeypatch: pytest.MonkeyPatch
):
    with Model.open(DEMO, TINY) as model:
        monkeypatch.delenv(TIMEOUT_VARIABLE, raising=False)
        assert (
            SimulatedAccelerator(model, compile_program(model, TINY), timing=memory_timing(None, None)).timeout_s
            == TIMEOUT_S
            <= 3600
        )
        monkeypatch.setenv(TIMEOUT_VARIABLE, " 7.5 ")
        assert (
            SimulatedAccelerator(model, compile_program(model, TINY), timing=memory_timing(None, None)).timeout_s == 7.5
        )


def test_a_slow_pass_that_moves_is_waited_for_and_one_that_does_not_is_given_up(
    simulator: list[FakeSimulation], monkeypatch: pytest.MonkeyPatch
):
    """Beats restart the clock: how fast a simulation is depends on the host."""
    looks, clock = 0, 0.0

    def wait_done(self: FakeSimulation, timeout_s: float) -> bool:
        nonlocal looks, clock
        looks += 1
        clock += timeout_s + 1
        if looks <= moving:
            self.set("beats", looks)
        return looks == 20

    monkeypatch.setattr(FakeSimulation, "wait_done", wait_done)
    monkeypatch.setattr("tellme.host.machine.simulation.time", types.SimpleNamespace(monotonic=lambda: clock))
    with Model.open(DEMO, TINY) as model:
        accelerator = SimulatedAccelerator(
            model, compile_program(model, TINY), timing=memory_timing(None, None), timeout_s=30.0
        )
        moving = 19
        assert accelerator._wait() and clock > 3 * accelerator.timeout_s
        looks, clock, moving = 0, 0.0, 3
        assert not accelerator._wait() and looks < 12 and clock > accelerator.timeout_s
