"""The simulated accelerator as a back end: the only module of the host that touches the simulator, when asked."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tellme.golden.boards import BOARDS
from tellme.golden.config import AcceleratorConfig
from tellme.golden.project import advice
from tellme.host.errors import UserError
from tellme.host.image.model import Model
from tellme.host.machine.device import Device
from tellme.host.machine.driver import Driver
from tellme.host.machine.placement import in_use
from tellme.host.machine.program import Program
from tellme.host.progress import Status

if TYPE_CHECKING:
    from tellme.sim.timing import MemoryTiming

DEFAULT_TIMING = "kv260"
TIMEOUT_S = 600.0
"""Wall clock without a beat, seconds, after which a pass is given up. A simulation is slow, but it moves; a pass that hangs
is stopped by the accelerator's own time-out long before."""
TIMEOUT_VARIABLE = "TELLME_SIM_TIMEOUT"
"""Environment variable with another number of seconds."""
SLICE_S = 5.0
"""Wall clock between two looks at whether a pass moves, seconds."""


def pass_timeout() -> float:
    """Seconds without a beat after which a simulated pass is given up.

    Raises
    ------
    UserError : the environment variable is no positive number.
    """
    text = os.environ.get(TIMEOUT_VARIABLE, "").strip()
    if not text:
        return TIMEOUT_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"{TIMEOUT_VARIABLE} must be a positive number of seconds, not {text!r}")
    return seconds


def memory_timing(name: str | None, stress: int | None) -> MemoryTiming:
    """The timing of the simulated memory: a preset, or random stalls with a seed.

    Raises
    ------
    UserError : there is no such preset.
    """
    from tellme.sim.timing import timing

    try:
        return timing(name or DEFAULT_TIMING) if stress is None else timing("stress", seed=stress)
    except ValueError as e:
        raise UserError(str(e)) from e


def unloadable(error: ImportError, instead: str = ", or take --backend golden") -> UserError:
    """Why the simulator cannot be loaded, and what to do; `instead`: what does without it."""
    return UserError(f"the simulator cannot be loaded ({error}); install it: {advice('sim')}{instead}")


def check_simulator(config: AcceleratorConfig, *, waves: bool = False) -> None:
    """Refuses at once what a simulation would fail on later: no compiler, a cache that cannot be written.

    Raises
    ------
    UserError : says what is missing.
    """
    try:
        from tellme.sim.device import check
        from tellme.sim.runner import SimulationError
    except ImportError as e:
        raise unloadable(e) from e
    from tellme.hw.cache import CacheError

    try:
        check(config, waves=waves)
    except (SimulationError, CacheError) as e:
        raise UserError(str(e)) from e


def open_simulated(config: AcceleratorConfig, beats: int, timing: str | None, status: Status) -> Device:
    """The simulated device with a buffer of `beats`, its ports' regions one behind the other.

    Parameters
    ----------
    timing : of the memory; that of the board, or the default, if None.

    Raises
    ------
    UserError : there is no such timing, or no simulator can be built.
    """
    check_simulator(config)
    from tellme.sim.device import SimDevice

    memory = memory_timing(timing or (config.name if config.name in BOARDS else None), None)
    with contextlib.ExitStack() as shown:

        def started(seconds: float, where: Path) -> None:
            text = f"building the simulator of {config.name}, once (kept in {where})"
            shown.enter_context(status.waiting(text, seconds))

        return SimDevice(config, beats, memory_timing=memory, phases=(), started=started)


class SimulatedAccelerator(Driver):
    """The RTL with a model loaded, and its wave file when it closes.

    Parameters
    ----------
    model : an open image.
    program : the model's, compiled for the configuration to build.
    timing : of the memory.
    waves : FST file to write; it appears when the simulation closes, and not at all if it had to be killed.
    trace : file for the records of what every unit does, complete when the simulation closes (sim/trace.py).
    status : told how long the simulator takes to build, if it has to be.
    random_start : seed of what registers and memories hold before the reset; None: what a bitstream leaves in them.
    timeout_s : wall clock without a beat after which a pass is given up, seconds; what the environment says if None.

    Raises
    ------
    UserError : the simulator is not installed, or the environment's time-out is no number.
    """

    def __init__(
        self,
        model: Model,
        program: Program,
        *,
        timing: MemoryTiming,
        waves: Path | None = None,
        trace: Path | None = None,
        status: Status | None = None,
        random_start: int | None = None,
        timeout_s: float | None = None,
    ):
        limit = pass_timeout() if timeout_s is None else timeout_s
        self._waves = waves
        self._folder: Path | None = None
        config = program.config
        try:
            from tellme.sim.device import SimDevice
        except ImportError as e:
            raise unloadable(e) from e
        try:
            if waves is not None:
                # Beside the file, so that it can be renamed into place.
                self._folder = Path(tempfile.mkdtemp(prefix=waves.name + ".", dir=waves.parent))
            with contextlib.ExitStack() as shown:

                def started(seconds: float, where: Path) -> None:
                    if status is not None:
                        text = f"building the simulator of {config.name}, once (kept in {where})"
                        shown.enter_context(status.waiting(text, seconds))

                device = SimDevice(
                    config,
                    program.window_beats,
                    memory_timing=timing,
                    phases=in_use(config, "sim").phases,
                    waves=self._folder,
                    trace=trace,
                    random_start=random_start,
                    started=started,
                )
            self._simulation = device
            try:
                super().__init__(device, config, timeout_s=limit)
                self.load(model, program)
            except BaseException:
                device.close()
                raise
        except OSError as e:
            self._discard()
            raise UserError(f"{waves}: cannot be written ({e.strerror})" if waves else str(e)) from e
        except BaseException:
            self._discard()
            raise

    def _wait(self) -> bool:
        """Waits as long as beats come: how fast a simulation is depends on the host."""
        seen: tuple[int, int] | None = None
        since = time.monotonic()
        while True:
            left = since + self.timeout_s - time.monotonic()
            if self.device.wait_done(max(0.0, min(SLICE_S, left))):
                return True
            moved = self.read("beats"), self.read("writes")
            if moved != seen:
                seen, since = moved, time.monotonic()
            elif time.monotonic() >= since + self.timeout_s:
                return False

    def _overdue(self) -> str:
        return (
            f"the simulated accelerator took no beat for {self.timeout_s:g} s of wall clock and was given up "
            f"({TIMEOUT_VARIABLE} sets another number of seconds)"
        )

    def _discard(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def close(self) -> None:
        """Ends the simulation and puts the wave file into place."""
        super().close()
        if self._folder is not None and self._waves is not None:
            files = list(self._folder.glob("*.fst"))
            if files and self._simulation.ended:
                files[0].replace(self._waves)
        self._discard()
