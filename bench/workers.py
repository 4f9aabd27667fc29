"""What the long runs have in common: the farm that they share their parts over, and programs that end with the worker that began them.

`python -m bench.workers MODULE ARGUMENT...` runs a module so.
"""

from __future__ import annotations

import argparse
import ctypes
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tellme.host.errors import TellmeError
from tellme.host.farm import Run, farm
from tellme.host.progress import progress

ROOT = Path(__file__).resolve().parents[1]
_PR_SET_PDEATHSIG = 1


def add_options(parser: argparse.ArgumentParser) -> None:
    """`--workers` and `--scheduler`, as `tellme explore` has them."""
    parser.add_argument("--workers", type=int, help="processes here; default: one for each core, 1: none but this one")
    parser.add_argument("--scheduler", help="scheduler of dask.distributed instead, as tcp://host:8786")


@contextmanager
def workers(a: argparse.Namespace, what: str) -> Iterator[Run]:
    """The farm that the options ask for, with a bar of how many of a run's tasks are done. Its errors end the program in one line."""
    try:
        with farm(a.workers, a.scheduler) as run:

            def shown(function: Callable[[Any], Any], tasks: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
                with progress(what, len(tasks)) as advance:
                    for name, found in run(function, tasks):
                        yield name, found
                        advance(1)

            yield shown
    except TellmeError as e:
        raise SystemExit(str(e)) from e


def end_with_parent() -> None:
    """Lets the kernel kill this process when the one that began it ends, which may be killed itself. (Linux; elsewhere nothing.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def module(*arguments: str, given: bytes = b"", errors: int = subprocess.STDOUT) -> subprocess.CompletedProcess[bytes]:
    """In a worker: runs a module of Python in the checkout, in a process of its own, which ends with the worker; it reads `given`."""
    command = [sys.executable, "-m", "bench.workers", *arguments]
    return subprocess.run(command, cwd=ROOT, input=given, stdout=subprocess.PIPE, stderr=errors)


if __name__ == "__main__":
    end_with_parent()
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
