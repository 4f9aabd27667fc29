"""Performance counters: where the cycles of a pass went."""

from amaranth import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from golden.registers import BUSY, STALLS

SEEN = ("beat", "write", "running", "unit_busy")
"""Inputs besides the causes."""


class Counters(wiring.Component):
    """Counts a pass: every cycle either takes a beat or is put down to exactly one cause of `golden.registers.STALLS`.

    memory: a unit waits and no beat is there. Otherwise the first that holds of epilogue, attention, elementwise,
    drain; what is left is control.

    Interface attributes
    --------------------
    restart : pulse, clears. running : the pass is on.
    """

    restart: In(1)
    running: In(1)
    beat: In(1)
    write: In(1)
    memory: In(1)
    epilogue: In(1)
    attention: In(1)
    elementwise: In(1)
    drain: In(1)
    unit_busy: In(len(BUSY))
    cycles: Out(32)
    beats: Out(32)
    writes: Out(32)
    stall: Out(data.ArrayLayout(32, len(STALLS)))
    busy: Out(data.ArrayLayout(32, len(BUSY)))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        cause = Signal(len(STALLS))
        names = {name: 1 << i for i, name in enumerate(STALLS)}
        # What happens is counted two cycles later, so that neither the causes' order nor a counter hangs on the stream's handshake.
        order = ("memory", "epilogue", "attention", "elementwise", "drain")
        seen = {name: Signal(len(getattr(self, name)), name=f"seen_{name}") for name in (*order, *SEEN)}
        m.d.sync += [signal.eq(getattr(self, name)) for name, signal in seen.items()]
        beat, write, running = Signal(), Signal(), Signal()
        unit_busy = Signal(len(BUSY))
        m.d.sync += [
            beat.eq(seen["beat"] & seen["running"]),
            write.eq(seen["write"] & seen["running"]),
            running.eq(seen["running"]),
            unit_busy.eq(seen["unit_busy"]),
            cause.eq(names["control"]),
        ]
        with m.If(seen["beat"]):
            m.d.sync += cause.eq(0)
        for name in order:
            with m.Elif(seen[name]):
                m.d.sync += cause.eq(names[name])
        with m.If(self.restart):
            m.d.sync += [self.cycles.eq(0), self.beats.eq(0), self.writes.eq(0), self.stall.eq(0), self.busy.eq(0)]
        with m.Elif(running):
            m.d.sync += [
                self.cycles.eq(self.cycles + 1),
                self.beats.eq(self.beats + beat),
                self.writes.eq(self.writes + write),
            ]
            for i in range(len(STALLS)):
                m.d.sync += self.stall[i].eq(self.stall[i] + cause[i])
            for i in range(len(BUSY)):
                m.d.sync += self.busy[i].eq(self.busy[i] + unit_busy[i])
        return m
