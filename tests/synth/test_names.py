"""Readable Verilog is the same netlist under other names, and the names are those of the source."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from amaranth.hdl import Array, Elaboratable, Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.config import TINY
from tellme.hw import emit
from tellme.hw.names import KEYWORDS, Scope, plain
from tellme.hw.primitives import Inferred, UltraScalePlus
from tellme.hw.top import Accelerator

ROOT = Path(__file__).resolve().parents[2]
_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[\\$][^\s:]+|[^\s]+')
_DECLARED = re.compile(
    r"^\s*(?:wire (?:width \d+ )?(?:(?:input|output|inout) \d+ )?(?: ?signed )? ?|memory .* |cell \S+ |process )(\S+)$"
)


def same(one: str, other: str) -> dict[str, dict[str, str]]:
    """New names by the old ones, of each module (its new name): that the texts differ in nothing else is asserted."""
    a, b = one.splitlines(), other.splitlines()
    assert len(a) == len(b)
    modules: dict[str, str] = {}
    for x, y in zip(a, b, strict=True):
        if x.startswith("module "):
            modules[x.split()[1]] = y.split()[1]
    assert len(set(modules.values())) == len(modules)
    out: dict[str, dict[str, str]] = {}
    names: dict[str, str] = {}
    ports: dict[str, dict[str, str]] = {}
    cells: list[tuple[str, str, str]] = []
    kind = ""
    for x, y in zip(a, b, strict=True):
        if x.startswith("module "):
            names = out.setdefault(y.split()[1], {})
        s, t = _WORD.findall(x), _WORD.findall(y)
        assert len(s) == len(t), (x, y)
        if s[:1] == ["cell"]:
            kind = s[1]
            assert t[1] == modules.get(kind, kind)
            s, t = s[2:], t[2:]
        elif s[:1] == ["connect"] and x.startswith("    ") and kind in modules:
            cells.append((modules[kind], s[1], t[1]))
            s, t = s[2:], t[2:]
        elif s[:1] == ["connect"] and x.startswith("    "):
            s, t = s[2:], t[2:]
        elif s[:1] in (["module"], ["attribute"], ["parameter"]):
            if s[1:2] != [r"\MEMID"]:  # there a memory is meant by its name
                assert s == t or s[0] == "module", (x, y)
                continue
            s, t = ([w[2].strip('"').replace(r"\\", "\\")] for w in (s, t))
        for old, new in zip(s, t, strict=True):
            if old[0] in "\\$":
                assert names.setdefault(old, new) == new, (x, y)
            else:
                assert old == new, (x, y)
    for module, old, new in cells:
        assert ports is not None and out[module][old] == new
    for renamed in out.values():
        assert len(set(renamed.values())) == len(renamed), "two things of one name"
    return out


def wires(rtlil: str) -> list[str]:
    return re.findall(r"(?m)^  wire .*?(\S+)$", rtlil)


class Inner(wiring.Component):
    """Everything that Amaranth counts: private signals, parts of signals as ports, an instance called like a signal."""

    i: In(data.StructLayout({"low": 4, "high": data.ArrayLayout(4, 2)}))
    o: Out(8)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        reg = Signal(8)
        m.submodules.reg = memory = Memory(shape=8, depth=4, init=[1, 2, 3, 4])
        m.submodules.end = second = Memory(shape=8, depth=4, init=[])
        read, other, write = memory.read_port(), second.read_port(domain="comb"), second.write_port()
        m.d.comb += [read.addr.eq(self.i.low), other.addr.eq(self.i.high[0]), write.addr.eq(self.i.low[2:])]
        m.d.comb += [write.data.eq(reg ^ 3), write.en.eq(1)]
        m.d.sync += reg.eq((read.data + other.data).bit_select(self.i.low[:2], 4) * 3)
        several = Array(Signal(8, name="end") for _ in range(3))
        m.d.sync += several[self.i.high[1][:2]].eq(reg)
        m.d.comb += self.o.eq(reg + several[self.i.low[:2]])
        return m


class Outer(wiring.Component):
    a: In(8)
    o: Out(8)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.begin = inner = Inner()
        m.submodules += (others := [Inner(), Inner()])
        begin = Signal(8)
        m.d.sync += begin.eq(self.a + 1)
        m.d.comb += [inner.i.low.eq(begin[1:5]), inner.i.high.eq(begin ^ self.a)]
        m.d.comb += [x.i.eq(begin) for x in others]
        m.d.sync += self.o.eq(inner.o + others[0].o + others[1].o)
        return m


@pytest.mark.parametrize(
    ("component", "platform"),
    [
        (Outer, None),
        (Outer, Inferred(ultra_ram=True)),
        (lambda: Accelerator(TINY), Inferred(ultra_ram=True)),
        (lambda: Accelerator(replace(TINY, weight_format="grouped", lanes=2)), UltraScalePlus()),
    ],
    ids=["small", "inferred", "tiny", "grouped with primitives"],
)
def test_nothing_but_names_differs(component: Callable[[], Elaboratable], platform: object) -> None:
    old, new = (f(component(), "top", platform) for f in (emit.to_rtlil, emit.to_readable_rtlil))
    renamed = same(old, new)
    assert not [n for n in wires(new) if not re.fullmatch(r"\\[A-Za-z_]\w*", n) or n[1:] in KEYWORDS]
    assert all(re.fullmatch(r"\\[A-Za-z]\w*", module) for module in renamed)
    # What had a name that needs no mending keeps it, but for an instance before it and a number behind it.
    for names in renamed.values():
        for was, now in names.items():
            if re.fullmatch(r"\\[A-Za-z]\w*", was) and was[1:] not in KEYWORDS and "___" not in was:
                assert re.fullmatch(rf"\\(\w+__)?{re.sub(r'_[0-9]+$', '', was[1:])}(_[0-9]+)*", now), (was, now)


def test_sources_are_from_the_repository_and_lead_to_the_line() -> None:
    text = emit.to_readable_verilog(Outer(), "top", sources=True)
    found = set(re.findall(r'src = "([^"]*)"', text))
    own = {p for p in found if p.startswith("tests/synth/test_names.py:")}
    assert own and all(p.startswith("amaranth/") for p in found - own), found - own
    lines = Path(__file__).read_text().splitlines()
    number = next(int(p.rpartition(":")[2]) for p in own if "begin = Signal(8)" in lines[int(p.rpartition(":")[2]) - 1])
    assert re.search(rf'src = "tests/synth/test_names.py:{number}" \*\)\n  reg \[7:0\] begin__1\b', text)
    assert "src" not in emit.to_readable_verilog(Outer(), "top")


def test_yosys_own_names_are_none_of_the_text() -> None:
    text = emit.to_readable_verilog(Accelerator(TINY), "tellme", Inferred(ultra_ram=True), separator="_")
    assert "\\" not in text and "$" not in re.sub(r"\$(signed|unsigned|display|write|finish|fatal)\b", "", text)
    assert not re.search(r"\b_\d+_\b", text)
    for part in re.split(r"(?m)^(?=module )", text)[1:]:
        declared = re.findall(r"(?m)^  (?:wire|reg) (?:signed )?(?:\[\d+:\d+\] )?(\w+)", part)
        declared += re.findall(r"(?m)^  \w+ (\w+) \($", part)
        assert len(declared) == len(set(declared)), part.split("(")[0]
        assert not KEYWORDS & set(declared)
    # Where a report says an instance, the module says the same, and the source the file.
    assert re.search(r"(?m)^  tellme_tlmm_tree tree \($", text) and re.search(r"(?m)^module tellme_tlmm_tree\(", text)


def test_plain_names_and_scopes() -> None:
    assert [plain(n) for n in ("a.b[3]", "begin", "3x", "$signature__data", "", "é")] == [
        "a_b_3", "begin_", "n3x", "signature__data", "unnamed", "unnamed",
    ]  # fmt: skip
    scope = Scope()
    assert [scope.take(n) for n in ("a", "a", "a_1", "a", "a_1")] == ["a", "a_1", "a_1_1", "a_2", "a_1_2"]
