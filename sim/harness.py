"""The test bench around a component: clock, reset, memory model on its AXI4 ports, and a register bus for Python.

`testbench` reads the ports of the generated Verilog by name, so that nothing has to be declared twice:
`m_axi_<i>_*` (one to three underscores) go to the memory model, `s_axi_*` to the register bus, `irq` to the bus's
"wait for the interrupt"; all others become variables of the test bench that cocotb can reach.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from mmap import mmap
from os import close, environ, ftruncate, getpid, memfd_create
from pathlib import Path

import numpy as np
from amaranth.hdl import Elaboratable
from numpy.typing import NDArray

from tellme.golden.boards import check_phases, place, region_bytes
from tellme.golden.config import AcceleratorConfig
from tellme.sim import runner
from tellme.sim.timing import MemoryTiming

HERE = Path(__file__).parent
MEMORY_BASE = 0x8_0000_0000
"""Byte address at which the simulated memory starts: above 4 GiB, so that truncated addresses are found."""

_PORT = re.compile(r"^\s*(input|output)\s+(?:wire\s+|reg\s+)?(?:\[(\d+):0\]\s*)?(\\\S+|\w+)\s*;", re.M)
_MASTER = re.compile(r"m_axi_{1,3}(\d+)_{1,3}([a-z]+)")
_SLAVE = re.compile(r"s_axi_{1,3}([a-z]+)")

_INPUTS = {
    "awid": "ID_WIDTH", "awaddr": "ADDRESS_WIDTH", "awlen": "8", "awsize": "3", "awburst": "2", "awvalid": "1",
    "wvalid": "1", "wdata": "PORT_BYTES*8", "wstrb": "PORT_BYTES", "wlast": "1", "bready": "1",
    "arvalid": "1", "arid": "ID_WIDTH", "araddr": "ADDRESS_WIDTH", "arlen": "8", "arsize": "3", "arburst": "2",
    "rready": "1",
}  # fmt: skip
_OUTPUTS = {
    "awready": "1", "wready": "1", "bvalid": "1", "bid": "ID_WIDTH", "bresp": "2", "arready": "1", "rvalid": "1",
    "rid": "ID_WIDTH", "rdata": "PORT_BYTES*8", "rresp": "2", "rlast": "1",
}  # fmt: skip
_SLAVE_OUTPUTS = {
    "awready": 1,
    "wready": 1,
    "bvalid": 1,
    "bresp": 2,
    "arready": 1,
    "rvalid": 1,
    "rdata": 32,
    "rresp": 2,
}


@dataclass
class _Ports:
    masters: dict[int, dict[str, str]] = field(default_factory=dict)
    slave: dict[str, str] = field(default_factory=dict)
    others: list[tuple[str, int, str]] = field(default_factory=list)
    widths: dict[str, int] = field(default_factory=dict)
    irq: bool = False


def _parse(text: str, top: str) -> _Ports:
    start = re.search(rf"^module {re.escape(top)}\b", text, re.M)
    if start is None:
        raise ValueError(f"the Verilog has no module {top!r}")
    body = text[start.start() : text.index("endmodule", start.start())]
    ports = _Ports()
    for direction, high, name in _PORT.findall(body):
        width = int(high) + 1 if high else 1
        ports.widths[name] = width
        if match := _MASTER.fullmatch(name):
            ports.masters.setdefault(int(match[1]), {})[match[2]] = name
        elif match := _SLAVE.fullmatch(name):
            ports.slave[match[1]] = name
        elif name == "irq":
            ports.irq = True
        elif name not in ("clk", "rst"):
            ports.others.append((direction, width, name))
    return ports


def traceable(text: str) -> bool:
    """Whether the Verilog holds a whole accelerator, whose units sim/trace.svh looks at."""
    return all(f" {name} (\n" in text for name in ("counters", "executor", "reader"))


def testbench(text: str, *, top: str = "dut") -> str:
    """SystemVerilog of `tb_top` around module `top` of the Verilog `text`.

    Raises
    ------
    ValueError : no such module, or master ports that are not numbered from 0 on.
    """
    ports = _parse(text, top)
    masters = ports.masters
    if sorted(masters) != list(range(len(masters))):
        raise ValueError(f"m_axi ports must be numbered from 0 on, not {sorted(masters)}")
    connections = [".clk(clk)", ".rst(rst)"]
    lines = [
        "`timescale 1ns / 1ps",
        "module tb_top;",
        "    bit clk = 0, rst = 1;",
        "    longint unsigned tb_cycle = 0;",
        "    always #1 clk = ~clk;",
        "    always @(posedge clk) begin",
        "        tb_cycle <= tb_cycle + 1;",
        "        if (tb_cycle == 8) rst <= 0;",
        "    end",
        # A clock and a reset that cocotb may look at.
        "    wire clock /* verilator public_flat_rd */ = clk;",
        "    wire reset /* verilator public_flat_rd */ = rst;",
    ]
    for direction, width, name in ports.others:
        access = "public_flat_rw" if direction == "input" else "public_flat_rd"
        zero = " = 0" if direction == "input" else ""
        lines.append(f"    logic [{width - 1}:0] {name} /* verilator {access} */{zero};")
        connections.append(f".{name}({name})")
    if masters:
        data = next(ports.widths[p[k]] for p in masters.values() for k in ("rdata", "wdata") if k in p)
        address = next(ports.widths[p[k]] for p in masters.values() for k in ("araddr", "awaddr") if k in p)
        ids = [ports.widths[p[k]] for p in masters.values() for k in ("arid", "awid") if k in p]
        lines += [
            f"    localparam int PORTS = {len(masters)}, PORT_BYTES = {data // 8};",
            f"    localparam int ADDRESS_WIDTH = {address}, ID_WIDTH = {max(ids, default=1)};",
        ]
        for name, bits in (_INPUTS | _OUTPUTS).items():
            shape = "" if bits == "1" else f"[{bits}-1:0]"
            lines.append(f"    logic [PORTS-1:0]{shape} {name};")
        joined = ", ".join(f".{n}({n})" for n in _INPUTS | _OUTPUTS)
        lines += [
            "    axi_memory #(.PORTS(PORTS), .PORT_BYTES(PORT_BYTES),",
            "                 .ADDRESS_WIDTH(ADDRESS_WIDTH), .ID_WIDTH(ID_WIDTH))",
            f"        tb_memory (.clk(clk), .rst(rst), {joined});",
        ]
        for i, names in masters.items():
            for channel, name in names.items():
                if channel in _INPUTS or channel in _OUTPUTS:
                    connections.append(f".{name}({channel}[{i}])")
                else:
                    connections.append(f".{name}()")  # lock, cache, prot, qos: no meaning to the model
            for channel in _INPUTS:
                if channel not in names:
                    lines.append(f"    assign {channel}[{i}] = '0;")
    if ports.slave:
        address = ports.widths[ports.slave["araddr"]]
        bus = {
            "awaddr": address, "araddr": address, "wdata": 32, "wstrb": 4, "awprot": 3, "arprot": 3,
            "awvalid": 1, "wvalid": 1, "bready": 1, "arvalid": 1, "rready": 1,
        } | _SLAVE_OUTPUTS  # fmt: skip
        for channel, name in ports.slave.items():
            lines.append(f"    logic [{bus[channel] - 1}:0] s_{channel};")
            connections.append(f".{name}(s_{channel})")
        lines.append(f"    localparam int REGISTER_BITS = {address};")
        lines.append("    wire irq;")
        if ports.irq:
            connections.append(".irq(irq)")
        else:
            lines.append("    assign irq = 0;")
        lines.append((HERE / "bus.svh").read_text())
    if traceable(text):
        lines.append((HERE / "trace.svh").read_text())
    lines.append(f"    {top} dut ({', '.join(connections)});")
    lines.append("endmodule")
    return "\n".join(lines) + "\n"


def build(component: Elaboratable | str, *, waves: bool = False) -> Path:
    """Builds the test bench of a component (or of its Verilog, module `dut`); cached. Returns the build's folder."""
    text = component if isinstance(component, str) else runner.to_verilog(component)
    return runner.build(
        text + testbench(text),
        top="tb_top",
        sources=[HERE / "memory.sv"],
        cpp=[HERE / "memory.cpp", *([HERE / "trace.cpp"] if traceable(text) else [])],
        public=(),
        args=["--timing"],
        waves=waves,
    )


class SharedMemory:
    """The buffer that a simulation and the host share: a file in memory that vanishes with its last user.

    Parameters
    ----------
    config : AcceleratorConfig; ports and port_bytes.
    beats : size; rounded up so that a port's region is a whole number of pages.
    phases : where the ports' regions begin, bytes modulo golden.boards.PHASE_PERIOD; () : one behind the other.
    """

    def __init__(self, config: AcceleratorConfig, beats: int, phases: Sequence[int] = ()) -> None:
        if beats < 1:
            raise ValueError(f"the shared buffer must hold at least 1 beat, not {beats}")
        if phases:
            check_phases(phases, config.ports)
        self.region = region_bytes(config, beats)
        self.size = self.region * config.ports
        self.clock_hz = config.clock_hz
        self.port_bases = place(MEMORY_BASE, self.region, config.ports, phases)
        self.fd = memfd_create("tellme-memory")
        ftruncate(self.fd, self.size)
        self.array: NDArray[np.uint8] = np.frombuffer(mmap(self.fd, self.size), np.uint8).reshape(
            config.ports, -1, config.port_bytes
        )

    def settings(self, timing: MemoryTiming, file: str | None = None) -> str:
        """Value of TELLME_MEMORY for a child process (that holds the descriptor too, or finds it by /proc)."""
        return timing.settings(
            file=file or f"/proc/{getpid()}/fd/{self.fd}",
            region=self.region,
            bases=self.port_bases,
            clock_hz=self.clock_hz,
        )

    def close(self) -> None:
        """Closes the file; the array stays usable as long as it is referenced."""
        if self.fd >= 0:
            close(self.fd)
            self.fd = -1


@contextmanager
def shared_memory(config: AcceleratorConfig, beats: int, timing: MemoryTiming) -> Iterator[SharedMemory]:
    """A buffer that simulations run within the context (`runner.run`) use as their memory."""
    memory = SharedMemory(config, beats)
    old = environ.get("TELLME_MEMORY")
    environ["TELLME_MEMORY"] = memory.settings(timing)
    try:
        yield memory
    finally:
        memory.close()
        if old is None:
            del environ["TELLME_MEMORY"]
        else:
            environ["TELLME_MEMORY"] = old
