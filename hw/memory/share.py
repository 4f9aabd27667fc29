"""Who reads the buffers that the engines share: each has one read port."""

from __future__ import annotations

from amaranth.hdl import Module, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig
from tellme.hw.interfaces import Int8ReadPort, OwnReadPort, OwnScalePort, QueryScalePort


class Int8Sharing(wiring.Component):
    """Tables, attention and the rows of a screened head read the int8 buffer, and the latter two the scales of activations;
    they never run together. No latency.

    Interface attributes
    --------------------
    attending, scoring : attention's job, or rows, run: their addresses count, and else those of the tables.
    scaling : a screened head runs: its addresses of scales count; only with `ternary_head`, whose scores take them while tables are read.
    tables, attention, rows : who reads.
    buffer : what is read.
    attention_scales, rows_scales, scales : likewise.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        port, scale = Int8ReadPort(config), QueryScalePort(config)
        self._ternary = config.ternary_head
        super().__init__(
            ({"scaling": In(1)} if config.ternary_head else {})
            | {
                "attending": In(1),
                "scoring": In(1),
                "tables": In(port),
                "attention": In(port),
                "rows": In(port),
                "buffer": Out(port),
                "attention_scales": In(scale),
                "rows_scales": In(scale),
                "scales": Out(scale),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name in ("lane", "word"):
            others = Mux(self.attending, getattr(self.attention, name), getattr(self.tables, name))
            m.d.comb += getattr(self.buffer, name).eq(Mux(self.scoring, getattr(self.rows, name), others))
        scaling = self.scaling if self._ternary else self.scoring
        m.d.comb += [
            self.buffer.en.eq(self.attention.en | self.tables.en | self.rows.en),
            self.scales.lane.eq(Mux(scaling, self.rows_scales.lane, self.attention_scales.lane)),
            self.scales.head.eq(Mux(scaling, self.rows_scales.head, self.attention_scales.head)),
        ]
        for reader in (self.attention, self.tables, self.rows):
            m.d.comb += reader.data.eq(self.buffer.data)
            if "exponent" in reader.signature.members:
                m.d.comb += reader.exponent.eq(self.buffer.exponent)
        for scales in (self.attention_scales, self.rows_scales):
            m.d.comb += scales.data.eq(self.scales.data)
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
