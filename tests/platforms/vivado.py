"""A stand-in for Vivado: runs a build's Tcl in a real Tcl interpreter and keeps the graph that it draws.

It knows the commands, IPs, parameters, pins and address segments that a build may use, and errors on any other, on
objects that do not exist and on files that are not there. What it knows is from: UG835 (commands), UG994 (module
references, X_INTERFACE attributes), PG201 and UG1085 (zynq_ultra_ps_e), PG082 and UG585 (processing_system7), PG164
(proc_sys_reset), PG247 (smartconnect).

Run as a program it takes Vivado's arguments: `python -m tests.platforms.vivado -mode batch -source build.tcl ...`.
"""

from __future__ import annotations

import os
import re
import sys
import tkinter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ON, OFF = "1", "0"


class Refused(Exception):
    """Vivado would stop here."""


class Exit(Exception):
    """The script called `exit`."""


@dataclass
class Pin:
    """kind: clk, rst, intr, data or an interface's 'aximm'; role: out/in, or master/slave; when: parameter = value."""

    kind: str
    role: str
    when: tuple[str, str] | None = None
    clock: str | None = None
    width: str | int | None = None
    protocol: str | None = None


@dataclass
class Ip:
    """An IP: versions, parameters {pattern: (default, allowed pattern)}, pins, address segments {name: (base, size)}."""

    versions: tuple[str, ...]
    parameters: dict[str, tuple[str, str]]
    pins: dict[str, Pin]
    segments: dict[str, tuple[int, int]] = field(default_factory=dict)


def _zynqmp() -> Ip:
    """zynq_ultra_ps_e: PG201; DDR at 0 (2 GB) and 0x8_0000_0000, OCM and QSPI: UG1085, table 10-1."""
    bit = "[01]"
    parameters = {
        "PSU__USE__IRQ0": (OFF, bit),
        "PSU__USE__IRQ1": (OFF, bit),
        "PSU__USE__FABRIC__RST": (ON, bit),
        "PSU__NUM_FABRIC_RESETS": ("1", "[0-4]"),
    }
    pins = {
        "pl_resetn0": Pin("rst", "out", ("PSU__USE__FABRIC__RST", ON)),
        "pl_ps_irq0": Pin("intr", "in", ("PSU__USE__IRQ0", ON)),
    }
    for n in range(4):
        parameters[f"PSU__FPGA_PL{n}_ENABLE"] = (ON if n == 0 else OFF, bit)
        parameters[f"PSU__CRL_APB__PL{n}_REF_CTRL__FREQMHZ"] = ("100", r"\d+(\.\d+)?")
        parameters[f"PSU__CRL_APB__PL{n}_REF_CTRL__SRCSEL"] = ("IOPLL", "IOPLL|RPLL|DPLL")
        pins[f"pl_clk{n}"] = Pin("clk", "out", (f"PSU__FPGA_PL{n}_ENABLE", ON))
    for n, (name, clock) in enumerate((("HPM0_FPD", "hpm0_fpd"), ("HPM1_FPD", "hpm1_fpd"), ("HPM0_LPD", "hpm0_lpd"))):
        # After the board preset, both full-power masters are there.
        parameters[f"PSU__USE__M_AXI_GP{n}"] = (ON if n < 2 else OFF, bit)
        parameters[f"PSU__MAXIGP{n}__DATA_WIDTH"] = ("128", "32|64|128")
        when = (f"PSU__USE__M_AXI_GP{n}", ON)
        pins[f"maxi{clock}_aclk"] = Pin("clk", "in", when)
        pins[f"M_AXI_{name}"] = Pin("aximm", "master", when, f"maxi{clock}_aclk", f"PSU__MAXIGP{n}__DATA_WIDTH", "AXI4")
    segments = {}
    for n, name in enumerate(("HPC0", "HPC1", "HP0", "HP1", "HP2", "HP3")):
        parameters[f"PSU__USE__S_AXI_GP{n}"] = (OFF, bit)
        parameters[f"PSU__SAXIGP{n}__DATA_WIDTH"] = ("64", "32|64|128")
        when = (f"PSU__USE__S_AXI_GP{n}", ON)
        clock = f"saxi{name.lower()}_fpd_aclk"
        pins[clock] = Pin("clk", "in", when)
        pins[f"S_AXI_{name}_FPD"] = Pin("aximm", "slave", when, clock, f"PSU__SAXIGP{n}__DATA_WIDTH", "AXI4")
        segments[f"SAXIGP{n}/{name}_DDR_LOW"] = (0, 2 << 30)
        segments[f"SAXIGP{n}/{name}_DDR_HIGH"] = (0x8_0000_0000, 2 << 30)
        segments[f"SAXIGP{n}/{name}_QSPI"] = (0xC000_0000, 512 << 20)
        segments[f"SAXIGP{n}/{name}_LPS_OCM"] = (0xFF00_0000, 16 << 20)
    parameters["PSU__USE__S_AXI_GP6"] = (OFF, bit)
    return Ip(("3.3", "3.4", "3.5"), parameters, pins, segments)


def _zynq7000() -> Ip:
    """processing_system7: PG082; DDR and OCM behind the HP ports: UG585, table 4-1."""
    bit = "[01]"
    parameters = {"PCW_USE_FABRIC_INTERRUPT": (OFF, bit), "PCW_IRQ_F2P_INTR": (OFF, bit)}
    pins = {
        "IRQ_F2P": Pin("intr", "in", ("PCW_IRQ_F2P_INTR", ON)),
        "DDR": Pin("external", "master"),
        "FIXED_IO": Pin("external", "master"),
    }
    segments = {}
    for n in range(4):
        parameters[f"PCW_EN_CLK{n}_PORT"] = (ON if n == 0 else OFF, bit)
        parameters[f"PCW_EN_RST{n}_PORT"] = (ON if n == 0 else OFF, bit)
        parameters[f"PCW_FPGA_FCLK{n}_ENABLE"] = (ON if n == 0 else OFF, bit)
        parameters[f"PCW_FCLK_CLK{n}_BUF"] = ("FALSE", "TRUE|FALSE")
        parameters[f"PCW_FPGA{n}_PERIPHERAL_FREQMHZ"] = ("50", r"\d+(\.\d+)?")
        pins[f"FCLK_CLK{n}"] = Pin("clk", "out", (f"PCW_EN_CLK{n}_PORT", ON))
        pins[f"FCLK_RESET{n}_N"] = Pin("rst", "out", (f"PCW_EN_RST{n}_PORT", ON))
        parameters[f"PCW_USE_S_AXI_HP{n}"] = (OFF, bit)
        parameters[f"PCW_S_AXI_HP{n}_DATA_WIDTH"] = ("64", "32|64")
        when = (f"PCW_USE_S_AXI_HP{n}", ON)
        pins[f"S_AXI_HP{n}_ACLK"] = Pin("clk", "in", when)
        width = f"PCW_S_AXI_HP{n}_DATA_WIDTH"
        pins[f"S_AXI_HP{n}"] = Pin("aximm", "slave", when, f"S_AXI_HP{n}_ACLK", width, "AXI3")
        segments[f"S_AXI_HP{n}/HP{n}_DDR_LOWOCM"] = (0, 512 << 20)
    for n in range(2):
        parameters[f"PCW_USE_M_AXI_GP{n}"] = (ON if n == 0 else OFF, bit)
        when = (f"PCW_USE_M_AXI_GP{n}", ON)
        pins[f"M_AXI_GP{n}_ACLK"] = Pin("clk", "in", when)
        pins[f"M_AXI_GP{n}"] = Pin("aximm", "master", when, f"M_AXI_GP{n}_ACLK", 32, "AXI3")
    return Ip(("5.5",), parameters, pins, segments)


def _smartconnect() -> Ip:
    pins = {"aclk": Pin("clk", "in"), "aresetn": Pin("rst", "in")}
    pins |= {f"S{n:02}_AXI": Pin("aximm", "slave", ("NUM_SI", f">{n}"), "aclk") for n in range(16)}
    pins |= {f"M{n:02}_AXI": Pin("aximm", "master", ("NUM_MI", f">{n}"), "aclk") for n in range(16)}
    number = r"[1-9]|1[0-6]"
    return Ip(("1.0",), {"NUM_SI": ("1", number), "NUM_MI": ("1", number), "NUM_CLKS": ("1", "[1-9]")}, pins)


CATALOG: dict[str, Ip] = {
    "zynq_ultra_ps_e": _zynqmp(),
    "processing_system7": _zynq7000(),
    "smartconnect": _smartconnect(),
    "proc_sys_reset": Ip(
        ("5.0",),
        {"C_EXT_RESET_HIGH": (OFF, "[01]")},
        {
            "slowest_sync_clk": Pin("clk", "in"),
            "ext_reset_in": Pin("rst", "in"),
            "interconnect_aresetn": Pin("rst", "out"),
            "peripheral_aresetn": Pin("rst", "out"),
        },
    ),
}

PARTS = "xck26-sfvc784-2LV-c xczu7ev-ffvc1156-2-e xczu48dr-ffvg1517-2-e xczu3eg-sbva484-1-i xc7z020clg400-1 xczu9eg-ffvb1156-2-e".split()
BOARD_FILES = [
    *(f"xilinx.com:kv260_som:part0:1.{n}" for n in (3, 4)),
    *(f"xilinx.com:kr260_som:part0:{n}" for n in ("1.0", "1.1")),
    "xilinx.com:zcu104:part0:1.1",
    "realdigital.org:rfsoc4x2:part0:1.0",
    "avnet.com:ultra96v2:part0:1.2",
    "tul.com.tw:pynq-z2:part0:1.0",
    "xilinx.com:zcu102:part0:3.4",
    "digilentinc.com:zybo-z7-20:part0:1.0",
]
DESIGN_PROPERTIES = {"BITSTREAM.GENERAL.COMPRESS": "TRUE|FALSE", "BITSTREAM.CONFIG.OVERTEMPSHUTDOWN": "ENABLE|DISABLE"}
"""UG908, table of bitstream settings."""
REFERENCE_MHZ = 33.333
"""PSS_REF_CLK of every board here; the I/O PLL multiplies it by 45 (UG1085) or 30 (UG585)."""

COMMANDS = set(
    """apropos archive_project checkpoint_vcd close_design close_project close_sim connect_net create_cell create_clock
    create_net create_pin create_port current_design current_instance current_project current_run current_scope
    current_sim current_time delete_runs describe disconnect_net endgroup exclude_bd_addr_seg fail_run filter find_routing_path
    flush_vcd generate_target get_cells get_clocks get_nets get_pins get_ports get_property group_path help help_run import_files
    infer_diff_pairs launch_runs launch_simulation launch_step launch_steps link_design list_property list_targets log_saif
    log_vcd log_wave ltrace make_wrapper move_files open_checkpoint open_project open_run opt_design phys_opt_design place_cell
    place_design place_ports power_opt_design print_value program_hw_devices ptrace read_checkpoint read_verilog read_xdc redo
    refresh_design refresh_hw_device relaunch_sim reimport_files reorder_files report_power report_property report_scopes
    report_utilization report_values reset_property reset_run reset_simulation restart resume_simulation route_design run
    run_state_hw_jtag save_bd_design save_constraints save_project_as scope set_false_path set_property set_value show_objects
    source start_gui startgroup step stop stop_gui swap_locs synth_design undo unplace_cell update_design update_files
    upgrade_ip validate_bd_design version wait_on_run wait_on_runs write_bitstream write_checkpoint write_hw_platform xsim""".split()
)
"""Commands of Vivado that a procedure must not be called like: UG835, the short names above all (`step` is the simulator's)."""

AXI = {
    "AXI4": "ARVALID ARREADY ARADDR ARLEN ARSIZE ARBURST ARLOCK ARCACHE ARPROT ARQOS RVALID RREADY RDATA RRESP RLAST "
    "AWVALID AWREADY AWADDR AWLEN AWSIZE AWBURST AWLOCK AWCACHE AWPROT AWQOS WVALID WREADY WDATA WSTRB WLAST "
    "BVALID BREADY BRESP",
    "AXI4LITE": "ARVALID ARREADY ARADDR ARPROT RVALID RREADY RDATA RRESP AWVALID AWREADY AWADDR AWPROT WVALID WREADY "
    "WDATA WSTRB BVALID BREADY BRESP",
}
AXI["AXI3"] = AXI["AXI4"]
FIXED_WIDTHS = {
    "AXI4": {"LEN": 8, "LOCK": 1, "SIZE": 3, "BURST": 2, "CACHE": 4, "PROT": 3, "QOS": 4, "RESP": 2},
    "AXI3": {"LEN": 4, "LOCK": 2, "SIZE": 3, "BURST": 2, "CACHE": 4, "PROT": 3, "QOS": 4, "RESP": 2},
    "AXI4LITE": {"PROT": 3, "RESP": 2},
}


def read_module(path: Path) -> tuple[str, dict[str, Pin], dict[str, dict[str, str]]]:
    """(name, pins, parameters by interface) that Vivado infers from a Verilog module's X_INTERFACE attributes."""
    text = path.read_text()
    head = re.search(r"module\s+(\w+)\s*\((.*?)\);", text, re.S)
    if not head:
        raise Refused(f"{path}: no module")
    pins: dict[str, Pin] = {}
    parameters: dict[str, dict[str, str]] = {}
    signals: dict[str, dict[str, tuple[str, int]]] = {}
    declaration = re.compile(r"((?:\(\*.*?\*\)\s*)*)(input|output)\s+wire\s+(?:\[(\d+):0\]\s+)?(\w+)", re.S)
    for attributes, direction, high, port in declaration.findall(head[2]):
        found = dict(re.findall(r'\(\*\s*(\w+)\s*=\s*"([^"]*)"\s*\*\)', attributes))
        if "X_INTERFACE_INFO" not in found:
            raise Refused(f"{port}: no interface, it would dangle")
        kind, name, signal = found["X_INTERFACE_INFO"].split()
        if "X_INTERFACE_PARAMETER" in found:
            words = [w.split() for w in found["X_INTERFACE_PARAMETER"].split(",")]
            if any(len(w) != 2 for w in words) or words[0] != ["XIL_INTERFACENAME", name]:
                raise Refused(f"{port}: X_INTERFACE_PARAMETER {found['X_INTERFACE_PARAMETER']!r}")
            parameters.setdefault(name, {}).update(words[1:])
        width = int(high or 0) + 1
        role = "out" if direction == "output" else "in"
        short = {
            ("xilinx.com:signal:clock:1.0", "CLK"): "clk",
            ("xilinx.com:signal:reset:1.0", "RST"): "rst",
            ("xilinx.com:signal:interrupt:1.0", "INTERRUPT"): "intr",
        }.get((kind, signal))
        if short:
            pins[port] = Pin(short, role)
        elif kind == "xilinx.com:interface:aximm:1.0":
            if signal in signals.setdefault(name, {}):
                raise Refused(f"{name} has two {signal}")
            signals[name][signal] = (role, width)
        else:
            raise Refused(f"{port}: unknown interface {kind} {signal}")
    clocks = {p: parameters.get(p, {}) for p, pin in pins.items() if pin.kind == "clk"}
    for name, bus in signals.items():
        q = parameters.get(name, {})
        protocol = q.get("PROTOCOL", "?")
        if protocol not in AXI or set(bus) != set(AXI[protocol].split()):
            raise Refused(f"{name}: not all signals, or other signals, than {protocol}'s: {sorted(bus)}")
        role = "master" if bus["AWVALID"][0] == "out" else "slave"
        for signal, (direction, width) in bus.items():
            to_slave = signal[-5:] != "READY" and signal[0] in "AW" or signal in ("RREADY", "BREADY")
            if (direction == "out") != (to_slave == (role == "master")):
                raise Refused(f"{name} {signal}: wrong direction")
            data = int(q["DATA_WIDTH"])
            fixed = FIXED_WIDTHS[protocol].get(re.sub("^(A[RW]|[RWB])", "", signal), 1)
            wanted = {"DATA": data, "STRB": data // 8, "ADDR": int(q["ADDR_WIDTH"])}.get(signal[-4:], fixed)
            if width != wanted:
                raise Refused(f"{name} {signal}: {width} bits instead of {wanted}")
        owners = [c for c, p in clocks.items() if name in p.get("ASSOCIATED_BUSIF", "").split(":")]
        if len(owners) != 1:
            raise Refused(f"{name}: no clock is associated with it")
        reset = clocks[owners[0]].get("ASSOCIATED_RESET")
        if reset not in pins or parameters.get(reset, {}).get("POLARITY") != "ACTIVE_LOW":
            raise Refused(f"{owners[0]}: associated reset {reset!r} is no active-low reset")
        pins[name] = Pin("aximm", role, None, owners[0], data, protocol)
    return head[1], pins, parameters


@dataclass
class Cell:
    name: str
    type: str
    parameters: dict[str, str]
    all_pins: dict[str, Pin]
    segments: dict[str, tuple[int, int]]
    masters: tuple[str, ...] = ()

    def pins(self) -> dict[str, Pin]:
        """The pins that its parameters switch on."""

        def on(pin: Pin) -> bool:
            if pin.when is None:
                return True
            value = self.parameters[pin.when[0]]
            return int(value) > int(pin.when[1][1:]) if pin.when[1].startswith(">") else value == pin.when[1]

        return {n: p for n, p in self.all_pins.items() if on(p)}


@dataclass
class Address:
    space: str
    segment: str
    base: int
    size: int


STRATEGIES = (
    "Performance_Explore Performance_ExplorePostRoutePhysOpt Performance_LBlockPlacement "
    "Performance_LBlockPlacementFanoutOpt Performance_EarlyBlockPlacement Performance_NetDelay_high "
    "Performance_NetDelay_low Performance_Retiming Performance_ExtraTimingOpt Performance_RefinePlacement "
    "Congestion_SpreadLogic_high Congestion_SpreadLogic_medium Congestion_SpreadLogic_low"
).split()
"""Implementation strategies of UG904 (appendix, Vivado implementation strategies) for chips of one die."""


class Vivado:
    """One run. `cells`, `nets`, `links`, `addresses` are the graph; `log` is what the script said.

    Parameters
    ----------
    board_files, parts, ips : what this installation has; board files as a list of their names, or all or none.
    clocks : what Vivado says of clocks (CONFIG.FREQ_HZ), for pins by pattern; what the PS makes if not given.
    setup, hold : worst slack that implementation reports, ns; of each strategy, or of all.
    fail : run (synth_1, impl_1) that does not complete.
    """

    def __init__(
        self,
        *,
        board_files: bool | list[str] = True,
        parts: bool = True,
        ips: dict[str, Ip] | None = None,
        setup: str | Mapping[str, str] = "0.123",
        hold: str | Mapping[str, str] = "0.011",
        fail: str | None = None,
        echo: bool = False,
        clocks: dict[str, str] | None = None,
    ) -> None:
        self.clocks = clocks or {}
        self.board_files = {True: BOARD_FILES, False: []}[board_files] if isinstance(board_files, bool) else board_files
        self.parts, self.fail, self.echo = parts, fail, echo
        self.catalog = CATALOG if ips is None else ips
        self.slack = {"STATS.WNS": setup, "STATS.WHS": hold}
        self.cells: dict[str, Cell] = {}
        self.nets: list[set[str]] = []
        self.links: list[tuple[str, str]] = []
        self.external: set[str] = set()
        self.addresses: list[Address] = []
        self.excluded: set[tuple[str, str]] = set()
        self.properties: dict[tuple[str, str], str] = {}
        self.files: list[Path] = []
        self.constraints: list[Path] = []
        self.runs: dict[str, str] = {"synth_1": "0%", "impl_1": "0%"}
        self.log: list[str] = []
        self.status = 0
        self.done: list[str] = []
        self.part = ""
        self.project = Path()
        self.tcl = tkinter.Tcl()
        self._error: BaseException | None = None
        self.tcl.eval("rename puts tcl_puts")  # into files it writes as ever
        for name in dir(self):
            if name.startswith("do_"):
                self.tcl.createcommand(name[3:], self._guard(getattr(self, name)))

    def _guard(self, f: Callable[..., object]) -> Callable[..., object]:
        def call(*args: str) -> object:
            try:
                return f(*args)
            except BaseException as e:
                self._error = self._error or e
                raise

        return call

    def run(self, script: Path) -> int:
        """Sources the script; its exit code. Raises Refused where Vivado would stop, or one of its commands is redefined."""
        before = set(self._list(self.tcl.eval("info procs")))
        try:
            self.tcl.call("source", str(script))
        except tkinter.TclError as e:
            if self._error is not None and not isinstance(self._error, Exit):
                raise self._error from e
            if self._error is None:
                raise Refused(str(e)) from e
        known = COMMANDS | {n[3:] for n in dir(self) if n.startswith("do_")}
        if taken := known & (set(self._list(self.tcl.eval("info procs"))) - before):
            raise Refused(f"procedures shadow commands of Vivado: {', '.join(sorted(taken))}")
        return self.status

    # ---- helpers -----------------------------------------------------------------------------------------------------

    def _list(self, text: str) -> list[str]:
        return [str(x) for x in self.tcl.splitlist(text)]

    def _options(self, args: tuple[str, ...], flags: str, values: str = "") -> tuple[dict[str, str], list[str]]:
        """Options and the rest; an option that is neither a flag nor takes a value is refused."""
        options: dict[str, str] = {}
        rest: list[str] = []
        words = list(args)
        while words:
            w = str(words.pop(0))
            if w in flags.split():
                options[w] = ON
            elif w in values.split():
                if not words:
                    raise Refused(f"{w} needs a value")
                options[w] = str(words.pop(0))
            elif w.startswith("-") and not re.fullmatch(r"-\d.*", w):
                raise Refused(f"unknown option {w}")
            else:
                rest.append(w)
        return options, rest

    def _one(self, rest: list[str]) -> str:
        if len(rest) != 1 or not rest[0]:
            raise Refused(f"one object expected, not {rest}")
        return rest[0]

    def pin(self, path: str) -> Pin:
        """A pin or interface of a cell, by `cell/pin`."""
        cell, _, name = path.partition("/")
        if cell not in self.cells or name not in self.cells[cell].pins():
            raise Refused(f"no pin {path}")
        return self.cells[cell].pins()[name]

    def driver(self, path: str) -> str:
        """The pin that drives the net of a pin."""
        for net in self.nets:
            if path in net:
                (out,) = [p for p in net if self.pin(p).role == "out"]
                return out
        raise Refused(f"{path} dangles")

    def frequency(self, source: str) -> int:
        """Hz that the PS makes, with its integer dividers."""
        cell, _, name = source.partition("/")
        p = self.cells[cell].parameters
        if self.cells[cell].type == "zynq_ultra_ps_e":
            want, pll = float(p[f"PSU__CRL_APB__PL{name[-1]}_REF_CTRL__FREQMHZ"]), REFERENCE_MHZ * 45
        else:
            want, pll = float(p[f"PCW_FPGA{name[-1]}_PERIPHERAL_FREQMHZ"]), REFERENCE_MHZ * 30
        dividers = {a * b for a in range(1, 64) for b in range(1, 64)}
        return int(pll / min(dividers, key=lambda d: abs(pll / d - want)) * 1e6)

    # ---- general -----------------------------------------------------------------------------------------------------

    def do_puts(self, *args: str) -> None:
        _, rest = self._options(args, "-nonewline")
        if len(rest) == 2 and rest[0] not in ("stdout", "stderr"):
            self.tcl.call("tcl_puts", *args)
            return
        text = str(rest[-1])
        self.log.append(text)
        if self.echo:
            print(text, flush=True)

    def do_exit(self, code: str = "0") -> None:
        self.status = int(code)
        raise Exit

    def do_get_parts(self, *args: str) -> str:
        options, rest = self._options(args, "-quiet")
        found = [p for p in PARTS if self.parts and p == self._one(rest)]
        if not found and not options:
            raise Refused(f"no part {rest}")
        return " ".join(found)

    def do_get_board_parts(self, *args: str) -> str:
        _, rest = self._options(args, "-quiet")
        pattern = re.escape(self._one(rest)).replace(r"\*", ".*")
        return " ".join(b for b in self.board_files if re.fullmatch(pattern, b))

    def do_get_ipdefs(self, *args: str) -> str:
        _, rest = self._options(args, "-all")
        pattern = re.escape(self._one(rest)).replace(r"\*", ".*")
        all_ = [f"xilinx.com:ip:{n}:{v}" for n, ip in self.catalog.items() for v in ip.versions]
        return " ".join(v for v in all_ if re.fullmatch(pattern, v))

    def do_create_project(self, *args: str) -> None:
        options, (name, folder) = self._options(args, "-force", "-part")
        if options["-part"] not in PARTS:
            raise Refused(f"no part {options['-part']}")
        self.part, self.name = options["-part"], name
        self.project = Path(folder)
        self.project.mkdir(parents=True)

    def do_current_project(self) -> str:
        return "project"

    def do_current_fileset(self) -> str:
        return "sources_1"

    def do_current_design(self) -> str:
        return "design"

    def do_add_files(self, *args: str) -> None:
        options, rest = self._options(args, "-norecurse", "-fileset")
        for f in self._list(self._one(rest)):
            if not Path(f).is_file():
                raise Refused(f"no file {f}")
            if options.get("-fileset", "sources_1") == "constrs_1":
                self.constraints.append(Path(f))
            else:
                self.files.append(Path(f))

    def do_update_compile_order(self, *args: str) -> None:
        self._options(args, "", "-fileset")

    # ---- block design ------------------------------------------------------------------------------------------------

    def do_create_bd_design(self, name: str) -> None:
        self.design = name

    def do_create_bd_cell(self, *args: str) -> str:
        options, rest = self._options(args, "", "-type -vlnv -reference")
        name = self._one(rest)
        if name in self.cells:
            raise Refused(f"cell {name} exists")
        if options["-type"] == "module":
            modules = {}
            for f in self.files:
                if "X_INTERFACE" in f.read_text():
                    module, pins, parameters = read_module(f)
                    modules[module] = (pins, parameters)
            if options["-reference"] not in modules:
                raise Refused(f"no module {options['-reference']} among the sources")
            pins, parameters = modules[options["-reference"]]
            slaves = [n for n, p in pins.items() if p.kind == "aximm" and p.role == "slave"]
            segments = {f"{s}/reg0": (0, 1 << int(parameters[s]["ADDR_WIDTH"])) for s in slaves}
            masters = tuple(n for n, p in pins.items() if p.kind == "aximm" and p.role == "master")
            self.cells[name] = Cell(name, options["-reference"], {}, pins, segments, masters)
            self.module_parameters = parameters
            return name
        vendor, library, ip, version = options["-vlnv"].split(":")
        if (vendor, library) != ("xilinx.com", "ip") or ip not in self.catalog:
            raise Refused(f"no IP {options['-vlnv']}")
        if version not in self.catalog[ip].versions:
            raise Refused(f"no version {version} of {ip}")
        kind = self.catalog[ip]
        masters = ("Data",) if ip in ("zynq_ultra_ps_e", "processing_system7") else ()
        defaults = {k: d for k, (d, _) in kind.parameters.items()}
        self.cells[name] = Cell(name, ip, defaults, kind.pins, kind.segments, masters)
        return name

    def do_apply_bd_automation(self, *args: str) -> None:
        options, rest = self._options(args, "", "-rule -config")
        cell = self.cells[self._one(rest)]
        if options["-rule"] != f"xilinx.com:bd_rule:{cell.type}":
            raise Refused(f"rule {options['-rule']} for {cell.type}")
        words = self._list(options["-config"])
        config = dict(zip(words[::2], words[1::2], strict=True))
        allowed = {"apply_board_preset", "make_external", "Master", "Slave"}
        if not set(config) <= allowed:
            raise Refused(f"automation knows no {set(config) - allowed}")
        if config["apply_board_preset"] == ON and ("project", "board_part") not in self.properties:
            raise Refused("a preset is wanted, but no board is set")
        for name in filter(None, re.split(r",\s*", config.get("make_external", ""))):
            if cell.pins()[name].kind != "external":
                raise Refused(f"{name} is no external interface")
            self.external.add(f"{cell.name}/{name}")

    def do_get_bd_cells(self, *args: str) -> str:
        return self.cells[self._one(list(args))].name

    def do_get_bd_pins(self, *args: str) -> str:
        path = self._one(list(args))
        if self.pin(path).kind not in ("clk", "rst", "intr", "data"):
            raise Refused(f"{path} is an interface")
        return path

    def do_get_bd_intf_pins(self, *args: str) -> str:
        path = self._one(list(args))
        if self.pin(path).kind != "aximm":
            raise Refused(f"{path} is no interface")
        return path

    def do_connect_bd_net(self, *args: str) -> None:
        pins = {str(a) for a in args}
        kinds = {self.pin(p).kind for p in pins}
        joined = [n for n in self.nets if n & pins]
        for n in joined:
            self.nets.remove(n)
        net = pins.union(*joined)
        outs = [p for p in net if self.pin(p).role == "out"]
        if len(kinds) != 1 or len(outs) != 1 or len(net) < 2:
            raise Refused(f"net of {sorted(net)}: kinds {kinds}, drivers {outs}")
        self.nets.append(net)

    def do_connect_bd_intf_net(self, *args: str) -> None:
        a, b = (str(x) for x in args)
        for p in (a, b):
            if any(p in link for link in self.links):
                raise Refused(f"{p} is connected already")
        if {self.pin(a).role, self.pin(b).role} != {"master", "slave"}:
            raise Refused(f"{a} and {b}: {self.pin(a).role} and {self.pin(b).role}")
        self.links.append((a, b) if self.pin(a).role == "master" else (b, a))

    def do_get_bd_addr_spaces(self, *args: str) -> str:
        path = self._one(list(args))
        cell, _, name = path.partition("/")
        if cell not in self.cells or name not in self.cells[cell].masters:
            raise Refused(f"no address space {path}")
        return path

    def _segment(self, path: str) -> tuple[int, int]:
        cell, _, name = path.partition("/")
        if cell not in self.cells or name not in self.cells[cell].segments:
            raise Refused(f"no segment {path}")
        if name.endswith("_DDR_HIGH") and ("project", "board_part") not in self.properties:
            raise Refused(f"no segment {path}: without a board file the DDR has 2 GB")
        base, size = self.cells[cell].segments[name]
        if name.endswith("_DDR_LOWOCM") and "zybo" in self.properties.get(("project", "board_part"), ""):
            size *= 2  # PCW_DDR_RAM_HIGHADDR of its preset: 1 GB
        return base, size

    def do_get_bd_addr_segs(self, *args: str) -> str:
        options, rest = self._options(args, "-quiet")
        path = self._one(rest)
        try:
            self._segment(path)
        except Refused:
            if options:
                return ""
            raise
        return path

    def do_assign_bd_address(self, *args: str) -> None:
        options, rest = self._options(args, "-force", "-offset -range -target_address_space")
        segment = self._one(rest)
        base, size = self._segment(segment)
        a = Address(
            options["-target_address_space"],
            segment,
            int(options.get("-offset", str(base)), 0),
            int(options.get("-range", str(size)), 0),
        )
        if a.size & (a.size - 1) or a.base % a.size or a.size < 4096 or a.size > size:
            raise Refused(f"{segment}: {a.size} bytes at {a.base:#x}")
        self.addresses.append(a)

    def do_exclude_bd_addr_seg(self, *args: str) -> None:
        options, rest = self._options(args, "", "-target_address_space")
        self._segment(self._one(rest))
        self.excluded.add((options["-target_address_space"], self._one(rest)))

    def do_validate_bd_design(self) -> None:
        self.done.append("validate")
        check(self)

    def do_save_bd_design(self) -> None:
        self.done.append("save")

    # ---- properties --------------------------------------------------------------------------------------------------

    def do_set_property(self, *args: str) -> None:
        options, rest = self._options(args, "", "-dict")
        if "-dict" in options:
            words = self._list(options["-dict"])
            pairs = list(zip(words[::2], words[1::2], strict=True))
            target = self._one(rest)
        else:
            name, value, target = rest
            pairs = [(name, value)]
        for name, value in pairs:
            self._set(target, name, value)

    def _set(self, target: str, name: str, value: str) -> None:
        if target in self.cells:
            cell = self.cells[target]
            key = name.removeprefix("CONFIG.")
            if not name.startswith("CONFIG.") or key not in cell.parameters:
                raise Refused(f"{cell.type} has no parameter {name}")
            if not re.fullmatch(self.catalog[cell.type].parameters[key][1], value):
                raise Refused(f"{cell.type}: {key} cannot be {value!r}")
            cell.parameters[key] = value
            return
        known = {
            ("project", "board_part"): r"\S+",
            ("sources_1", "top"): r"\w+",
            ("system.bd", "synth_checkpoint_mode"): "None|Singular|Hierarchical",
            **{(run, "strategy"): "|".join(STRATEGIES) for run in self.runs if run != "synth_1"},
            **{("design", k): v for k, v in DESIGN_PROPERTIES.items()},
        }
        if (target, name) not in known or not re.fullmatch(known[target, name], value):
            raise Refused(f"{target or '(nothing)'} has no property {name} = {value!r}")
        if name == "board_part" and value not in self.board_files:
            raise Refused(f"no board {value}")
        self.properties[target, name] = value

    def do_get_property(self, name: str, target: str) -> str:
        if name == "PROGRESS":
            return self.runs[target]
        if name in self.slack:
            if self.runs[target] != "100%":
                raise Refused("no slack before implementation")
            slack = self.slack[name]
            return slack if isinstance(slack, str) else slack[self.properties[target, "strategy"]]
        if "validate" not in self.done:
            raise Refused(f"{name} is not known before validation")
        pin = self.pin(target)
        if name == "CONFIG.FREQ_HZ":
            for pattern, said in self.clocks.items():
                if re.fullmatch(pattern, target):
                    return said
            cell = target.partition("/")[0]
            source = target if pin.kind == "clk" and pin.role == "out" else self.driver(f"{cell}/{pin.clock}")
            return str(self.frequency(source))
        if name == "CONFIG.DATA_WIDTH" and pin.kind == "aximm":
            return str(self.width(target))
        raise Refused(f"{target} has no property {name}")

    def width(self, path: str) -> int:
        """Data bits of an interface."""
        pin = self.pin(path)
        cell = self.cells[path.partition("/")[0]]
        return int(cell.parameters[pin.width]) if isinstance(pin.width, str) else int(pin.width or 32)

    # ---- files and runs ----------------------------------------------------------------------------------------------

    def do_get_files(self, name: str) -> str:
        if name != f"{self.design}.bd" or "save" not in self.done:
            raise Refused(f"no file {name}")
        return name

    def do_generate_target(self, what: str, file: str) -> None:
        if what != "all":
            raise Refused(f"no target {what}")
        folder = self.project / f"{self.name}.gen/sources_1/bd/{self.design}/hw_handoff"
        folder.mkdir(parents=True)
        (ps,) = (c for c in self.cells.values() if c.type in ("zynq_ultra_ps_e", "processing_system7"))
        values = {**ps.parameters, **self._clock_of(ps)}
        lines = [f'<PARAMETER NAME="{key}" VALUE="{value}"/>' for key, value in values.items()]
        (folder / f"{self.design}.hwh").write_text("\n".join(["<EDKSYSTEM>", *lines, "</EDKSYSTEM>"]) + "\n")
        self.done.append("generate")

    def _clock_of(self, ps: Cell) -> dict[str, str]:
        """What Vivado adds to the hand-off: the PL clock as it can be made, and its dividers."""
        if ps.type == "zynq_ultra_ps_e":
            mhz = ps.parameters["PSU__CRL_APB__PL0_REF_CTRL__FREQMHZ"]
            dividers = "PSU__CRL_APB__PL0_REF_CTRL__DIVISOR"
            actual = "PSU__CRL_APB__PL0_REF_CTRL__ACT_FREQMHZ"
        else:
            mhz = ps.parameters["PCW_FPGA0_PERIPHERAL_FREQMHZ"]
            dividers, actual = "PCW_FCLK0_PERIPHERAL_DIVISOR", "PCW_ACT_FPGA0_PERIPHERAL_FREQMHZ"
        return {
            actual: f"{float(mhz) - 0.0025:.6f}",
            f"{dividers}0": str(round(1000 / float(mhz))),
            f"{dividers}1": "1",
        }

    def do_make_wrapper(self, *args: str) -> str:
        self._options(args, "-top", "-files")
        path = self.project / f"{self.name}.gen/sources_1/bd/{self.design}/hdl/{self.design}_wrapper.v"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"module {self.design}_wrapper; endmodule\n")
        return str(path)

    def do_get_runs(self, name: str) -> str:
        if name not in self.runs:
            raise Refused(f"no run {name}")
        return name

    def do_list_property_value(self, *args: str) -> str:
        name, run = args
        if (name, run) != ("strategy", "impl_1") or run not in self.runs:
            raise Refused(f"list_property_value {args}")
        return " ".join((*STRATEGIES, "{Vivado Implementation Defaults}"))

    def do_launch_runs(self, *args: str) -> None:
        options, rest = self._options(args, "", "-jobs -to_step")
        run = self._one(rest)
        if run != "synth_1" and (self.runs["synth_1"] != "100%" or options.get("-to_step") != "write_bitstream"):
            raise Refused("implementation before synthesis, or without a bitstream")
        if "generate" not in self.done or self.properties.get(("sources_1", "top")) != f"{self.design}_wrapper":
            raise Refused("nothing to synthesise: no top, or no targets")
        if not int(options["-jobs"]) >= 1:
            raise Refused("no jobs")
        for f in self.constraints:
            self.tcl.call("source", str(f))
        if run != "synth_1" and (run, "strategy") not in self.properties:
            raise Refused("no strategy")
        self.runs[run] = "42%" if run == self.fail else "running"

    def do_wait_on_run(self, run: str) -> None:
        if self.runs[run] == "running":
            self.runs[run] = "100%"
            if run != "synth_1":
                folder = self.project / f"{self.name}.runs/{run}"
                folder.mkdir(parents=True)
                (folder / f"{self.design}_wrapper.bit").write_bytes(f"bits of {run}".encode())

    def do_copy_run(self, *args: str) -> str:
        options, rest = self._options(args, "", "-name")
        if self._one(rest) not in self.runs or options["-name"] in self.runs:
            raise Refused("copy_run: no such run, or the new one is there")
        self.runs[options["-name"]] = "0%"
        return options["-name"]

    def do_current_run(self, run: str) -> str:
        return self.do_get_runs(run)

    def do_open_run(self, run: str) -> None:
        self.do_get_runs(run)
        if self.runs[run] != "100%":
            raise Refused(f"{run} has not been run")

    def _report(self, *args: str) -> None:
        options, _ = self._options(args, "-hierarchical", "-file")
        Path(options["-file"]).write_text("report\n")

    do_report_utilization = do_report_timing_summary = do_report_power = _report

    def do_write_hw_platform(self, *args: str) -> None:
        options, rest = self._options(args, "-fixed -include_bit -force", "-file")
        Path(options["-file"]).write_bytes(b"xsa")


# ---- what must be true of a graph ------------------------------------------------------------------------------------


def check(v: Vivado) -> None:
    """Raises Refused unless the graph is whole: nothing dangles, and every master reaches memory by itself.

    In detail: every clock, reset and interrupt input is driven and every interface connected; linked interfaces have one
    protocol, width and clock; every master of a module reaches DDR through a PS port of its own and no other segment of
    it stays open; no two ranges of an address space overlap; registers lie in the window of their PS master.
    """
    linked = {p for link in v.links for p in link}
    netted = {p for net in v.nets for p in net}
    for cell in v.cells.values():
        for name, pin in cell.pins().items():
            path = f"{cell.name}/{name}"
            if pin.kind == "external":
                if path not in v.external:
                    raise Refused(f"{path} is not made external")
            elif pin.kind == "aximm":
                if path not in linked:
                    raise Refused(f"{path} dangles")
            elif path not in netted and (pin.role == "in" or pin.kind == "intr"):
                raise Refused(f"{path} dangles")
    clocks = {v.driver(f"{p.partition('/')[0]}/{v.pin(p).clock}") for p in linked}
    clocks |= {v.driver(p) for p in netted if v.pin(p).kind == "clk"}
    if len(clocks) != 1:
        raise Refused(f"several clocks: {sorted(clocks)}")
    ps = [c for c in v.cells.values() if "Data" in c.masters]
    for master, slave in v.links:
        a, b = v.pin(master), v.pin(slave)
        bridged = "smartconnect" in (v.cells[x.partition("/")[0]].type for x in (master, slave))
        if not bridged and (a.protocol, v.width(master)) != (b.protocol, v.width(slave)):
            raise Refused(
                f"{master} is {a.protocol} of {v.width(master)} bits, {slave} {b.protocol} of {v.width(slave)}"
            )
    ports = set()
    for cell in v.cells.values():
        for master in cell.masters:
            if master == "Data":
                continue
            (slave,) = [s for m, s in v.links if m == f"{cell.name}/{master}"]
            port = slave.partition("/")[2]
            if slave.partition("/")[0] != ps[0].name or port in ports:
                raise Refused(f"{cell.name}/{master} does not reach the PS by a port of its own")
            ports.add(port)
            space = f"{cell.name}/{master}"
            short = port.split("_")[2]
            behind = {f"{ps[0].name}/{s}" for s in ps[0].segments if s.partition("/")[2].startswith(f"{short}_")}
            assigned = {a.segment for a in v.addresses if a.space == space}
            if not assigned <= behind or not any("_DDR_LOW" in s for s in assigned):
                raise Refused(f"{space} has no DDR of its own port: {sorted(assigned)}")
            available = {s for s in behind if ("project", "board_part") in v.properties or not s.endswith("_DDR_HIGH")}
            left = available - assigned - {s for sp, s in v.excluded if sp == space}
            if left:
                raise Refused(f"{space}: segments are neither assigned nor excluded: {sorted(left)}")
    spaces: dict[str, list[Address]] = {}
    for a in v.addresses:
        spaces.setdefault(a.space, []).append(a)
    for space, ranges in spaces.items():
        ranges.sort(key=lambda a: a.base)
        for one, two in zip(ranges, ranges[1:], strict=False):
            if one.base + one.size > two.base:
                raise Refused(f"{space}: {one.segment} and {two.segment} overlap")
    # UG1085 table 10-1: M_AXI_HPM0_FPD; UG585 table 4-1: M_AXI_GP0.
    low, high = (0xA000_0000, 0xB000_0000) if ps[0].type == "zynq_ultra_ps_e" else (0x4000_0000, 0x8000_0000)
    registers = {a.segment: a for a in spaces.get(f"{ps[0].name}/Data", [])}
    for cell in v.cells.values():
        for segment in cell.segments if cell is not ps[0] else ():
            r = registers.get(f"{cell.name}/{segment}")
            if r is None or not low <= r.base <= r.base + r.size <= high:
                raise Refused(f"{cell.name}/{segment} is not in the window of its PS master")


def main() -> int:
    """Vivado's command line, as `tellme build` calls it. TELLME_FAKE_SETUP: the slack that it reports."""
    arguments = sys.argv[1:]
    source = arguments[arguments.index("-source") + 1]
    print("****** Vivado (a stand-in of the tests)")
    return Vivado(echo=True, setup=os.environ.get("TELLME_FAKE_SETUP", "0.100")).run(Path(source))


if __name__ == "__main__":
    sys.exit(main())
