"""What `tellme verilog` and `tellme build` write beside the Verilog: header, README, test bench."""

from __future__ import annotations

from collections.abc import Mapping

from tellme.golden.config import AcceleratorConfig
from tellme.host.machine.recording import record

VERILOG = {"tellme.v": "the accelerator, module `tellme`"}

BENCH = {
    "sim/Makefile": "builds and runs the test bench with Verilator: `make -C sim`",
    "sim/testbench.sv": "the test bench: clock, reset, register accesses, comparison",
    "sim/memory.sv": "AXI4 memory that checks the rules of the bus",
    "sim/script.hex": "what is written to registers and read from them, step by step",
    "sim/load0.hex": "memory before the first pass: program, model, cached keys; `load1.hex`, ...: what the host adds before others",
    "sim/result0.hex": "memory that the first pass must have written; `result1.hex`, ...: the others",
}
PRIMITIVES = {"sim/primitives/": "behaviour of the vendor's primitives, for simulation alone"}


def beside(
    config: AcceleratorConfig, files: Mapping[str, str], *, project: bool = False, primitives: bool = False
) -> dict[str, str]:
    """Files beside the Verilog, by their path.

    Parameters
    ----------
    files : path of every file that is written besides, and what it is; the first is the Verilog.
    project : it is a board's project.
    primitives : the Verilog may instantiate the vendor's.

    Raises
    ------
    ImportError : the generator is not installed.
    """
    from tellme.hw.delivery import header, readme
    from tellme.sim.standalone import bench

    about = {**files, header.NAME: "the registers as a C header", **BENCH, **(PRIMITIVES if primitives else {})}
    return {
        header.NAME: header.header(config),
        readme.NAME: readme.readme(config, about, project=project),
        **bench.files(config, record(config), f"../{next(iter(files))}", primitives=primitives),
    }
