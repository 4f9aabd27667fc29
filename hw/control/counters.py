"""Performance counters: where the cycles of a pass went."""

from amaranth import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.registers import BUSY, STALLS

SEEN = ("beat", "write", "running", "unit_busy", "port_beat", "port_stall")
"""Inputs besides the causes."""


class Counters(wiring.Component):
    """Counts a pass: every cycle either takes a beat or is put down to exactly one cause of `golden.registers.STALLS`.

    memory: a unit waits and no beat is there. Otherwise the first that holds of epilogue, attention, elementwise,
    drain; what is left is control.

    Each port's own cycles are counted besides: those in which memory owes it beats and a beat comes, and those in which
    none does. Together they are the time that the port had something to wait for.

    Parameters
    ----------
    ports : of the reader.

    Interface attributes
    --------------------
    restart : pulse, clears. `running` : the pass is on.
    beat : one is taken. `write` : one is written.
    memory, epilogue, attention, elementwise, drain : the cause holds.
    unit_busy : a bit of each unit of `golden.registers.BUSY`.
    port_beat, port_stall : a bit of each port: a beat has come; one is owed and none has come.
    cycles, beats, writes : of the pass, since `restart`.
    stall, busy : cycles of each cause, and of each unit.
    port_beats, port_stalls : cycles of each port.
    """

    def __init__(self, ports: int) -> None:
        self._ports = ports
        super().__init__(
            {
                **{name: In(1) for name in ("restart", "running", "beat", "write")},
                **{name: In(1) for name in ("memory", "epilogue", "attention", "elementwise", "drain")},
                "unit_busy": In(len(BUSY)),
                "port_beat": In(ports),
                "port_stall": In(ports),
                "cycles": Out(32),
                "beats": Out(32),
                "writes": Out(32),
                "stall": Out(data.ArrayLayout(32, len(STALLS))),
                "busy": Out(data.ArrayLayout(32, len(BUSY))),
                "port_beats": Out(data.ArrayLayout(32, ports)),
                "port_stalls": Out(data.ArrayLayout(32, ports)),
            }
        )

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
        port_beat, port_stall = Signal(self._ports), Signal(self._ports)
        m.d.sync += [
            port_beat.eq(seen["port_beat"] & seen["running"].replicate(self._ports)),
            port_stall.eq(seen["port_stall"] & seen["running"].replicate(self._ports)),
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
            m.d.sync += [
                counter.eq(0)
                for counter in (
                    *(self.cycles, self.beats, self.writes, self.stall, self.busy),
                    *(self.port_beats, self.port_stalls),
                )
            ]
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
            for i in range(self._ports):
                m.d.sync += [
                    self.port_beats[i].eq(self.port_beats[i] + port_beat[i]),
                    self.port_stalls[i].eq(self.port_stalls[i] + port_stall[i]),
                ]
        return m
