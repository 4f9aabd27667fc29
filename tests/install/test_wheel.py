"""The project as a user installs it: a wheel made here, in an environment and a folder of awkward names, without the clone."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tellme.golden import project

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("golden", "hw", "sim", "host", "demo", "constraints")
AWKWARD = "my project é, #1 'a' $HOME & (b)"
PROMPT = "Once upon a time there was a kind girl named Mia."


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone, without what was made in it."""
    folder = tmp_path_factory.mktemp("source") / AWKWARD
    leave = shutil.ignore_patterns(".*", "build", "__pycache__", "*.egg-info", "*.so", "vectors", "measurements")
    shutil.copytree(ROOT, folder, ignore=leave, symlinks=True)
    return folder


def made(what: str, source: Path, out: Path, **environment: str) -> Path:
    """A `wheel` or an `sdist` of a folder, built without network."""
    script = f"import sys; from setuptools import build_meta; print(build_meta.build_{what}(sys.argv[1]))"
    out.mkdir(exist_ok=True)
    run = subprocess.run(
        [sys.executable, "-c", script, str(out)],
        cwd=source,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return out / run.stdout.splitlines()[-1]


def named(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as z:
        return set(z.namelist())


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = made("wheel", source, tmp_path_factory.mktemp("wheel"))
    assert not (source / "build").exists(), "`build/` is for what tellme builds"
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that has the wheel, and for the rest sees the packages of this one."""
    place = tmp_path_factory.mktemp("environment") / AWKWARD
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    site = next(place.glob("lib/python3*/site-packages"))
    # Of a folder in a .pth file no .pth files are read: the clone's editable install is not found through it.
    packages = place / "packages"
    packages.symlink_to(sysconfig.get_path("purelib"))
    paths = [packages, *(p for p in map(Path, sys.path) if p.name == "site-packages")]
    (site / "packages.pth").write_text("".join(f"{p}\n" for p in paths))
    with zipfile.ZipFile(wheel) as z:
        z.extractall(site)
    return place / "bin" / "python"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / f"work {AWKWARD}"
    folder.mkdir()
    return folder


def tellme(
    python: Path, cwd: Path, *arguments: str, told: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """The installed command; what the environment says of this clone is left out."""
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(python), "-c", "from tellme.host.cli import main; main()", *arguments],
        cwd=cwd,
        env=clean | environment,
        input=told,
        capture_output=True,
        text=True,
    )


def test_the_wheel_holds_every_file_of_its_parts_and_nothing_else(wheel: Path) -> None:
    names = named(wheel)
    with zipfile.ZipFile(wheel) as z:
        meta = f"{project.DISTRIBUTION.replace('-', '_')}-"
        metadata = z.read(next(n for n in names if n.endswith("METADATA"))).decode()
    want = {
        f"tellme/{p.relative_to(ROOT)}"
        for part in PARTS
        for p in (ROOT / part).rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    } | {"tellme/__init__.py", "tellme/__main__.py"}
    assert want <= names, sorted(want - names)
    rest = {n for n in names if not n.startswith(meta)} - want
    assert not rest, sorted(rest)
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert f"Name: {project.DISTRIBUTION}\n" in metadata


def test_draws_are_compiled_where_that_can_be_done(wheel: Path, python: Path, place: Path) -> None:
    """An extension that does not compile is left out without a word; `make` needs a compiler anyway."""
    assert shutil.which("cc") and Path(sysconfig.get_path("include"), "Python.h").exists(), "apt install python3-dev"
    script = "from tellme.host.text import _sampling as s; print(s.__file__)"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    out = subprocess.run([str(python), "-c", script], cwd=place, env=environment, capture_output=True, text=True)
    assert out.stdout.startswith(str(python.parents[1])), out.stdout + out.stderr


def test_a_source_archive_gives_the_same_wheel(wheel: Path, source: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(made("sdist", source, tmp_path / "sdist"), tmp_path)
    (folder,) = tmp_path.glob("tellme_fpga-*")
    assert named(made("wheel", folder, tmp_path / "wheel")) == named(wheel)


def test_without_a_compiler_the_project_installs_and_draws_the_same(wheel: Path, source: Path, tmp_path: Path) -> None:
    unbuilt = tmp_path / "source"
    shutil.copytree(source, unbuilt, ignore=shutil.ignore_patterns(".setuptools"), symlinks=True)
    other = made("wheel", unbuilt, tmp_path / "wheel", CC=str(tmp_path / "no compiler"))
    assert named(wheel) - named(other) == {n for n in named(wheel) if n.endswith(".so")} != set()
    with zipfile.ZipFile(other) as z:
        z.extractall(tmp_path / "site")
    draw = """
import numpy as np
from tellme.host.text.sampling import COMPILED, Sampler, Sampling
sampler = Sampler(Sampling(temperature=1.0, top_p=0.9, seed=7))
logits = np.random.default_rng(3).normal(0, 2, (20, 900)).astype(np.float32)
print(COMPILED, [sampler(row) for row in logits])
"""
    said = []
    for path in (tmp_path / "site", ROOT):
        run = subprocess.run(
            [sys.executable, "-c", draw],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(path)},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        said.append(run.stdout.split(" ", 1))
    assert [s[0] for s in said] == ["False", "True"] and said[0][1] == said[1][1]


def test_nothing_is_imported_from_the_clone(python: Path, place: Path) -> None:
    script = "import importlib, sys; print(*(importlib.import_module(n).__file__ for n in sys.argv[1:]), sep='\\n')"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    out = subprocess.run(
        [str(python), "-c", script, *(f"tellme.{p}" for p in PARTS[:5])],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert out.returncode == 0, out.stderr
    assert all(line.startswith(str(python.parents[1])) for line in out.stdout.splitlines()), out.stdout


def test_the_demo_runs_on_the_installed_simulation(python: Path, place: Path) -> None:
    r = tellme(
        python, place, "run", "--backend", "sim", "--model", "demo", "--check", "--max-new-tokens", "3",
        "--prompt", PROMPT,
    )  # fmt: skip
    assert r.returncode == 0, r.stderr
    assert r.stdout.startswith(PROMPT) and "logits of" in r.stderr and "equal the golden model's" in r.stderr
    assert not list(place.iterdir()), "nothing is left where the command ran"


def test_the_first_run_of_the_board_page_works_as_far_as_no_board_is_needed(python: Path, place: Path) -> None:
    r = tellme(python, place, "convert", "demo", "model.tlm", "--board", "kv260")
    assert r.returncode == 0, r.stderr
    r = tellme(python, place, "info", "model.tlm", "--board", "kv260")
    assert r.returncode == 0 and "buffer, bytes" in r.stdout
    r = tellme(python, place, "chat", "--backend", "golden", "--max-new-tokens", "4", "--json", told="One day\n")
    assert r.returncode == 0 and "text" in json.loads(r.stdout.splitlines()[0]), r.stderr


def test_a_project_is_built_and_the_command_it_prints_works(python: Path, place: Path) -> None:
    r = tellme(python, place, "verilog", "--board", "tiny", "--out", "verilog")
    assert r.returncode == 0 and (place / "verilog" / "tellme.v").read_text().count("endmodule") > 20, r.stderr
    tools = place / "bin"
    tools.mkdir()
    r = tellme(python, place, "build", "--board", "pynq_z2", "--out", "b c", PATH=str(tools))
    assert r.returncode == 0, r.stderr
    command = r.stdout.splitlines()[-1].strip()
    assert shlex.split(command)[:2] == ["cd", str(place / "b c")]
    (tools / "vivado").write_text('#!/bin/sh\npwd; echo "$@"\n')
    (tools / "vivado").chmod(0o755)
    run = subprocess.run(["/bin/sh", "-c", command], env={"PATH": str(tools)}, capture_output=True, text=True)
    assert run.stdout.splitlines() == [str(place / "b c"), "-mode batch -source build.tcl"], run.stderr
    assert (place / "b c" / "constraints" / "pynq_z2.xdc").is_file()


def test_a_simulator_is_built_where_every_folder_has_an_awkward_name(python: Path, place: Path) -> None:
    """Environment, cache, sources and working directory: none of their names reaches make or a shell unquoted."""
    script = """
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from tellme.sim import runner

class Inverter(wiring.Component):
    a: In(8)
    b: Out(8)
    def elaborate(self, platform):
        m = Module()
        m.d.sync += self.b.eq(~self.a)
        return m

runner.simulate(Inverter(), "bench")
"""
    (place / "bench.py").write_text(
        "import cocotb\nfrom cocotb.triggers import Timer\n\n@cocotb.test()\nasync def check(dut):\n"
        "    dut.rst.value = 0\n    dut.a.value = 5\n    dut.clk.value = 0\n    await Timer(1, 'ns')\n"
        "    dut.clk.value = 1\n    await Timer(1, 'ns')\n    assert int(dut.b.value) == 250\n"
    )
    cache = place / "cache $(touch x) `y`"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "TELLME_BUILD")}
    environment |= {"TELLME_BUILD": str(cache), "PYTHONPATH": str(place)}
    r = subprocess.run(
        [str(python), "-c", script, *(f"tellme.{p}" for p in PARTS[:5])],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stdout + r.stderr
    assert "1 cocotb tests passed" in r.stdout
    entries = [p for p in cache.iterdir() if (p / "done").exists()]
    (simulator,) = (p for p in entries if (p / "design.v").exists())
    assert sorted(p.name for p in simulator.iterdir() if p.name != "runs") == ["build.log", "design.v", "done", "dut"]
    (runtime,) = (p for p in entries if p != simulator)
    assert {p.suffix for p in runtime.iterdir() if p.name != "done"} == {".o"}
    assert sorted(p.name for p in place.iterdir() if p.name != "__pycache__") == ["bench.py", cache.name]
    listed = tellme(python, place, "cache", "--json", TELLME_BUILD=str(cache))
    facts = json.loads(listed.stdout)
    assert facts["path"] == str(cache) and {e["name"] for e in facts["entries"]} == {p.name for p in entries}
    assert facts["bytes"] < 5e6
