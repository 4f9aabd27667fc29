"""One simulated accelerator with the demo model for all tests of a module, and the golden model beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tellme.golden import screen
from tellme.golden.config import TINY
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.program import compile_program
from tellme.host.machine.simulation import SimulatedAccelerator
from tellme.sim.timing import timing

SLOTS = 3


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The demo model, converted for the tiny preset."""
    path: Path = tmp_path_factory.mktemp("image") / "demo.tlm"
    convert(read_checkpoint(demo_folder()), path, TINY)
    with Model.open(path, TINY) as model:
        yield model


@pytest.fixture(scope="session")
def demo_screened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """The same with one plane of a screened head."""
    path: Path = tmp_path_factory.mktemp("image") / "screened.tlm"
    read = read_checkpoint(demo_folder())
    planes = screen.quantise(*read.weights.head_rows, 1)
    convert(replace(read, weights=replace(read.weights, screen=planes)), path, TINY)
    with Model.open(path, TINY) as model:
        yield model


@pytest.fixture(scope="module")
def machine(demo: Model) -> Iterator[SimulatedAccelerator]:
    """The RTL of the tiny preset under the board's memory timing."""
    with SimulatedAccelerator(demo, compile_program(demo, TINY, slots=SLOTS), timing=timing("kv260")) as accelerator:
        yield accelerator
