"""RTLIL and Verilog are Amaranth's own but for contents of memories that are zero, which are left out."""

import gc
import re

import pytest
from amaranth.back import rtlil, verilog
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.config import TINY
from tellme.hw.emit import to_rtlil, to_verilog
from tellme.hw.memory.reader import StreamReader
from tellme.hw.primitives import Inferred, UltraScalePlus
from tellme.hw.tlmm.loader import TileLoader


class Two(wiring.Component):
    """A memory that starts at zero, and one that does not."""

    address: In(4)
    value: In(8)
    zeros: Out(8)
    others: Out(8)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.zeros = zeros = Memory(shape=8, depth=16, init=[0] * 16)
        m.submodules.others = others = Memory(shape=8, depth=16, init=[0] * 15 + [1])
        for memory, out in ((zeros, self.zeros), (others, self.others)):
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [write.addr.eq(self.address), write.data.eq(self.value), write.en.eq(1)]
            m.d.comb += [read.addr.eq(self.address), out.eq(read.data)]
        return m


def test_only_contents_that_are_not_zero_are_written() -> None:
    assert to_rtlil(Two()).count("cell $meminit_v2") == 1
    text = to_verilog(Two())
    words = re.findall(r"(?m)^    \S+ ?\[(\d+)\] = 8'h(\w+);", text)
    assert words == [(str(i), "01" if i == 15 else "00") for i in range(16)]
    whole = verilog.convert(Two(), emit_src=False)
    assert len(re.findall(r"(?m)^    \S+ ?\[(\d+)\] = 8'", whole)) == 32


_MEMINIT = re.compile(r"(?m)^  cell \$meminit_v2 \S+\n(?:    .*\n)*  end\n\n")


@pytest.mark.parametrize(
    "platform", [None, Inferred(ultra_ram=True), UltraScalePlus()], ids=["none", "inferred", "primitives"]
)
@pytest.mark.parametrize("component", [lambda: StreamReader(TINY), lambda: TileLoader(TINY)], ids=["reader", "loader"])
def test_the_rest_is_amaranths_own_text(component: object, platform: object) -> None:
    ours = to_rtlil(component(), "dut", platform)  # type: ignore[operator]
    theirs = rtlil.convert(component(), name="dut", platform=platform, emit_src=False)  # type: ignore[operator]
    numbers = re.compile(r"\$\d+")  # cells are counted
    assert numbers.sub("$", ours) == numbers.sub("$", _MEMINIT.sub("", theirs))


def test_the_garbage_collector_is_as_it_was() -> None:
    for was in (True, False):
        gc.enable() if was else gc.disable()
        try:
            to_rtlil(Two())
            assert gc.isenabled() == was
            with pytest.raises(AttributeError):
                to_rtlil(object())  # type: ignore[arg-type]
            assert gc.isenabled() == was
        finally:
            gc.enable()
