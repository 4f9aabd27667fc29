"""What the output head makes of logits: the arg-max of every lane, and beats to write."""

from __future__ import annotations

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.hw.attention.block import Sizes, log2
from tellme.hw.pipeline import delay_line
from tellme.hw.queues import ShortQueue

LOGIT_BEATS = 16
"""Beats of logits that wait to be written."""


class LogitSink(wiring.Component):
    """Arg-max over the vocabulary, lowest index on ties, and logits gathered to beats.

    Takes keys_per_beat logits a cycle, in the order of rows; lanes and blocks as they come.

    Interface attributes
    --------------------
    valid, lane, block, beat, new, first, end, values : see ScorePass. `new`: first beat of a (lane, block).
    credit : a beat of logits may be begun; spend : it is, in one cycle of four at most.
    logits : beats of {lane, beat within the lane's logits, data}.
    best_index, best_value : by lane, for the lanes of the job valid once `finished` (a pulse) and every beat is taken.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        c = sizes.config
        super().__init__(
            {
                "vocabulary": In(32),
                "write_logits": In(1),
                "valid": In(1),
                "lane": In(clog2(c.lanes)),
                "block": In(16),
                "beat": In(log2(c.key_tile)),
                "new": In(1),
                "first": In(1),
                "end": In(1),
                "values": In(data.ArrayLayout(32, c.keys_per_beat)),
                "credit": Out(1),
                "spend": In(1),
                "logits": Out(stream.Signature(logit_layout(c))),
                "best_index": Out(data.ArrayLayout(32, c.lanes)),
                "best_value": Out(data.ArrayLayout(32, c.lanes)),
                "finished": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        z = self.sizes
        c = z.config
        kpb = c.keys_per_beat

        # ---- arg-max -------------------------------------------------------------------------------
        candidate = data.StructLayout({"order": 32, "value": 32, "index": 32})
        row = Signal(32)
        vocabulary = Signal(32, reset_less=True)
        m.d.sync += vocabulary.eq(self.vocabulary)
        m.d.comb += row.eq(Cat(self.beat, self.block) << log2(kpb))
        level: list[Signal] = []
        for k in range(kpb):
            x = self.values[k]
            # Unsigned integers in the order of the values; both zeros are one. 0 is less than any value.
            order = Mux(x[:31] == 0, 1 << 31, Mux(x[31], ~x, x | (1 << 31)))[:32]
            entry = Signal(candidate, name=f"entry_{k}", reset_less=True)
            m.d.sync += [
                entry.order.eq(Mux((row | k) < vocabulary, order, 0)),
                entry.value.eq(x),
                entry.index.eq(row | k),
            ]
            level.append(entry)
        delay = 1
        while len(level) > 1:
            following = []
            for a, b in zip(level[::2], level[1::2], strict=True):
                best = Signal(candidate, name=f"best_{delay}_{len(following)}", reset_less=True)
                m.d.sync += best.eq(Mux(b.order > a.order, b.as_value(), a.as_value()))
                following.append(best)
            level = following
            delay += 1
        challenger = level[0]
        valid = delay_line(m, self.valid, delay, "valid", reset_less=False)
        lane = delay_line(m, self.lane, delay, "lane")
        fresh = delay_line(m, self.new & self.first, delay, "fresh")
        # The lane's best so far is looked up a cycle ahead: the lane changes at most once in a tile.
        new = delay_line(m, self.new, delay, "new")
        ahead = delay_line(m, self.lane, delay - 1, "ahead")
        orders = Array(Signal(32, name=f"order_{i}", reset_less=True) for i in range(c.lanes))
        indices = Array(Signal(32, name=f"index_{i}", reset_less=True) for i in range(c.lanes))
        values = Array(Signal(32, name=f"value_{i}", reset_less=True) for i in range(c.lanes))
        stored = Signal(candidate, reset_less=True)
        running = Signal(candidate, reset_less=True)
        m.d.sync += Cat(stored.order, stored.index, stored.value).eq(Cat(orders[ahead], indices[ahead], values[ahead]))
        before = Signal(candidate)
        m.d.comb += before.eq(Mux(new, stored.as_value(), running.as_value()))
        with m.If(new & fresh):
            m.d.comb += before.eq(0)
        with m.If(valid):
            m.d.sync += running.eq(Mux(challenger.order > before.order, challenger.as_value(), before.as_value()))
        late_valid = delay_line(m, valid, 1, "late_valid", reset_less=False)
        late_lane = delay_line(m, lane, 1, "late_lane")
        for i in range(c.lanes):
            with m.If(late_valid & (late_lane == i)):
                m.d.sync += [orders[i].eq(running.order), indices[i].eq(running.index), values[i].eq(running.value)]
            m.d.comb += [self.best_index[i].eq(indices[i]), self.best_value[i].eq(values[i])]

        # ---- beats of logits -----------------------------------------------------------------------
        per_beat = z.depth
        m.submodules.queue = queue = ShortQueue(logit_layout(c), LOGIT_BEATS)
        credits = Signal(range(LOGIT_BEATS + 1), init=LOGIT_BEATS)
        gathered = Signal(8 * c.beat_bytes, reset_less=True)
        entry = Signal(logit_layout(c))
        spent, taken = Signal(), Signal()
        position = self.beat[: log2(per_beat)]
        with m.If(self.valid):
            m.d.sync += gathered.eq(Cat(gathered[32 * kpb :], self.values.as_value()))
        full = self.valid & position.all() & self.write_logits
        m.d.comb += [
            entry.lane.eq(delay_line(m, self.lane, 1, "entry_lane")),
            entry.beat.eq(delay_line(m, Cat(self.beat, self.block)[log2(per_beat) :], 1, "entry_beat")),
            entry.data.eq(gathered),
            queue.payload.eq(entry),
            queue.write.eq(delay_line(m, full, 1, "full", reset_less=False)),
        ]
        wiring.connect(m, wiring.flipped(self.logits), queue.out)
        # Up to date three cycles behind a spending: the next is a beat of logits later.
        assert z.depth >= 4
        m.d.sync += [
            spent.eq(self.spend),
            taken.eq(queue.out.valid & queue.out.ready),
            credits.eq(credits - spent + taken),
            self.credit.eq(credits != 0),
        ]

        # ---- end of the job ------------------------------------------------------------------------
        ending = Signal()
        ended = delay_line(m, self.end, delay + 3, "ended", reset_less=False)
        m.d.comb += self.finished.eq(ending & (credits == LOGIT_BEATS))
        with m.If(ended):
            m.d.sync += ending.eq(1)
        with m.If(self.finished):
            m.d.sync += ending.eq(0)
        return m


def logit_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A beat of logits: lane, beat within the lane's logits, word_elements binary32."""
    return data.StructLayout({"lane": clog2(config.lanes), "beat": 32, "data": 8 * config.beat_bytes})
