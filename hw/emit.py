"""RTLIL and Verilog of components: Amaranth's, without initial contents that are zero.

Amaranth writes the contents of every memory bit by bit, and reads them back from Yosys: half a million words of nothing
took more than half of the time of a kv260. FPGA memories start at zero anyway, and UltraRAM takes no contents.
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import amaranth
from amaranth._toolchain.yosys import find_yosys
from amaranth._utils import to_binary
from amaranth.back import rtlil
from amaranth.hdl import Elaboratable, Fragment
from amaranth.hdl._ir import PortDirection, build_netlist
from amaranth.lib.wiring import Out, Signature

from tellme.hw.names import Names, plain


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


_SOURCE = re.compile(r'(attribute \\src ")([^"]*)"')
_OWN = re.compile(r"\\\$auto\$\w+\.cc:\d+:(\w+)\$(\d+) ")
_COUNTED = re.compile(r"(?m)^  reg (?:signed )?(?:\[\d+:\d+\] )?(_\d+_);$")
"""Names of Yosys's own."""


@cache
def _place(where: str) -> str:
    """File and line, from the repository or the package."""
    path, _, line = where.rpartition(":")
    found = Path(path).resolve()
    for root, prefix in (
        (Path(amaranth.__file__).resolve().parent, "amaranth/"),
        (Path(__file__).resolve().parents[1], ""),
    ):
        if found.is_relative_to(root):
            return f"{prefix}{found.relative_to(root).as_posix()}:{line}"
    return f"{found.name}:{line}"


class _Emitter(rtlil.ModuleEmitter):
    def emit_memory(self, cell_idx: int, cell: Any) -> None:
        if any(cell.init):
            super().emit_memory(cell_idx, cell)


class _NamedModule(rtlil.Module):
    """A module in which no wire is counted."""

    spare: Callable[[], str]
    """Gives a name for a wire that has none."""

    def wire(self, width: int, *, name: str | None = None, **kwargs: Any) -> Any:
        return super().wire(width, name=self.spare() if name is None else name, **kwargs)


class _NamedEmitter(_Emitter):
    """With the names of `hw.names`."""

    def __init__(self, names: Names, index: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names, self._index = names, index

    def emit_driven_wire(self, value: Any) -> Any:
        if value in self.value_names:
            return super().emit_driven_wire(value)
        name = self._names.anonymous(self._index, value)
        wire = self.builder.wire(len(value), name=name, attrs=self.value_attrs.get(value, {}))
        for bit, net in enumerate(value):
            self.nets[net] = (wire, bit)
        return wire

    def emit_operator(self, cell_idx: int, cell: Any) -> None:
        self.builder.spare = lambda: self._names.between(self._index, cell_idx)
        super().emit_operator(cell_idx, cell)

    def emit_part(self, cell_idx: int, cell: Any) -> None:
        self.builder.spare = lambda: self._names.between(self._index, cell_idx)
        super().emit_part(cell_idx, cell)

    def emit_signal_fields(self) -> None:
        """Fields of signals, as wires: payload__valid, not payload.valid, which would have to be escaped."""
        for signal, name in self.module.signal_names.items():
            for path, field in self.netlist.signal_fields[signal].items():
                if not path:
                    continue
                own = self._names.scopes[self._index].take(plain("__".join((name, *map(str, path)))))
                attrs = {} if field.enum_name is None else {"enum_base_type": field.enum_name}
                for number, word in (field.enum_variants or {}).items():
                    attrs["enum_value_" + to_binary(number, len(field.value))] = word
                wire = self.builder.wire(
                    len(field.value), signed=field.signed, name=own, attrs=attrs, src_loc=signal.src_loc
                )
                self.builder.connect(wire.name, self.sigspec(field.value))

    def emit_submodules(self) -> None:
        for number in self.module.submodules:
            if not self.empty_checker.is_empty(number):
                inner = self.netlist.modules[number]
                ports = {name: self.sigspec(value) for name, (value, _) in inner.ports.items()}
                ports |= {name: self.io_sigspec(value) for name, (value, _) in inner.io_ports.items()}
                kind = f"\\{self._names.modules[number]}"
                self.builder.cell(kind, inner.name[-1], ports=ports, src_loc=inner.cell_src_loc)


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
    return _rtlil(component, name, platform, ports, separator)


def _rtlil(
    component: Elaboratable,
    name: str,
    platform: object,
    ports: Mapping[str, Any] | Sequence[Any] | None,
    separator: str,
    *,
    readable: bool = False,
    sources: bool = False,
) -> str:
    with uncollected():
        ports = _ports(component, separator) if ports is None else ports
        netlist = build_netlist(Fragment.get(component, platform), ports=ports, name=name)
        empty = rtlil.EmptyModuleChecker(netlist)
        names: Any = rtlil._ast.SignalDict()
        design = rtlil.Design(emit_src=sources)
        given = Names(netlist) if readable else None
        for index, module in enumerate(netlist.modules):
            if empty.is_empty(index):
                continue
            if given is None:
                builder = design.module(".".join(module.name), src_loc=module.src_loc)
            else:
                path = given.modules[index]
                builder = design.modules[path] = _NamedModule(path, emit_src=sources, src_loc=module.src_loc)
            if index == 0:
                builder.attribute("top", 1)
            if given is None:
                _Emitter(builder, netlist, module, names, empty_checker=empty).emit()
            else:
                _NamedEmitter(given, index, builder, netlist, module, names, empty_checker=empty).emit()
        return str(design)


def to_readable_rtlil(
    component: Elaboratable, name: str = "top", platform: object = None, *, separator: str = "__", sources: bool = False
) -> str:
    """RTLIL as `to_rtlil` gives it, with names that people find again (`hw.names`). Simulators are built without: a name
    that changes would have all of them built anew.

    Parameters
    ----------
    sources : the place in the source of every signal and process, in attributes `src`: from the repository.
    """
    text = _rtlil(component, name, platform, None, separator, readable=True, sources=sources)
    return _SOURCE.sub(lambda m: f'{m[1]}{_place(m[2])}"', text) if sources else text


def to_readable_verilog(
    component: Elaboratable, name: str = "dut", platform: object = None, *, separator: str = "__", sources: bool = False
) -> str:
    """Verilog of a component. Parameters as in `to_readable_rtlil`."""
    text = to_readable_rtlil(component, name, platform, separator=separator, sources=sources)
    return "".join(_without_counted(part) for part in re.split(r"(?m)^(?=module )", _verilog(text, sources=sources)))


def _verilog(text: str, *, sources: bool = False) -> str:
    """Verilog of RTLIL, by Amaranth's Yosys and as Amaranth writes it, without its own attributes."""
    yosys = find_yosys(lambda version: version >= (0, 40))
    remove = ["generator", "top", "amaranth.hierarchy", "amaranth.decoding", *([] if sources else ["src"])]
    attributes = " ".join(f"-remove {word}" for word in remove)
    script = [
        f"read_rtlil <<rtlil\n{text}\nrtlil",
        "proc -nomux -norom",
        "memory_collect",
        f"attrmap {attributes}",
        f"attrmap -modattr {attributes}",
        "write_verilog -norename",
    ]
    # It warns that processes may not be translatable to Verilog; those that Amaranth emits are.
    return str(yosys.run(["-q", "-"], "\n".join(script), ignore_warnings=True))


def _without_counted(module: str) -> str:
    """A module of Yosys's Verilog, with names for what it counted itself: registers behind memories, and less."""
    module = _OWN.sub(r"yosys_\1_\2 ", module)
    wanted: dict[str, str] = {}
    for counted in _COUNTED.findall(module):
        found = re.search(rf"assign (\w+)\S* = {counted};", module)
        name = f"{found[1]}_register" if found else f"yosys{counted}register"
        while re.search(rf"\b{name}\b", module) or name in wanted.values():
            name += "_"
        wanted[counted] = name
    return re.sub(r"\b_\d+_\b", lambda m: wanted.get(m[0], m[0]), module) if wanted else module


def to_verilog(component: Elaboratable, name: str = "dut", platform: object = None, *, separator: str = "__") -> str:
    """Verilog of a component. Parameters as in `to_rtlil`."""
    return _verilog(to_rtlil(component, name, platform, separator=separator))
