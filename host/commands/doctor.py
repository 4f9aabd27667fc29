"""`tellme doctor`: is this board ready? One line a check, with what to do on each that fails."""

from __future__ import annotations

import platform
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from tellme.golden import registers
from tellme.golden.boards import BOARDS, buffer_bytes
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import CACHE_FORMATS, EIGHT, CacheFormat
from tellme.host.commands.common import AnyBoard, Bitstream, ConfigFile, Settings, preset, terminate
from tellme.host.errors import DeviceError, TellmeError
from tellme.host.image.model import Model, demo_folder
from tellme.host.machine.backends import CheckedBackend, GoldenBackend
from tellme.host.machine.board import TIMEOUT_S, bitstream_path
from tellme.host.machine.driver import Driver
from tellme.host.machine.passes import PassResult
from tellme.host.machine.placement import in_use
from tellme.host.machine.program import Program, compile_program
from tellme.host.provenance import json_line
from tellme.host.talk.power import rails
from tellme.host.text import sampling


def caches(config: AcceleratorConfig) -> list[CacheFormat]:
    """How an accelerator can keep keys and values."""
    every = (replace(kv, hadamard=turned) for turned in (False, True) for kv in CACHE_FORMATS.values())
    return [kv for kv in every if kv.problem(config) is None]


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes
    ----------
    name : what was checked.
    ok : False: failed; None: not checked, because something before it failed.
    said : what was found, or what is wrong and what to do.
    """

    name: str
    ok: bool | None
    said: str

    def line(self) -> str:
        """For the terminal."""
        return f"{'ok  ' if self.ok else '-   ' if self.ok is None else 'FAIL'} {self.name:<18} {self.said}"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Examination:
    """Runs the checks in order; one that needs another's result is left out when that failed.

    Parameters
    ----------
    config : the board's preset.
    bitstream : the `.bit` file to check with.
    device : a `pynq.Device`; PYNQ's active one if None.
    tell : is given each check as it is done.
    patterns : run the patterns of host/machine/patterns.py, too.
    """

    def __init__(
        self,
        config: AcceleratorConfig,
        *,
        bitstream: Path | None = None,
        device: Any = None,
        tell: Callable[[Check], None] | None = None,
        patterns: bool = False,
    ):
        self.config = config
        self._patterns_too = patterns
        self.checks: list[Check] = []
        self._path = bitstream_path(config, bitstream)
        self._device = device
        self._tell = tell
        self._values: dict[str, Any] = {}

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.ok is not False for check in self.checks)

    def _do(self, name: str, needs: tuple[str, ...], check: Callable[[], tuple[Any, str]]) -> None:
        missing = [n for n in needs if n not in self._values]
        if missing:
            done = Check(name, None, f"not checked: needs {missing[0]}")
        else:
            try:
                self._values[name], said = check()
                done = Check(name, True, said)
            except TellmeError as e:
                done = Check(name, False, str(e))
        self.checks.append(done)
        if self._tell is not None:
            self._tell(done)

    def run(self) -> bool:
        """All checks; whether the board is ready. The board is left configured, idle and free."""
        values, config = self._values, self.config
        draws = (
            "compiled" if sampling.COMPILED else "by NumPy (install gcc and python3-dev, then tellme again: quicker)"
        )
        self._do("python", (), lambda: (True, f"{platform.python_version()}, NumPy {np.__version__}, draws {draws}"))
        self._do("placement", (), lambda: (True, str(in_use(config, "board"))))
        self._do("pynq", (), self._pynq)
        self._do("bitstream", ("pynq",), self._bitstream)
        self._do("device", ("pynq",), self._find)
        self._do("memory", ("device",), self._memory)
        self._do("free", ("device",), self._free)
        self._do("design", ("device", "bitstream"), self._design)
        self._do("memory ports", ("design",), self._ports)
        try:
            self._do("configuration", ("design", "free"), self._configure)
            self._do("PL clock", ("configuration",), self._clock)
            if "free" in values:
                values["free"].release()
            self._do("power", ("device",), self._power)
            self._do("accelerator", ("PL clock", "memory ports", "memory"), self._accelerator)
            self._do("self-test", ("accelerator",), self._self_test)
            if self._patterns_too:
                self._do("patterns", ("self-test",), self._patterns)
        finally:
            if "free" in values:
                values["free"].release()
            if "accelerator" in values:
                values["accelerator"].close()
        return self.ok

    def _pynq(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq import ip

        return ip, f"{ip.pynq.__version__}"

    def _bitstream(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq.handoff import open_bitstream

        opened = open_bitstream(self._path, self.config)
        return opened, f"{opened.path.name} and .hwh, for {opened.device}-{opened.package}"

    def _find(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq import network

        device = network.find_device(self._device)
        where = f" at {device.ip_addr}" if device.has_capability("REMOTE") else ""
        return device, f"{device.name}{where} ({network.architecture(device)})"

    def _program(self) -> Program:
        with Model.open(demo_folder(), self.config) as model:
            return compile_program(model, self.config)

    def _memory(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq.buffers import check_memory

        program = self._program()
        needed = buffer_bytes(self.config, program.window_beats, in_use(self.config, "board").phases)
        said = check_memory(self._values["device"], self.config, needed)
        return program, f"{said} by the demo model (tellme info MODEL --board {self.config.name} for another)"

    def _free(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq.network import Lock

        return Lock(self._values["device"]), "no other program uses the board"

    def _design(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq import handoff
        from tellme.host.machine.pynq.overlay import open_overlay

        bitstream = self._values["bitstream"]
        overlay = open_overlay(bitstream, self._values["device"])
        name = handoff.accelerator_name(overlay, bitstream.path)
        timed = handoff.check_clock(overlay, self.config, bitstream.path)
        return overlay, f"{name} at {overlay.ip_dict[name]['phys_addr']:#x}, timed for {timed:g} MHz"

    def _clock(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq import handoff
        from tellme.host.machine.pynq.clocks import set_clock

        mhz = handoff.check_clock(self._values["design"], self.config, self._values["bitstream"].path)
        self.config = replace(self.config, clock_hz=round(mhz * 1e6))
        return mhz, set_clock(mhz)

    def _ports(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq.handoff import check_widths

        overlay, bitstream = self._values["design"], self._values["bitstream"]
        return True, check_widths(overlay, self.config, bitstream.path)

    def _configure(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq.overlay import download

        download(self._values["design"], self._values["bitstream"])
        return True, "the chip takes the bitstream"

    def _accelerator(self) -> tuple[Any, str]:
        from tellme.host.machine.pynq.device import PynqDevice

        device = PynqDevice(
            self._path,
            self.config,
            self._values["memory"].window_beats,
            device=self._values["device"],
            phases=in_use(self.config, "board").phases,
        )
        try:
            accelerator = Driver(device, self.config, timeout_s=TIMEOUT_S)
        except BaseException:
            device.close()
            raise
        build = registers.build_hash(self.config)
        how = "interrupt" if device.interrupts else "polling"
        return accelerator, f"identity, version, geometry and build {build:08x} are right; done by {how}"

    def _self_test(self) -> tuple[Any, str]:
        accelerator, config, eight = self._values["accelerator"], self.config, self._values["memory"]
        tokens = [1 + 7 * i % 1000 for i in range(config.lanes + 1)]
        passes = logits = 0
        results: list[PassResult] = []
        with Model.open(demo_folder(), config) as model:
            weights = model.weights()
            for kv in caches(config):
                program = eight if kv == EIGHT else compile_program(model, config, context=eight.context, kv=kv)
                accelerator.load(model, program)
                checked = CheckedBackend(accelerator, GoldenBackend(weights, config, context=eight.context, kv=kv))
                results += checked.prefill(tokens)
                results.append(checked.decode(2, len(tokens)))
                passes, logits = passes + checked.passes, logits + checked.logits
        beats, cycles = (sum(getattr(r, n) or 0 for r in results) for n in ("beats", "cycles"))
        if not cycles or not beats:
            raise DeviceError("the accelerator's counters stand still; load the bitstream again")
        rate = beats * config.beat_bytes / cycles * config.clock_hz
        return True, (
            f"{logits:,} logits of {passes} passes of the demo model equal the golden model's, with --kv "
            f"{', '.join(kv.options for kv in caches(config))}; "
            f"{beats / cycles:.0%} of the cycles bring a beat, {rate / 1e9:.1f} GB/s (a large model brings more)"
        )

    def _patterns(self) -> tuple[Any, str]:
        from tellme.host.machine import patterns

        done = patterns.run(self._values["accelerator"])
        return True, (
            f"{done.logits:,} logits of {done.passes} passes equal the golden model's: walking ones in each port, every table index, "
            f"scores that saturate and that are all equal ({done.cycles:,} cycles)"
        )

    def _power(self) -> tuple[Any, str]:
        if self._values["device"].has_capability("REMOTE"):
            return True, "not measured over the network"
        found = rails()
        if not found:
            board = BOARDS.get(self.config.name)
            return True, (
                "no power sensors in /sys/class/hwmon: energy will not be reported"
                + ("" if board is None or not board.name.startswith("k") else " (a Kria has one: modprobe ina2xx)")
            )
        return True, ", ".join(f"{rail.name} {rail.watts():.2f} W" for rail in found)


def command(
    board_name: AnyBoard = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    bitstream: Bitstream = None,
    selftest: Annotated[
        bool, typer.Option("--selftest", help="Run patterns through every unit, too; under a minute on a board.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check a board; every line that fails says what to do."""
    config = preset(board_name, "board", bitstream, None, config_file, settings)
    signal.signal(signal.SIGTERM, terminate)
    tell = None if as_json else lambda check: print(check.line(), flush=True)
    examination = Examination(config, bitstream=bitstream, tell=tell, patterns=selftest)
    ok = examination.run()
    if as_json:
        print(json_line({"ok": ok, "board": config.name, "checks": [c.record() for c in examination.checks]}))
    if not ok:
        raise SystemExit(1)
