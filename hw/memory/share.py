"""Who reads the buffers that the engines share: each has one read port."""

from __future__ import annotations

from amaranth.hdl import Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig
from tellme.hw.interfaces import Int8ReadPort, OwnReadPort, OwnScalePort


class Int8Sharing(wiring.Component):
    """Tables and attention read the int8 buffer; they never run together. No latency.

    Interface attributes
    --------------------
    attending : attention's job runs: its addresses count.
    tables, attention : who reads.
    buffer : what is read.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        port = Int8ReadPort(config)
        super().__init__({"attending": In(1), "tables": In(port), "attention": In(port), "buffer": Out(port)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [
            self.buffer.lane.eq(Mux(self.attending, self.attention.lane, self.tables.lane)),
            self.buffer.word.eq(Mux(self.attending, self.attention.word, self.tables.word)),
            self.buffer.en.eq(self.attention.en | self.tables.en),
            self.attention.data.eq(self.buffer.data),
            self.tables.data.eq(self.buffer.data),
        ]
        return m


class OwnSharing(wiring.Component):
    """Attention reads own K, V and their scales whenever it wants; the cache writer takes the free cycles. No latency.

    Interface attributes
    --------------------
    attention, attention_scales, writer, writer_scales : who reads.
    buffer, buffer_scales : what is read.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        beats, scales = OwnReadPort(config), OwnScalePort(config)
        super().__init__(
            {
                **{name: In(beats) for name in ("attention", "writer")},
                **{f"{name}_scales": In(scales) for name in ("attention", "writer")},
                "buffer": Out(beats),
                "buffer_scales": Out(scales),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for first, second, buffer in (
            (self.attention, self.writer, self.buffer),
            (self.attention_scales, self.writer_scales, self.buffer_scales),
        ):
            for name in [n for n in buffer.signature.members if n not in ("en", "grant", "data")]:
                m.d.comb += getattr(buffer, name).eq(Mux(first.en, getattr(first, name), getattr(second, name)))
            m.d.comb += [
                buffer.en.eq(first.en | second.en),
                first.grant.eq(buffer.grant),
                second.grant.eq(buffer.grant & ~first.en),
                first.data.eq(buffer.data),
                second.data.eq(buffer.data),
            ]
        return m
