"""No input of an AXI port reaches an output of one but through a register (IHI 0022, A3.2.1: no combinational paths)."""

from __future__ import annotations

import pytest
from amaranth import Module
from amaranth.hdl import Elaboratable
from amaranth.hdl._ir import Fragment, PortDirection, build_netlist
from amaranth.lib import wiring
from amaranth.lib.wiring import In

from tellme.golden.config import TINY, ULTRA96V2, AcceleratorConfig
from tellme.golden.registers import ADDRESS_BITS
from tellme.hw.control.registers import ControlRegisters
from tellme.hw.memory import BeatWriter, StreamReader
from tellme.hw.memory.axi import AxiLite
from tellme.hw.primitives import Inferred
from tellme.hw.top import Accelerator
from tests.memory.common import SMALL
from tests.sim.copier import Copier


def paths(
    component: Elaboratable, prefixes: tuple[str, ...] = ("s_axi", "m_axi", "bus", "irq")
) -> set[tuple[str, str]]:
    """(input, output) of every combinational path between ports whose names begin so, in the elaborated netlist."""
    ports = {}
    for path, member, value in component.signature.flatten(component):
        direction = PortDirection.Input if member.flow is In else PortDirection.Output
        ports["__".join(map(str, path))] = (getattr(value, "as_value", lambda v=value: v)(), direction)
    netlist = build_netlist(Fragment.get(component, Inferred(ultra_ram=True)), ports=ports, name="top")
    top = netlist.top
    inputs = {}
    for name, (start, width) in top.ports_i.items():
        if name.startswith(prefixes):
            inputs |= {(0, start + i): name for i in range(width)}
    assert inputs, "the component has no such inputs"
    found = set()
    for name, value in top.ports_o.items():
        if not name.startswith(prefixes):
            continue
        todo, seen = list(value), set()
        while todo:
            net = netlist.resolve_net(todo.pop())
            if net.is_const or net in seen:
                continue
            seen.add(net)
            if (net.cell, net.bit) in inputs:
                found.add((inputs[net.cell, net.bit], name))
            todo += [n for n, _ in netlist.cells[net.cell].comb_edges_to(net.bit)]
    return found


class Waiting(wiring.Component):
    """A register bus whose readies wait for both halves of a write, as ours once did, behind two more gates."""

    def __init__(self) -> None:
        super().__init__({"bus": In(AxiLite(address_width=ADDRESS_BITS))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += self.bus.awready.eq(self.bus.wvalid & ~self.bus.bvalid)
        with m.If(self.bus.awvalid), m.Switch(self.bus.araddr[2:4]):
            with m.Case(1):
                m.d.comb += self.bus.rdata.eq(7)
        m.d.sync += self.bus.rvalid.eq(self.bus.arvalid)
        return m


def test_a_path_is_found_where_there_is_one() -> None:
    assert paths(Waiting()) == {
        ("bus__wvalid", "bus__awready"),
        ("bus__awvalid", "bus__rdata"),
        ("bus__araddr", "bus__rdata"),
    }


@pytest.mark.parametrize("config", [TINY, ULTRA96V2], ids=lambda c: c.name)
def test_no_axi_input_reaches_an_axi_output_of_the_accelerator(config: AcceleratorConfig) -> None:
    assert paths(Accelerator(config)) == set()


@pytest.mark.parametrize("component", [ControlRegisters(TINY), StreamReader(SMALL), BeatWriter(SMALL), Copier(SMALL)])
def test_nor_one_of_its_parts_or_of_the_stand_in(component: Elaboratable) -> None:
    assert paths(component) == set()
