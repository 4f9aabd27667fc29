"""A Vivado project of an accelerator on a Zynq board: wrapper, constraints, and the Tcl that builds it all.

Sources: UG994 (IP integrator), UG835 (Tcl commands), PG201 and PG082 (parameters of the processing systems), PG164
(Processor System Reset), PG247 (SmartConnect).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from amaranth.lib.wiring import Out
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tellme.golden.boards import CELL, MODULE, VLNV, ZYNQMP, Board, build_name, check
from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import ADDRESS_BITS, VERSION, build_hash
from tellme.hw.memory.axi import ADDRESS_WIDTH, Axi, AxiLite
from tellme.hw.verilog import accelerator_verilog

HERE = Path(__file__).resolve().parent
CONSTRAINTS = HERE.parent.parent / "constraints"

MARKER = "tellme-build.json"
"""File that says a folder is a build, and of what."""

GP_OF = {"HPC0": 0, "HPC1": 1, "HP0": 2, "HP1": 3, "HP2": 4, "HP3": 5}
"""S_AXI_GP numbers in the parameters of zynq_ultra_ps_e (PG201)."""

_PINS = {
    "zynq_ultra_ps_e": {
        "clock": "pl_clk0",
        "reset": "pl_resetn0",
        "irq": "pl_ps_irq0",
        "master": "M_AXI_HPM0_FPD",
        "master_clock": "maxihpm0_fpd_aclk",
    },
    "processing_system7": {
        "clock": "FCLK_CLK0",
        "reset": "FCLK_RESET0_N",
        "irq": "IRQ_F2P",
        "master": "M_AXI_GP0",
        "master_clock": "M_AXI_GP0_ACLK",
    },
}


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


# ---- the wrapper -----------------------------------------------------------------------------------------------------


def _bus(name: str, signature: Any, master: bool, parameters: dict[str, Any], leave: set[str]) -> dict[str, Any]:
    ports = []
    for signal, member in signature.members.items():
        if signal in leave:
            continue
        out = (member.flow is Out) == master
        width = member.shape if isinstance(member.shape, int) else member.shape.width
        ports.append({"signal": signal, "direction": "output" if out else "input ", "width": width})
    return {"name": name, "parameters": parameters, "ports": ports}


def wrapper(config: AcceleratorConfig, board: Board) -> str:
    """Verilog of module `golden.boards.MODULE`: the accelerator as the block design sees it."""
    check(config, board)
    protocol = "AXI4" if board.ps == ZYNQMP else "AXI3"
    address = 49 if board.ps == ZYNQMP else 32
    lite = AxiLite(address_width=ADDRESS_BITS)
    buses = [_bus("s_axi", lite, False, {"PROTOCOL": "AXI4LITE", "DATA_WIDTH": 32, "ADDR_WIDTH": ADDRESS_BITS}, set())]
    connections = [(f"s_axi_{s}", f"s_axi_{s}") for s in lite.members]
    masters = [f"m_axi_{i}" for i in range(config.ports)]
    axi = Axi(data_bytes=config.port_bytes)
    wires: list[dict[str, Any]] = []
    assigns: list[tuple[str, str]] = []
    for name in masters:
        bus = _bus(
            name,
            axi,
            True,
            {
                "PROTOCOL": protocol,
                "DATA_WIDTH": 8 * config.port_bytes,
                "ADDR_WIDTH": address,
                "ID_WIDTH": 0,
                "READ_WRITE_MODE": "READ_WRITE",
                "MAX_BURST_LENGTH": config.burst_beats,
                "NUM_READ_OUTSTANDING": config.outstanding,
                "SUPPORTS_NARROW_BURST": 0,
            },
            {"arid", "rid", "awid", "bid"},
        )
        for p in bus["ports"]:
            signal = p["signal"]
            inner = f"{name}_{signal}"
            if signal.endswith("addr"):
                inner = f"{inner}_40"
                wires.append({"name": inner, "width": ADDRESS_WIDTH})
                wide = (
                    f"{{{address - ADDRESS_WIDTH}'b0, {inner}}}"
                    if address > ADDRESS_WIDTH
                    else f"{inner}[{address - 1}:0]"
                )
                assigns.append((f"{name}_{signal}", wide))
                p["width"] = address
            elif protocol == "AXI3" and signal in ("arlen", "awlen"):
                # Never more than 16 beats.
                inner = f"{inner}_8"
                wires.append({"name": inner, "width": 8})
                assigns.append((f"{name}_{signal}", f"{inner}[3:0]"))
                p["width"] = 4
            elif protocol == "AXI3" and signal in ("arlock", "awlock"):
                inner = f"{inner}_1"
                wires.append({"name": inner, "width": 1})
                assigns.append((f"{name}_{signal}", f"{{1'b0, {inner}}}"))
                p["width"] = 2
            connections.append((f"{name}_{signal}", inner))
        connections += [(f"{name}_{s}", "") for s in ("arid", "awid")]
        connections += [(f"{name}_{s}", "4'b0") for s in ("rid", "bid")]
        buses.append(bus)
    return (
        _environment()
        .get_template("tellme_axi.v.j2")
        .render(
            name=build_name(config),
            module=MODULE,
            protocol=protocol,
            masters=masters,
            buses=buses,
            wires=wires,
            assigns=assigns,
            connections=connections,
        )
    )


# ---- the processing system -------------------------------------------------------------------------------------------


def ps_parameters(config: AcceleratorConfig, board: Board) -> dict[str, str]:
    """Parameters of the PS: which ports, how wide, which clock. Everything else is the board file's."""
    mhz = f"{config.clock_hz / 1e6:.6f}".rstrip("0").rstrip(".")
    ports = board.memory_ports[: config.ports]
    bits = str(8 * config.port_bytes)
    if board.ps == ZYNQMP:
        used = {GP_OF[p.split("_")[2]] for p in ports}
        out = {
            "PSU__FPGA_PL0_ENABLE": "1",
            "PSU__CRL_APB__PL0_REF_CTRL__SRCSEL": "IOPLL",
            "PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ": mhz,
            "PSU__USE__FABRIC__RST": "1",
            "PSU__NUM_FABRIC_RESETS": "1",
            "PSU__USE__IRQ0": "1",
            "PSU__USE__IRQ1": "0",
            "PSU__USE__M_AXI_GP0": "1",
            "PSU__USE__M_AXI_GP1": "0",
            "PSU__USE__M_AXI_GP2": "0",
            # As boot firmware leaves it (UG1087, afi_fs: 128 bit after reset): narrower, and whoever loads the bitstream
            # without PYNQ, which sets the register, loses three registers of four.
            "PSU__MAXIGP0__DATA_WIDTH": "128",
            "PSU__USE__S_AXI_GP6": "0",
        }
        for n in sorted(GP_OF.values()):
            out[f"PSU__USE__S_AXI_GP{n}"] = str(int(n in used))
            if n in used:
                out[f"PSU__SAXIGP{n}__DATA_WIDTH"] = bits
        return out
    out = {
        "PCW_EN_CLK0_PORT": "1",
        "PCW_FCLK_CLK0_BUF": "TRUE",
        "PCW_FPGA0_PERIPHERAL_FREQMHZ": mhz,
        "PCW_FPGA_FCLK0_ENABLE": "1",
        "PCW_EN_RST0_PORT": "1",
        "PCW_USE_M_AXI_GP0": "1",
        "PCW_USE_M_AXI_GP1": "0",
        "PCW_USE_FABRIC_INTERRUPT": "1",
        "PCW_IRQ_F2P_INTR": "1",
    }
    for n in range(4):
        used7 = f"S_AXI_HP{n}" in ports
        out[f"PCW_USE_S_AXI_HP{n}"] = str(int(used7))
        if used7:
            out[f"PCW_S_AXI_HP{n}_DATA_WIDTH"] = bits
    return out


def _memory(config: AcceleratorConfig, board: Board) -> list[dict[str, Any]]:
    """For each AXI master: the PS port, its clock, and the segments of memory behind it."""
    out = []
    for i, port in enumerate(board.memory_ports[: config.ports]):
        short = port.split("_")[2]
        if board.ps == ZYNQMP:
            group = f"SAXIGP{GP_OF[short]}"
            entry = {
                "clock": f"saxi{short.lower()}_fpd_aclk",
                "segments": [f"{group}/{short}_DDR_LOW", f"{group}/{short}_DDR_HIGH"],
                "excluded": [f"{group}/{short}_LPS_OCM", f"{group}/{short}_QSPI"],
            }
        else:
            entry = {"clock": f"{port}_ACLK", "segments": [f"{port}/{short}_DDR_LOWOCM"], "excluded": []}
        out.append({"master": f"m_axi_{i}", "port": port, **entry})
    return out


STRATEGIES = (
    "Performance_ExplorePostRoutePhysOpt",
    "Performance_ExtraTimingOpt",
    "Performance_NetDelay_high",
    "Congestion_SpreadLogic_high",
)
"""Strategies of implementation (UG904, appendix) in the order in which they are tried until one meets timing."""

CLOCK_PARAMETERS = {
    "zynq_ultra_ps_e": {
        "frequency": "PSU__CRL_APB__PL0_REF_CTRL__(?:ACT_)?FREQMHZ",
        "divisor0": "PSU__CRL_APB__PL0_REF_CTRL__DIVISOR0",
        "divisor1": "PSU__CRL_APB__PL0_REF_CTRL__DIVISOR1",
    },
    "processing_system7": {
        "frequency": "PCW_(?:ACT_)?FPGA0_PERIPHERAL_FREQMHZ",
        "divisor0": "PCW_FCLK0_PERIPHERAL_DIVISOR0",
        "divisor1": "PCW_FCLK0_PERIPHERAL_DIVISOR1",
    },
}
"""What the hand-off says of the PL clock, patterns of the parameters' names: what PYNQ and our driver set it by."""


def script(
    config: AcceleratorConfig,
    board: Board,
    jobs: int,
    *,
    strategies: Sequence[str] = (),
    synthesis_only: bool = False,
) -> str:
    """The Tcl that Vivado runs.

    Parameters
    ----------
    jobs : processes that it may use.
    strategies : of implementation, in the order in which they are tried; () : `STRATEGIES`.
    synthesis_only : stop behind synthesis, with its reports.
    """
    check(config, board)
    clocks = board.clocks(config.clock_hz, min(config.clock_hz, board.clock_floor))
    memory = _memory(config, board)
    pins = _PINS[board.ps]
    clocked = [f"{CELL}/clk", "reset/slowest_sync_clk", "registers/aclk"]
    clocked += [f"ps/{pins['master_clock']}"] + [f"ps/{p['clock']}" for p in memory]
    return (
        _environment()
        .get_template("build.tcl.j2")
        .render(
            name=build_name(config),
            board=board,
            board_pattern="*:{}:{}:*".format(*board.board_part.split(":")[1:]),
            config=config,
            module=MODULE,
            cell=CELL,
            zynqmp=board.ps == ZYNQMP,
            ps=pins,
            ps_parameters=ps_parameters(config, board),
            clocked=clocked,
            memory=memory,
            jobs=jobs,
            strategies=tuple(strategies) or STRATEGIES,
            chosen=strategies,
            synthesis_only=synthesis_only,
            clocks=[(hz, f"{hz / 1e6:.6f}", round(board.pl_reference_hz / hz)) for hz in clocks],
            clock_parameters=CLOCK_PARAMETERS[board.ps],
        )
    )


def constraints(board: Board) -> str:
    """Text of the board's constraints (XDC)."""
    return board.constraints or (CONSTRAINTS / f"{board.name}.xdc").read_text()


def manifest(config: AcceleratorConfig, board: Board) -> dict[str, Any]:
    """What a build is of; the driver reads it beside the bitstream."""
    return {
        "name": build_name(config),
        "board": board.name,
        "part": board.part,
        "version": VERSION,
        "build": f"{build_hash(config):08x}",
        "vlnv": VLNV,
        "cell": CELL,
        "clock_hz": config.clock_hz,
        "register_base": board.register_base,
        "memory_ports": list(board.memory_ports[: config.ports]),
        "config": asdict(config),
    }


def project(
    config: AcceleratorConfig,
    board: Board,
    *,
    jobs: int = 4,
    strategies: Sequence[str] = (),
    synthesis_only: bool = False,
) -> dict[str, str]:
    """Every file of a build that Vivado reads, and what describes it, by its path below the build's folder. Parameters as in `script`.

    Raises
    ------
    ConfigError : the board has not the configuration's ports.
    """
    check(config, board)
    described = json.dumps(manifest(config, board), indent=1) + "\n"
    return {
        "rtl/tellme.v": accelerator_verilog(config, primitives=True),
        f"rtl/{MODULE}.v": wrapper(config, board),
        f"constraints/{board.name}.xdc": constraints(board),
        "build.tcl": script(config, board, jobs, strategies=strategies, synthesis_only=synthesis_only),
        f"{build_name(config)}.json": described,
        MARKER: described,
    }
