"""Where beats go, and whose phases and writes come."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import data, enum, stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig


class Route(enum.Enum, shape=3):
    """Which unit takes the beats of the stream."""

    PROGRAM = 0
    LOAD = 1
    TLMM = 2
    ATTENTION = 3
    SCREEN = 4


class BeatRouter(wiring.Component):
    """Gives the stream's beats to the unit whose turn it is. No latency.

    Interface attributes
    --------------------
    route : whose turn it is.
    loading : beats are those of the program, whatever the route.
    beats : the stream.
    weights : of the screened head's beats, the next is TLMM's.
    load, tlmm, attention, screen : to the units.
    program, program_write : a beat of the program, always taken.
    taken : a beat is taken.
    waiting : one would be, and none is there.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        beats = stream.Signature(8 * config.beat_bytes)
        super().__init__(
            {
                "route": In(Route),
                "loading": In(1),
                "weights": In(1),
                "beats": In(beats),
                "load": Out(beats),
                "tlmm": Out(beats),
                "attention": Out(beats),
                "screen": Out(beats),
                "program": Out(8 * config.beat_bytes),
                "program_write": Out(1),
                "taken": Out(1),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ready = Signal()
        screened = self.route == Route.SCREEN
        for turn, unit in (
            (self.route == Route.LOAD, self.load),
            ((self.route == Route.TLMM) | (screened & self.weights), self.tlmm),
            (self.route == Route.ATTENTION, self.attention),
            (screened & ~self.weights, self.screen),
        ):
            m.d.comb += [
                unit.payload.eq(self.beats.payload),
                unit.valid.eq(self.beats.valid & turn),
            ]
            with m.If(turn):
                m.d.comb += ready.eq(unit.ready)
        with m.If(self.loading):
            m.d.comb += ready.eq(1)
        m.d.comb += [
            self.beats.ready.eq(ready),
            self.taken.eq(self.beats.valid & ready),
            self.waiting.eq(ready & ~self.beats.valid),
            self.program.eq(self.beats.payload),
            self.program_write.eq(self.beats.valid & self.loading),
        ]
        return m


class StreamChoice(wiring.Component):
    """One of two streams. No latency.

    Parameters
    ----------
    layout : of the payload.

    Interface attributes
    --------------------
    second : which of `sources` comes out at `out`; the other waits.
    """

    def __init__(self, layout: data.Layout) -> None:
        items = stream.Signature(layout)
        super().__init__({"second": In(1), "sources": In(items).array(2), "out": Out(items)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for source, chosen in zip(self.sources, (~self.second, self.second), strict=True):
            with m.If(chosen):
                m.d.comb += [
                    self.out.valid.eq(source.valid),
                    self.out.payload.eq(source.payload),
                    source.ready.eq(self.out.ready),
                ]
        return m


class StreamSwitch(wiring.Component):
    """A stream to one of two takers. No latency.

    Parameters
    ----------
    layout : of the payload.

    Interface attributes
    --------------------
    second : which of `takers` gets what comes at `source`; the other gets nothing.
    """

    def __init__(self, layout: data.Layout) -> None:
        items = stream.Signature(layout)
        super().__init__({"second": In(1), "source": In(items), "takers": Out(items).array(2)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for taker, chosen in zip(self.takers, (~self.second, self.second), strict=True):
            m.d.comb += [taker.valid.eq(self.source.valid & chosen), taker.payload.eq(self.source.payload)]
            with m.If(chosen):
                m.d.comb += self.source.ready.eq(taker.ready)
        return m
