"""The test bench around a component: clock, reset, memory model on its AXI4 ports, and a register bus for Python.

`testbench` takes the ports from the component's signature, so that nothing has to be declared twice: the members of the
array `m_axi` go to the memory model, `s_axi` to the register bus, `irq` to the bus's "wait for the interrupt"; all others
become variables of the test bench that cocotb can reach.
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
from amaranth.hdl import Value
from amaranth.lib import wiring
from amaranth.lib.wiring import Flow, In
from numpy.typing import NDArray

from tellme.golden.boards import check_phases, place, region_bytes
from tellme.golden.config import AcceleratorConfig
from tellme.hw.emit import to_verilog
from tellme.sim import runner
from tellme.sim.timing import MemoryTiming

HERE = Path(__file__).parent
MEMORY_BASE = 0x8_0000_0000
"""Byte address at which the simulated memory starts: above 4 GiB, so that truncated addresses are found."""

SEPARATOR = "__"
"""Between the parts of a port's name in the Verilog."""

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
    """A component's ports, by channel of its buses: names in the Verilog, and widths."""

    masters: dict[int, dict[str, tuple[str, int]]] = field(default_factory=dict)
    slave: dict[str, tuple[str, int]] = field(default_factory=dict)
    others: list[tuple[Flow, int, str]] = field(default_factory=list)
    irq: bool = False


def _ports(component: wiring.Component) -> _Ports:
    ports = _Ports()
    for path, member, value in component.signature.flatten(component):
        name, width = SEPARATOR.join(map(str, path)), len(Value.cast(value))
        match path:
            case ("m_axi", int(number), str(channel)):
                ports.masters.setdefault(number, {})[channel] = name, width
            case ("s_axi", str(channel)):
                ports.slave[channel] = name, width
            case ("irq",):
                ports.irq = True
            case _ if width:
                ports.others.append((member.flow, width, name))
    return ports


def traceable(component: wiring.Component) -> bool:
    """Whether it is a whole accelerator, whose units sim/trace.svh looks at."""
    from tellme.hw.top import Accelerator

    return isinstance(component, Accelerator)


def testbench(component: wiring.Component, *, top: str = "dut") -> str:
    """SystemVerilog of `tb_top` around a component, whose Verilog is module `top`."""
    ports = _ports(component)
    masters = ports.masters
    connections = [".clk(clk)", ".rst(rst)"]
    lines = [
        "`timescale 1ns / 1ps",
        "module tb_top;",
        "    bit clk = 0, rst = 1, hold = 0;",
        "    longint unsigned tb_cycle = 0;",
        "    always #1 clk = ~clk;",
        "    always @(posedge clk) begin",
        "        tb_cycle <= tb_cycle + 1;",
        "        rst <= tb_cycle < 8 || hold;",
        "    end",
        # A clock and a reset that cocotb may look at.
        "    wire clock /* verilator public_flat_rd */ = clk;",
        "    wire reset /* verilator public_flat_rd */ = rst;",
    ]
    for flow, width, name in ports.others:
        access = "public_flat_rw" if flow is In else "public_flat_rd"
        zero = " = 0" if flow is In else ""
        lines.append(f"    logic [{width - 1}:0] {name} /* verilator {access} */{zero};")
        connections.append(f".{name}({name})")
    if masters:
        data = next(p[k][1] for p in masters.values() for k in ("rdata", "wdata") if k in p)
        address = next(p[k][1] for p in masters.values() for k in ("araddr", "awaddr") if k in p)
        ids = [p[k][1] for p in masters.values() for k in ("arid", "awid") if k in p]
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
            for channel, (name, _) in names.items():
                if channel in _INPUTS or channel in _OUTPUTS:
                    connections.append(f".{name}({channel}[{i}])")
                else:
                    connections.append(f".{name}()")  # lock, cache, prot, qos: no meaning to the model
            for channel in _INPUTS:
                if channel not in names:
                    lines.append(f"    assign {channel}[{i}] = '0;")
    if ports.slave:
        address = ports.slave["araddr"][1]
        bus = {
            "awaddr": address, "araddr": address, "wdata": 32, "wstrb": 4, "awprot": 3, "arprot": 3,
            "awvalid": 1, "wvalid": 1, "bready": 1, "arvalid": 1, "rready": 1,
        } | _SLAVE_OUTPUTS  # fmt: skip
        for channel, (name, _) in ports.slave.items():
            lines.append(f"    logic [{bus[channel] - 1}:0] s_{channel};")
            connections.append(f".{name}(s_{channel})")
        lines.append(f"    localparam int REGISTER_BITS = {address};")
        lines.append("    wire irq;")
        if ports.irq:
            connections.append(".irq(irq)")
        else:
            lines.append("    assign irq = 0;")
        lines.append((HERE / "bus.svh").read_text())
    if traceable(component):
        lines.append((HERE / "trace.svh").read_text())
    lines.append(f"    {top} dut ({', '.join(connections)});")
    lines.append("endmodule")
    return "\n".join(lines) + "\n"


_REGISTER = re.compile(r"^( +reg (?:\[\d+:\d+\] )?(?!\\\$auto\$verilog_backend)\S+ +)= [^;]+;$", re.MULTILINE)
"""A register and its initial value, but for Yosys's own that start blocks once."""


def build(component: wiring.Component, *, waves: bool = False, random_start: bool = False) -> Path:
    """Builds the test bench of a component; cached. Returns the build's folder.

    `random_start`: no register has an initial value, and no memory but what is read only: they are what the simulator makes of
    its seed, before the reset.
    """
    text = to_verilog(component, separator=SEPARATOR)
    if random_start:
        text = _REGISTER.sub(r"\1;", text)
    return runner.build(
        text + testbench(component),
        top="tb_top",
        sources=[HERE / "memory.sv"],
        cpp=[HERE / "memory.cpp", *([HERE / "trace.cpp"] if traceable(component) else [])],
        public=(),
        args=["--timing", *(["--x-initial", "unique"] if random_start else [])],
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
