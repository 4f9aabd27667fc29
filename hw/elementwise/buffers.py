"""Memories of the element-wise pipeline, in shapes that infer as URAM, BRAM or LUTRAM."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import CHUNK, clog2
from tellme.hw.primitives import deep_ram


class BankedBuffer(wiring.Component):
    """A wide memory whose write port takes one part at a time: a bank for each part, all read together.

    Banks instead of write enables, because a URAM or BRAM of this width is banks anyway.

    Parameters
    ----------
    depth : wide words.
    parts : parts of a wide word.
    part_width : bits of a part.
    deep : goes into UltraRAM where the chip has it; else the tool chooses.
    output_register : a register behind the RAM, which moves into it: a RAM's clock-to-out is up to four LUT levels.

    Attributes
    ----------
    delay : cycles from `read` to `read_data`: 1, or 2 with an output register.

    Interface attributes
    --------------------
    write, write_addr, write_part, write_data : In. One part a cycle; `write_addr` counts wide words.
    read, read_addr : In.
    read_data : Out, `delay` cycles after `read`, part 0 in the low bits. The old word when it is written in the same
        cycle as it is read.
    """

    def __init__(
        self, *, depth: int, parts: int, part_width: int, deep: bool = False, output_register: bool = False
    ) -> None:
        self._depth = depth
        self._parts = parts
        self._width = part_width
        self._deep = deep
        self.delay = 2 if output_register else 1
        super().__init__(
            {
                "write": In(1),
                "write_addr": In(clog2(depth)),
                "write_part": In(clog2(parts)),
                "write_data": In(part_width),
                "read": In(1),
                "read_addr": In(clog2(depth)),
                "read_data": Out(parts * part_width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for i in range(self._parts):
            bank = memory.Memory(
                shape=unsigned(self._width),
                depth=self._depth,
                init=[],
                attrs=deep_ram(platform) if self._deep else {},
            )
            m.submodules[f"bank{i}"] = bank
            write, read = bank.write_port(), bank.read_port()
            m.d.comb += [
                write.addr.eq(self.write_addr),
                write.data.eq(self.write_data),
                write.en.eq(self.write & (self.write_part == i if self._parts > 1 else 1)),
                read.addr.eq(self.read_addr),
                read.en.eq(self.read),
            ]
            word = Signal(self._width, name=f"word{i}", reset_less=True)
            if self.delay > 1:
                m.d.sync += word.eq(read.data)
            else:
                m.d.comb += word.eq(read.data)
            m.d.comb += self.read_data.word_select(i, self._width).eq(word)
        return m


class BeatTable(wiring.Component):
    """A table of floats written in beats and read in chunks: the gain, the rotary table.

    Parameters
    ----------
    beats : depth, in beats.
    word : floats of a beat.

    Interface attributes
    --------------------
    write, write_addr, write_data : In. A beat a cycle.
    read_addr : In, in chunks.
    read_data : Out, a chunk, `delay` cycles later.
    """

    delay = 2

    def __init__(self, *, beats: int, word: int):
        self._beats = beats
        self._parts = word // CHUNK
        super().__init__(
            {
                "write": In(1),
                "write_addr": In(clog2(beats)),
                "write_data": In(32 * word),
                "read_addr": In(clog2(beats * self._parts)),
                "read_data": Out(32 * CHUNK),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.table = table = memory.Memory(shape=unsigned(len(self.write_data)), depth=self._beats, init=[])
        write, read = table.write_port(), table.read_port()
        low = exact_log2(self._parts)
        part = Signal(max(1, low))
        m.d.comb += [
            write.addr.eq(self.write_addr),
            write.data.eq(self.write_data),
            write.en.eq(self.write),
            read.addr.eq(self.read_addr[low:]),
            read.en.eq(1),
        ]
        chunk = Signal(32 * CHUNK, reset_less=True)
        m.d.sync += [
            part.eq(self.read_addr[:low] if low else 0),
            chunk.eq(read.data.word_select(part, 32 * CHUNK)),
        ]
        m.d.comb += self.read_data.eq(chunk)
        return m


class ScaleRam(wiring.Component):
    """A memory of float32 scales: one write port, one read port of one cycle of latency.

    Parameters
    ----------
    depth : scales.

    Interface attributes
    --------------------
    write, write_addr, write_data : In.
    read_addr : In.
    read_data : Out, one cycle later; the old scale when it is written in the same cycle as it is read.
    """

    def __init__(self, *, depth: int):
        self._depth = depth
        super().__init__(
            {
                "write": In(1),
                "write_addr": In(clog2(depth)),
                "write_data": In(32),
                "read_addr": In(clog2(depth)),
                "read_data": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ram = ram = memory.Memory(shape=unsigned(32), depth=self._depth, init=[])
        write, read = ram.write_port(), ram.read_port()
        m.d.comb += [
            Cat(write.addr, write.data, write.en).eq(Cat(self.write_addr, self.write_data, self.write)),
            read.addr.eq(self.read_addr),
            read.en.eq(1),
            self.read_data.eq(read.data),
        ]
        return m
