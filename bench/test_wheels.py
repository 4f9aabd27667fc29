"""Whether boards can install what they need: the dependencies are resolved against the wheels that the registry has.

`make wheels`; a recorded run is in docs/measurements/wheels.md. Nothing is installed or built.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PYTHON = "3.10"
TAGS = ("manylinux2014", "manylinux_2_17", "manylinux_2_28", "manylinux_2_31", "linux")
"""glibc of Ubuntu 22.04 is 2.35."""


def wanted(machine: str, *extras: str) -> list[str]:
    """Requirements of the core and some extras on a board, as pip takes them: markers are decided here."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra in extras:
        lines += project["optional-dependencies"][extra]
    environment: dict[str, str] = {**default_environment(), "platform_machine": machine, "python_version": PYTHON}  # type: ignore[dict-item]
    parsed = [Requirement(line) for line in lines]
    return [f"{r.name}{r.specifier}" for r in parsed if r.marker is None or r.marker.evaluate(environment)]


def resolve(machine: str, requirements: list[str], folder: Path) -> dict[str, str]:
    """What pip would install: name to version."""
    report = folder / "report.json"
    platforms = [f"--platform={tag}_{machine}" for tag in TAGS]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--only-binary=:all:"]
        + [*platforms, f"--python-version={PYTHON}", "--implementation=cp", "--abi=cp310", "--abi=abi3", "--abi=none"]
        + ["--target", str(folder / "none"), "--report", str(report), *requirements],
        check=True,
    )
    return {i["metadata"]["name"]: i["metadata"]["version"] for i in json.loads(report.read_text())["install"]}


@pytest.mark.parametrize("machine", ["aarch64", "armv7l"])
def test_a_board_installs_wheels_alone(machine: str, tmp_path: Path) -> None:
    requirements = wanted(machine, "board")
    if machine == "armv7l":
        # NumPy is the image's: there is no wheel of it.
        requirements = [r for r in requirements if not r.startswith("numpy")]
    found = resolve(machine, requirements, tmp_path)
    print(f"\n{machine}, Python {PYTHON}: " + ", ".join(f"{n} {v}" for n, v in sorted(found.items())))
    lower = {name.lower() for name in found}
    assert {"typer", "rich", "jinja2"} <= lower and not any(name.startswith("amaranth") for name in lower)
    assert "pydantic" not in lower, "the image's is PYNQ's"
    assert ("tokenizers" in lower) == (machine == "aarch64")
    if machine == "aarch64":
        assert found["numpy"].startswith("1.")


@pytest.mark.parametrize("requirement", ["numpy>=1.21,<2", "pyyaml"])
def test_there_is_no_wheel_of_what_the_32_bit_boards_leave_out(requirement: str, tmp_path: Path) -> None:
    """NumPy, and PyYAML, which tokenizers (by huggingface_hub) and gguf need. When this fails, pyproject.toml may drop its
    markers."""
    with pytest.raises(subprocess.CalledProcessError):
        resolve("armv7l", [requirement], tmp_path)
