"""RTLIL and Verilog of components: Amaranth's, without initial contents that are zero.

Amaranth writes the contents of every memory bit by bit, and reads them back from Yosys: half a million words of nothing
took more than half of the time of a kv260. FPGA memories start at zero anyway, and UltraRAM takes no contents.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from amaranth.back import rtlil, verilog
from amaranth.hdl import Elaboratable, Fragment
from amaranth.hdl._ir import PortDirection, build_netlist
from amaranth.lib.wiring import Out, Signature


@contextmanager
def uncollected() -> Iterator[None]:
    """Without Python's garbage collector, which walks Amaranth's millions of live objects again and again: half of the
    time of a kv260, for 0.3 GB less."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Emitter(rtlil.ModuleEmitter):
    def emit_memory(self, cell_idx: int, cell: Any) -> None:
        if any(cell.init):
            super().emit_memory(cell_idx, cell)


def _ports(component: Any, separator: str) -> dict[str, tuple[Any, PortDirection]]:
    signature: Signature = component.signature
    return {
        separator.join(str(part) for part in path): (
            value.as_value() if hasattr(value, "as_value") else value,
            PortDirection.Output if member.flow is Out else PortDirection.Input,
        )
        for path, member, value in signature.flatten(component)
    }


def to_rtlil(
    component: Elaboratable,
    name: str = "top",
    platform: object = None,
    *,
    ports: Mapping[str, Any] | Sequence[Any] | None = None,
    separator: str = "__",
) -> str:
    """RTLIL of a component, without source locations (they would defeat every cache).

    Parameters
    ----------
    platform : what `elaborate` is given (hw/primitives.py).
    ports : signals by name, as amaranth.back.rtlil takes them; by default those of the component's signature.
    separator : between the parts of a port's name.
    """
    with uncollected():
        ports = _ports(component, separator) if ports is None else ports
        netlist = build_netlist(Fragment.get(component, platform), ports=ports, name=name)
        empty = rtlil.EmptyModuleChecker(netlist)
        names: Any = rtlil._ast.SignalDict()
        design = rtlil.Design(emit_src=False)
        for index, module in enumerate(netlist.modules):
            if empty.is_empty(index):
                continue
            builder = design.module(".".join(module.name), src_loc=module.src_loc)
            if index == 0:
                builder.attribute("top", 1)
            _Emitter(builder, netlist, module, names, empty_checker=empty).emit()
        return str(design)


def to_verilog(component: Elaboratable, name: str = "dut", platform: object = None, *, separator: str = "__") -> str:
    """Verilog of a component. Parameters as in `to_rtlil`."""
    text = to_rtlil(component, name, platform, separator=separator)
    return str(verilog._convert_rtlil_text(text, strip_internal_attrs=True))
