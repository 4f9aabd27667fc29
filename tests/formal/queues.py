"""Order and no loss of the queues, by one entry that is followed through."""

from __future__ import annotations

from amaranth import Cat, Const, Module, Signal

from tellme.hw.queues import DeepFifo, Queue, RegisterSlice, ReservedQueue, ShortQueue
from tests.formal.prover import Bench, Monitor


class QueueBench(Bench):
    """Entries of one free bit. `follow` picks any one entry: it comes out behind those before it, as it went in.

    Parameters
    ----------
    kind : of the queue. depth : its entries.
    """

    def __init__(self, kind: str, depth: int, *, arbitrary: bool = False):
        super().__init__(arbitrary=arbitrary)
        self.kind, self.size = kind, depth
        self.name = f"{kind} of {depth}"

    def build(self, m: Module, monitor: Monitor) -> None:
        bit, write, ready, clear = (self.free(1, n) for n in ("bit", "write", "ready", "clear"))
        follow = self.free(1, "follow")
        width = 64 if self.kind == "DeepFifo" else 1
        word = Cat(bit, Const(0, width - 1)) if width > 1 else bit
        put, got, out_valid, out_bit = Signal(), Signal(), Signal(), Signal()
        held = Signal(8)
        capacity = self.size
        may_clear = True
        if self.kind in ("Queue", "RegisterSlice"):
            m.submodules.queue = q = Queue(width=1, depth=self.size) if self.kind == "Queue" else RegisterSlice(width=1)
            m.d.comb += [q.i.valid.eq(write), q.i.payload.eq(word), q.clear.eq(clear), put.eq(write & q.i.ready)]
            m.d.comb += [q.o.ready.eq(ready), out_valid.eq(q.o.valid), out_bit.eq(q.o.payload)]
            latency = 1
            monitor.claim("there is room while it is not full", q.i.ready | (held >= capacity))
            if self.kind == "Queue":
                monitor.claim("the level is what is held", q.level == held)
        elif self.kind == "DeepFifo":
            m.submodules.queue = q = DeepFifo(width=width, depth=self.size)
            stored = Signal(8)  # in the memory: whoever writes keeps this account
            m.d.comb += [
                put.eq(write & ((stored != self.size) | q.taken)),
                q.w_en.eq(put),
                q.w_data.eq(word),
                q.clear.eq(clear),
            ]
            m.d.comb += [q.o.ready.eq(ready), out_valid.eq(q.o.valid), out_bit.eq(q.o.payload[0])]
            m.d.sync += stored.eq(stored + put - q.taken)
            with m.If(clear):
                m.d.sync += stored.eq(0)
            capacity, latency = self.size + 2, 3
            monitor.claim("a place is given back only if one is taken", ~q.taken | (stored != 0))
            monitor.claim("the level is what is stored", q.level == stored)
        else:
            may_clear = False
            if self.kind == "ShortQueue":
                m.submodules.queue = q = ShortQueue(1, self.size)
                m.d.comb += put.eq(write & q.room)
                capacity, latency = self.size + 1, 2
            else:
                m.submodules.queue = q = ReservedQueue(1, self.size)
                due = Signal(8)
                m.d.comb += [q.reserve.eq(self.free(1, "reserve") & q.room), put.eq(write & (due != 0))]
                m.d.sync += due.eq(due + q.reserve - put)
                latency = 2
                monitor.claim("what is reserved has a place", (due + held) <= capacity)
            m.d.comb += [q.write.eq(put), q.payload.eq(bit), q.out.ready.eq(ready)]
            m.d.comb += [out_valid.eq(q.out.valid), out_bit.eq(q.out.payload)]
        wipe = clear if may_clear else Const(0)
        m.d.comb += got.eq(out_valid & ready)
        m.d.sync += held.eq(held + put - got)
        with m.If(wipe):
            m.d.sync += held.eq(0)

        following, ahead, value = Signal(), Signal(8), Signal()
        chosen = put & follow & ~following
        with m.If(got & following):
            m.d.sync += ahead.eq(ahead - 1)
            with m.If(ahead == 0):
                m.d.sync += following.eq(0)
        with m.If(chosen):
            m.d.sync += [following.eq(1), ahead.eq(held - got), value.eq(bit)]
        with m.If(wipe):
            m.d.sync += following.eq(0)

        before, kept, kept_bit = Signal(), Signal(), Signal()
        m.d.sync += [kept.eq(out_valid & ~ready & ~wipe), kept_bit.eq(out_bit), before.eq(put)]
        waited = Signal(4)
        with m.If(out_valid | (held == 0) | wipe):
            m.d.sync += waited.eq(0)
        with m.Elif(waited != 15):
            m.d.sync += waited.eq(waited + 1)
        monitor.claim("what comes out has gone in", ~out_valid | (held != 0))
        monitor.claim("no more is held than there is room for", held <= capacity)
        monitor.claim(
            "an entry comes out in its turn and as it went in", ~(got & following & (ahead == 0)) | (out_bit == value)
        )
        monitor.claim("an entry that waits stays", ~kept | (out_valid & (out_bit == kept_bit)))
        monitor.claim("what is held comes out in time", waited < latency)
