"""Dot products accumulated over the cells of a phase."""

from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.hw.attention.array import MultiplierArray
from tellme.hw.attention.block import Sizes, tag_layout
from tellme.hw.attention.signatures import DotPort
from tellme.hw.pipeline import delay_line


class DotAccumulator(wiring.Component):
    """Adds the array's dot products of a cell to those of the cells before, for every query and key of a tile.

    Two memories (one for each half: K phases alternate), a word = attention_lanes x keys_per_beat sums, at {set,
    beat}. A word may be added to every 3 cycles, as a whole or one half of the attention lanes. Read and written by
    different halves at any time.

    Interface attributes
    --------------------
    tag : aligned with the array's.
    dots : of the array.
    phase_end : pulse, the phase's sums can be read from the next cycle on.
    read : read port of the sums.
    """

    def __init__(self, sizes: Sizes, array: MultiplierArray):
        self.sizes = sizes
        self.dot_delay = array.dot_delay
        self.delay = array.dot_delay + 2
        """From the tag of a phase's last beat to `phase_end`: read, added, written."""
        config = sizes.config
        self.count = config.attention_lanes * config.keys_per_beat
        super().__init__(
            {
                "tag": In(tag_layout(sizes)),
                "dots": In(array.dots.shape()),
                "phase_end": Out(1),
                "read": In(DotPort(sizes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        sizes = self.sizes
        early = self.dot_delay - 1
        lanes = delay_line(m, self.tag.dot, early, "lanes", reset_less=False)
        valid = lanes.any()
        half = delay_line(m, self.tag.half, early, "half")
        first = delay_line(m, self.tag.first, early + 1, "first")
        address = delay_line(m, self.tag.address, early, "address")
        end = delay_line(m, self.tag.end, self.delay, "end", reset_less=False)
        m.d.comb += self.phase_end.eq(end)

        lanes_1 = delay_line(m, lanes, 1, "lanes_1", reset_less=False)
        write_half = delay_line(m, half, 2, "write_half")
        write_at = delay_line(m, address, 2, "write_at")
        read_half = delay_line(m, half, 1, "read_half")
        out_half = delay_line(m, self.read.half, 1, "out_half")
        total = Signal(self.read.data.shape(), reset_less=True)
        write_en = delay_line(m, lanes_1, 1, "write_en", reset_less=False)
        parts = 1 + sizes.config.narrow_cache

        before = Signal(self.read.data.shape())
        for h in range(2):
            m.submodules[f"memory_{h}"] = memory = Memory(shape=self.read.data.shape(), depth=sizes.tile_words, init=[])
            write, read = memory.write_port(granularity=self.count // parts), memory.read_port()
            adding = valid & (half == h)
            m.d.comb += [
                write.en.eq(Mux(write_half == h, write_en, 0)),
                write.addr.eq(write_at),
                write.data.eq(total),
                read.addr.eq(Mux(adding, address, self.read.address)),
            ]
            with m.If(read_half == h):
                m.d.comb += before.eq(read.data)
            with m.If(out_half == h):
                m.d.comb += self.read.data.eq(read.data)
        for i in range(self.count):
            m.d.sync += total[i].eq(self.dots[i] + Mux(first, 0, before[i]))
        return m
