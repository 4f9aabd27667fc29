"""What the output head makes of logits: the arg-max of every lane, and beats to write."""

from __future__ import annotations

from typing import Any

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.hw.attention.block import Sizes
from tellme.hw.attention.signatures import LogitPort
from tellme.hw.interfaces import ScreenedBest
from tellme.hw.pipeline import delay_line
from tellme.hw.queues import ShortQueue

CANDIDATE = data.StructLayout({"order": 32, "value": 32, "index": 32})
"""A logit with its row; order: unsigned, in the order of the values."""

LOGIT_BEATS = 16
"""Beats of logits that wait to be written."""


class _Chosen:
    """What is compared: logits of the rows row, row + 1, ... of a lane."""

    def __init__(self, sizes: Sizes):
        self.valid, self.new, self.fresh = Signal(), Signal(), Signal()
        self.lane = Signal(clog2(sizes.config.lanes))
        self.row = Signal(32)
        self.values = [Signal(32, name=f"chosen_{k}") for k in range(sizes.config.keys_per_beat)]


class LogitSink(wiring.Component):
    """Arg-max over the vocabulary, lowest index on ties, and logits gathered to beats.

    Takes keys_per_beat logits a cycle, in the order of rows; lanes and blocks as they come.

    Interface attributes
    --------------------
    vocabulary, write_logits : see AttentionUnit.
    given : logits.
    screened : the best of a lane's candidates, while no job runs: as if it were the lane's only logit.
    logits : stream of beats (`logit_layout`).
    best_index, best_value : by lane, for the lanes of the job valid once `finished`, and every beat is taken.
    finished : pulse, the job's last logit is compared, and taken.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        config = sizes.config
        self.delay = 1 + exact_log2(config.keys_per_beat)
        """From logits to the largest of them: order, and a comparison a level."""
        self.end_delay = self.delay + 3
        """From the job's last logit to the best being final, and its beat queued."""
        super().__init__(
            {
                "vocabulary": In(32),
                "write_logits": In(1),
                "given": In(LogitPort(sizes)),
                "screened": In(ScreenedBest(config)),
                "logits": Out(stream.Signature(logit_layout(config))),
                "best_index": Out(data.ArrayLayout(32, config.lanes)),
                "best_value": Out(data.ArrayLayout(32, config.lanes)),
                "finished": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        chosen = self._choose(m)
        self._best(m, chosen, self._largest(m, chosen))
        credits = self._gather(m)
        ending = Signal()
        ended = delay_line(m, self.given.end, self.end_delay, "ended", reset_less=False)
        m.d.comb += self.finished.eq(ending & (credits == LOGIT_BEATS))
        with m.If(ended):
            m.d.sync += ending.eq(1)
        with m.If(self.finished):
            m.d.sync += ending.eq(0)
        return m

    def _choose(self, m: Module) -> _Chosen:
        """Logits of a job, or the best of a lane, with which all other rows of its beat are -infinity."""
        given, alone = self.given, self.screened
        keys = self.sizes.config.keys_per_beat
        low = exact_log2(keys)
        out = _Chosen(self.sizes)
        for k in range(keys):
            other = Mux(alone.row[:low] == k, alone.value, 0xFF800000) if keys > 1 else alone.value
            m.d.comb += out.values[k].eq(Mux(alone.valid, other, given.values[k]))
        m.d.comb += [
            out.row.eq(Mux(alone.valid, alone.row[low:], Cat(given.beat, given.block)) << low),
            out.lane.eq(Mux(alone.valid, alone.lane, given.lane)),
            out.valid.eq(given.valid | alone.valid),
            out.new.eq(given.new | alone.valid),
            out.fresh.eq((given.new & given.first) | alone.valid),
        ]
        return out

    def _largest(self, m: Module, chosen: _Chosen) -> Any:
        """The largest of the logits that come together, `delay` cycles behind them."""
        keys = self.sizes.config.keys_per_beat
        row = chosen.row
        vocabulary = Signal(32, reset_less=True)
        m.d.sync += vocabulary.eq(self.vocabulary)
        level: list[Signal] = []
        for k in range(keys):
            x = chosen.values[k]
            # Unsigned integers in the order of the values; both zeros are one. 0 is less than any value.
            order = Mux(x[:31] == 0, 1 << 31, Mux(x[31], ~x, x | (1 << 31)))[:32]
            entry = Signal(CANDIDATE, name=f"entry_{k}", reset_less=True)
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
                best = Signal(CANDIDATE, name=f"best_{delay}_{len(following)}", reset_less=True)
                m.d.sync += best.eq(Mux(b.order > a.order, b.as_value(), a.as_value()))
                following.append(best)
            level = following
            delay += 1
        assert delay == self.delay
        return level[0]

    def _best(self, m: Module, chosen: _Chosen, challenger: Any) -> None:
        """The best of each lane so far."""
        config, delay = self.sizes.config, self.delay
        valid = delay_line(m, chosen.valid, delay, "valid", reset_less=False)
        lane = delay_line(m, chosen.lane, delay, "lane")
        fresh = delay_line(m, chosen.fresh, delay, "fresh")
        # The lane's best so far is looked up a cycle ahead: the lane changes at most once in a tile.
        new = delay_line(m, chosen.new, delay, "new")
        ahead = delay_line(m, chosen.lane, delay - 1, "ahead")
        orders = Array(Signal(32, name=f"order_{i}", reset_less=True) for i in range(config.lanes))
        indices = Array(Signal(32, name=f"index_{i}", reset_less=True) for i in range(config.lanes))
        values = Array(Signal(32, name=f"value_{i}", reset_less=True) for i in range(config.lanes))
        stored = Signal(CANDIDATE, reset_less=True)
        running = Signal(CANDIDATE, reset_less=True)
        m.d.sync += Cat(stored.order, stored.index, stored.value).eq(Cat(orders[ahead], indices[ahead], values[ahead]))
        before = Signal(CANDIDATE)
        m.d.comb += before.eq(Mux(new, stored.as_value(), running.as_value()))
        with m.If(new & fresh):
            m.d.comb += before.eq(0)
        with m.If(valid):
            m.d.sync += running.eq(Mux(challenger.order > before.order, challenger.as_value(), before.as_value()))
        late_valid = delay_line(m, valid, 1, "late_valid", reset_less=False)
        late_lane = delay_line(m, lane, 1, "late_lane")
        for i in range(config.lanes):
            with m.If(late_valid & (late_lane == i)):
                m.d.sync += [orders[i].eq(running.order), indices[i].eq(running.index), values[i].eq(running.value)]
            m.d.comb += [self.best_index[i].eq(indices[i]), self.best_value[i].eq(values[i])]

    def _gather(self, m: Module) -> Signal:
        """Beats of logits, and a credit for each that may be begun. Returns the credits."""
        sizes = self.sizes
        config, keys = sizes.config, sizes.config.keys_per_beat
        per_beat = sizes.depth
        m.submodules.queue = queue = ShortQueue(logit_layout(config), LOGIT_BEATS)
        credits = Signal(range(LOGIT_BEATS + 1), init=LOGIT_BEATS)
        gathered = Signal(8 * config.beat_bytes, reset_less=True)
        entry = Signal(logit_layout(config))
        spent, taken = Signal(), Signal()
        position = self.given.beat[: exact_log2(per_beat)]
        with m.If(self.given.valid):
            m.d.sync += gathered.eq(Cat(gathered[32 * keys :], self.given.values.as_value()))
        full = self.given.valid & position.all() & self.write_logits
        m.d.comb += [
            entry.lane.eq(delay_line(m, self.given.lane, 1, "entry_lane")),
            entry.beat.eq(
                delay_line(m, Cat(self.given.beat, self.given.block)[exact_log2(per_beat) :], 1, "entry_beat")
            ),
            entry.data.eq(gathered),
            queue.payload.eq(entry),
            queue.write.eq(delay_line(m, full, 1, "full", reset_less=False)),
        ]
        wiring.connect(m, wiring.flipped(self.logits), queue.out)
        # Up to date three cycles behind a spending: the next is a beat of logits later.
        assert sizes.depth >= 4
        m.d.sync += [
            spent.eq(self.given.spend),
            taken.eq(queue.out.valid & queue.out.ready),
            credits.eq(credits - spent + taken),
            self.given.credit.eq(credits != 0),
        ]
        return credits


def logit_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A beat of logits: lane, beat within the lane's logits, word_elements binary32."""
    return data.StructLayout({"lane": clog2(config.lanes), "beat": 32, "data": 8 * config.beat_bytes})
