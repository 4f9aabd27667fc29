"""Names for Verilog that people read: those of the source, without characters that have to be escaped.

Amaranth names what the source names. The rest, results of expressions and ports that are parts of signals, it counts: `$1`, `port$30590$12`. Here
each gets a name by which it can be found again: that of the signal or field that it is a part of, or that of the signal that it ends in, with
the operation behind. Nothing but names differs from `hw.emit.to_rtlil`.
"""

from __future__ import annotations

import re
from typing import Any

from amaranth.hdl import _nir

KEYWORDS = frozenset(
    """accept_on alias always always_comb always_ff always_latch and assert assign assume automatic before begin bind bins binsof bit
    break buf bufif0 bufif1 byte case casex casez cell chandle checker class clocking cmos config const constraint context continue
    cover covergroup coverpoint cross deassign default defparam design disable dist do edge else end endcase endchecker endclass
    endclocking endconfig endfunction endgenerate endgroup endinterface endmodule endpackage endprimitive endprogram endproperty
    endsequence endspecify endtable endtask enum event eventually expect export extends extern final first_match for force foreach
    forever fork forkjoin function generate genvar global highz0 highz1 if iff ifnone ignore_bins illegal_bins implements implies
    import incdir include initial inout input inside instance int integer interconnect interface intersect join join_any join_none
    large let liblist library local localparam logic longint macromodule matches medium modport module nand negedge nettype new
    nexttime nmos nor noshowcancelled not notif0 notif1 null or output package packed parameter pmos posedge primitive priority
    program property protected pull0 pull1 pulldown pullup pulsestyle_ondetect pulsestyle_onevent pure rand randc randcase
    randsequence rcmos real realtime ref reg reject_on release repeat restrict return rnmos rpmos rtran rtranif0 rtranif1 s_always
    s_eventually s_nexttime s_until s_until_with scalared sequence shortint shortreal showcancelled signed small soft solve specify
    specparam static string strong strong0 strong1 struct super supply0 supply1 sync_accept_on sync_reject_on table tagged task this
    throughout time timeprecision timeunit tran tranif0 tranif1 tri tri0 tri1 triand trior trireg type typedef union unique unique0
    unsigned until until_with untyped use uwire var vectored virtual void wait wait_order wand weak weak0 weak1 while wildcard wire
    with within wor xnor xor""".split()
)
"""Of SystemVerilog (IEEE 1800-2017, annex B)."""

_OPERATIONS = {
    "-": "sub", "~": "not", "b": "any", "r|": "any", "r&": "all", "r^": "parity", "+": "add", "*": "mul", "<<": "shl", "u>>": "shr",
    "s>>": "sshr", "&": "and", "|": "or", "^": "xor", "==": "eq", "!=": "ne", "u<": "lt", "s<": "lt", "u>": "gt", "s>": "gt", "u<=": "le",
    "s<=": "le", "u>=": "ge", "s>=": "ge", "m": "mux", "u//": "div", "s//": "div", "u%": "mod", "s%": "mod",
}  # fmt: skip
_COUNTED = re.compile(r"\$\d+$")
_COVERS = 6
"""Signals that are remembered for a net: the first that hold it."""


def plain(name: str) -> str:
    """A name as an identifier that needs no escape and is no keyword."""
    text = re.sub(r"_{3,}", "__", re.sub(r"\W", "_", name, flags=re.ASCII)).strip("_") or "unnamed"
    return f"{text}_" if text in KEYWORDS else f"n{text}" if text[0].isdigit() else text


def part(base: str, first: int, count: int) -> str:
    """A name of some bits."""
    return f"{base}_{first}" if count == 1 else f"{base}_{first + count - 1}_{first}"


class Scope:
    """Names of a module, each once."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def take(self, wanted: str) -> str:
        """`wanted`, or what comes next."""
        name = wanted
        while name in self.taken:
            self.taken[wanted] += 1
            name = f"{wanted}_{self.taken[wanted]}"
        self.taken[name] = 0
        return name


class Names:
    """Renames what a netlist has names for, and makes names for the outputs of its cells.

    Parameters
    ----------
    netlist : its modules' signals, ports and paths get other names in place.

    Attributes
    ----------
    modules : name of each module, by its number.
    scopes : names that are taken in each module.
    """

    def __init__(self, netlist: Any) -> None:
        self.netlist = netlist
        self.scopes = [Scope() for _ in netlist.modules]
        everywhere = Scope()
        self.modules: list[str] = []
        self._covers: list[dict[int, list[tuple[str, Any]]]] = []
        self._roots: dict[int, str] = {}
        self._consumers = self._find_consumers()
        self._ports = [{value for value, _ in m.ports.values()} for m in netlist.modules]
        renamed: list[dict[str, str]] = []
        unnamed: list[list[Any]] = []
        for index, module in enumerate(netlist.modules):
            self._name_inside(index, module)
            self.modules.append(everywhere.take("_".join(module.name)))
            private, named = self._name_signals(index, module)
            renamed.append(named)
            self._covers.append(self._find_covers(module))
            unnamed.append(private)
        for index, module in enumerate(netlist.modules):
            self._name_private(index, module, unnamed[index])
        for index, module in enumerate(netlist.modules):
            self._name_ports(index, module, renamed[index])

    # ---- what has a name ---------------------------------------------------------------------------------------------

    def _name_inside(self, index: int, module: Any) -> None:
        """Instances and memories go first: hierarchies are what timing reports are read by."""
        scope = self.scopes[index]
        if index == 0:
            for name in module.ports:
                scope.take(name)
        for child in module.submodules:
            inner = self.netlist.modules[child]
            last = _COUNTED.sub("", inner.name[-1])
            inner.name = (*module.name, scope.take(plain("unit" if last == "U" else last)))
        for number in module.cells:
            cell = self.netlist.cells[number]
            if isinstance(cell, (_nir.Memory, _nir.Instance)):
                cell.name = scope.take(plain(_COUNTED.sub("", cell.name)))

    def _name_signals(self, index: int, module: Any) -> tuple[list[Any], dict[str, str]]:
        """Those of the source. Returns those that have no name there, and the new name of each other by its old one."""
        private, renamed = [], {}
        for signal, name in list(module.signal_names.items()):
            if index == 0 and name in module.ports:
                continue
            if name.startswith("$"):
                private.append(signal)
                continue
            wanted = plain(_COUNTED.sub("", name))
            if wanted in self.scopes[index].taken:
                wanted = self._owner(module, signal, wanted) or wanted
            module.signal_names[signal] = renamed[name] = self.scopes[index].take(wanted)
        return private, renamed

    def _owner(self, module: Any, signal: Any, name: str) -> str | None:
        """With the instance before it, the name of a signal that several instances have: one of its ports, most likely."""
        for child in module.submodules:
            inner = self.netlist.modules[child]
            if signal in inner.signal_names and self.netlist.signals[signal] in self._ports[child]:
                return f"{inner.name[-1]}__{name}"
        return None

    def _find_covers(self, module: Any) -> dict[int, list[tuple[str, Any]]]:
        """For each net of a module the names that hold it, fields before signals: (name, nets)."""
        covers: dict[int, list[tuple[str, Any]]] = {}

        def add(name: str, value: Any) -> None:
            for net in value:
                if not net.is_const:
                    found = covers.setdefault(net, [])
                    if len(found) < _COVERS:
                        found.append((name, value))

        signals = [(s, n) for s, n in module.signal_names.items() if not n.startswith("$")]
        for signal, name in signals:
            for path, field in self.netlist.signal_fields[signal].items():
                if path:
                    add(plain("__".join((name, *map(str, path)))), field.value)
        for signal, name in signals:
            add(name, self.netlist.signals[signal])
        return covers

    def _held(self, index: int, value: Any) -> str | None:
        """A name for nets that are a part of something with a name."""
        for name, whole in self._covers[index].get(value[0], ()) if value else ():
            first = whole.index(value[0])
            if tuple(whole[first : first + len(value)]) == tuple(value):
                return name if len(whole) == len(value) else part(name, first, len(value))
        return None

    def _name_private(self, index: int, module: Any, private: list[Any]) -> None:
        for signal in private:
            value = self.netlist.signals[signal]
            word = _COUNTED.sub("", module.signal_names[signal]).strip("$").replace("signature__", "port_")
            name = plain(word)
            if value and not value[0].is_const:
                name = self._held(index, value) or (self._made(index, value) if word == "signal" else name)
            module.signal_names[signal] = self.scopes[index].take(name)

    def _name_ports(self, index: int, module: Any, renamed: dict[str, str]) -> None:
        if index:
            module.ports = {
                renamed.get(name) or self._port(index, value): (value, flow)
                for name, (value, flow) in module.ports.items()
            }

    def _port(self, index: int, value: Any) -> str:
        near = [index, self.netlist.modules[index].parent, *self.netlist.modules[index].submodules]
        held = next((name for i in near if (name := self._held(i, value))), None)
        return self.scopes[index].take(held or f"{self.root(value[0].cell)}_port")

    # ---- what has none -----------------------------------------------------------------------------------------------

    def _find_consumers(self) -> dict[int, int]:
        """For each cell the first that takes of its output."""
        found: dict[int, int] = {}
        for number, cell in enumerate(self.netlist.cells):
            if number == 0:
                continue
            for source in sorted({net.cell for net in cell.input_nets() if net.is_cell}):
                if source and source not in found and source != number:
                    found[source] = number
        return found

    def _output(self, number: int) -> Any:
        width = {_nir.AssignmentList: lambda c: len(c.default), _nir.FlipFlop: lambda c: len(c.data)}
        cell = self.netlist.cells[number]
        if type(cell) in width:
            return _nir.Value(_nir.Net.from_cell(number, b) for b in range(width[type(cell)](cell)))
        if hasattr(cell, "width") and not isinstance(cell, _nir.Memory):
            return _nir.Value(_nir.Net.from_cell(number, b) for b in range(cell.width))
        return _nir.Value()

    def root(self, number: int) -> str:
        """The named thing in which a cell's output ends first."""
        path: dict[int, None] = {}
        at: int | None = number
        name = None
        while at is not None and at not in self._roots and at not in path:
            path[at] = None
            cell = self.netlist.cells[at]
            value = self._output(at)
            module = cell.module_idx
            if value and (held := self._held(module, value)):
                name = held
                break
            if isinstance(cell, _nir.SyncWritePort):
                name = plain(self.netlist.cells[cell.memory].name)
                break
            if isinstance(cell, _nir.Instance):
                name = plain(cell.name)
                break
            at = self._consumers.get(at)
        if name is None:
            name = self._roots.get(at, "") if at is not None else ""
        name = name or plain(self.netlist.modules[self.netlist.cells[number].module_idx].name[-1])
        self._roots |= dict.fromkeys(path, name)
        return name

    def anonymous(self, index: int, value: Any) -> str:
        """A name for the output of a cell, or of a submodule, that the source gives none."""
        return self.scopes[index].take(self._held(index, value) or self._made(index, value))

    def _made(self, index: int, value: Any) -> str:
        """What a value ends in, and how it is made."""
        number = value[0].cell
        cell = self.netlist.cells[number]
        root = self.root(number)
        if cell.module_idx != index:
            return f"{root}_from"
        if isinstance(self.netlist.cells[self._consumers.get(number, 0)], _nir.FlipFlop):
            return f"{root}_next"
        return f"{root}_{self._operation(cell)}"

    def between(self, index: int, number: int) -> str:
        """A name for what is computed on the way to the output of a cell."""
        return self.scopes[index].take(f"{self.root(number)}_offset")

    def _operation(self, cell: Any) -> str:
        if isinstance(cell, _nir.Operator):
            return _OPERATIONS[cell.operator]
        kinds = {_nir.Part: "part", _nir.AssignmentList: "case", _nir.FlipFlop: "reg", _nir.Instance: "out"}
        return kinds.get(type(cell), "read")
