"""AXI4 masters among any memory that keeps to the protocol: the rules of IHI 0022 as claims, and that every byte goes where it should.

Nothing here depends on how long a design's bursts are. Sizes are scaled down: the claims are about what is counted, not about how far.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from unittest import mock

from amaranth import Array, Cat, Const, Module, Mux, Signal, Value

from tellme.golden.config import TINY, AcceleratorConfig
from tellme.hw.memory import reader, writer
from tellme.hw.memory.reader import StreamReader
from tellme.hw.memory.writer import BeatWriter
from tests.formal.prover import Bench, Monitor

BASE = 0x2000
FIRST = 252
"""Beats before the first address that is used: the eight from it on lie on both sides of a 4 KiB boundary."""
ADDRESSES = 8
WINDOW = FIRST + 6
"""The last two are outside."""
BEAT = 16


def scaled(**changes: int) -> AcceleratorConfig:
    """One port of 16 bytes, bursts of two beats, two of them in flight, a FIFO of four; smaller than any accelerator's."""
    config = replace(TINY, port_bytes=BEAT, ports=1)
    for name, value in ({"burst_beats": 2, "outstanding": 2, "fifo_beats": 4} | changes).items():
        object.__setattr__(config, name, value)
    return config


@contextmanager
def short_queues(entries: int = 2) -> Iterator[None]:
    """The masters' queues of bursts and writes, scaled down."""
    with ExitStack() as stack:
        if hasattr(reader, "burst_queue"):
            stack.enter_context(mock.patch.object(reader, "burst_queue", lambda config: entries))
        if hasattr(writer, "WRITE_QUEUE"):
            stack.enter_context(mock.patch.object(writer, "WRITE_QUEUE", entries))
        yield


def past(m: Module, value: object, width: int = 1) -> Signal:
    """The value of the cycle before."""
    signal = Signal(width)
    m.d.sync += signal.eq(value)
    return signal


class Bursts:
    """Bursts offered on an address channel that are not finished yet, oldest first: first beat (above FIRST) and length less one.

    `new`: a burst is offered for the first time in this cycle. `count`: those before it. `head`: of the oldest, this cycle's included.
    """

    def __init__(
        self,
        m: Module,
        monitor: Monitor,
        valid: Value,
        ready: Value,
        address: Value,
        length: Value,
        size: Value,
        burst: Value,
        what: str,
    ):
        self.m = m
        waited = past(m, valid & ~ready)
        self.new = Signal()
        m.d.comb += self.new.eq(valid & ~waited)
        beat = Signal(36)
        m.d.comb += beat.eq((address - BASE)[4:])
        first, last = Signal(4), Signal(8)
        m.d.comb += [first.eq(beat - FIRST), last.eq(length)]
        monitor.claim(f"{what} stays until it is taken", ~waited | valid)
        monitor.claim(
            f"{what} does not change while it waits",
            ~waited | ((address == past(m, address, len(address))) & (length == past(m, length, len(length)))),
        )
        monitor.claim(
            f"{what} is of whole beats, incrementing", ~valid | ((size == 4) & (burst == 1) & (address[:4] == 0))
        )
        monitor.claim(f"{what} stays in its 4 KiB", ~valid | (address[4:12] + length < 256))
        monitor.claim(
            f"{what} stays in the window", ~valid | ((beat >= FIRST) & (beat < WINDOW) & (beat + length < WINDOW))
        )
        self.entries = [
            (Signal(4, name=f"{what[:2]}_first_{i}"), Signal(8, name=f"{what[:2]}_last_{i}")) for i in range(4)
        ]
        self.count = Signal(3)
        self.pop = Signal()
        self.head_first, self.head_last, self.some = Signal(4), Signal(8), Signal()
        m.d.comb += [
            self.some.eq((self.count != 0) | self.new),
            self.head_first.eq(Mux(self.count != 0, self.entries[0][0], first)),
            self.head_last.eq(Mux(self.count != 0, self.entries[0][1], last)),
        ]
        with m.If(self.pop):
            for (a, b), (c, d) in zip(self.entries, self.entries[1:], strict=False):
                m.d.sync += [a.eq(c), b.eq(d)]
        for i, (a, b) in enumerate(self.entries):
            with m.If(self.new & (self.count - self.pop == i)):
                m.d.sync += [a.eq(first), b.eq(last)]
        m.d.sync += self.count.eq(self.count + self.new - self.pop)


def after_the_end(
    m: Module, monitor: Monitor, design: object, new: Value, busy: Value, stalled: Value, limit: int, what: str
) -> Value:
    """Claims of an error and of a soft reset; returns whether one has been."""
    clear: Signal = design.clear  # type: ignore[attr-defined]
    error: Signal = design.error  # type: ignore[attr-defined]
    quiet: Signal = design.quiet  # type: ignore[attr-defined]
    resetting = Signal()
    with m.If(quiet):
        m.d.sync += resetting.eq(0)
    with m.If(clear):
        m.d.sync += resetting.eq(1)
    failed = past(m, error, 8)
    monitor.claim(f"no {what} is begun after an error", ~((failed != 0) & new))
    monitor.claim(f"no {what} is begun in a soft reset", ~(resetting & new))
    monitor.claim("an error is kept until a soft reset", (failed == 0) | past(m, clear) | resetting | (error == failed))
    monitor.claim("quiet is when nothing is owed", ~quiet | ~busy)
    waited = Signal(6)
    with m.If(quiet | clear | ~resetting):
        m.d.sync += waited.eq(0)
    with m.Elif(~stalled):
        m.d.sync += waited.eq(waited + 1)
    monitor.claim("a soft reset ends when memory has answered", waited < limit)
    ended = Signal()
    with m.If(clear | (error != 0)):
        m.d.sync += ended.eq(1)
    return ended | clear | (error != 0)


class WriterBench(Bench):
    """Writes at any addresses, two strobes, any answers. The byte at one address, chosen at the start, is followed to memory."""

    def __init__(self, config: AcceleratorConfig | None = None, *, clears: bool = True, arbitrary: bool = False):
        super().__init__(arbitrary=arbitrary)
        self.config = config or scaled()
        self.clears = clears
        self.reached: dict[str, Value] = {}
        self.name = f"BeatWriter, bursts of {self.config.burst_beats}, {self.config.outstanding} outstanding" + (
            "" if clears else ", without soft resets"
        )

    def build(self, m: Module, monitor: Monitor) -> None:
        c = self.config
        with short_queues():
            m.submodules.writer = w = _elaborated(BeatWriter(c))
        axi = w.m_axi[0]
        offered, rel, bit, mine, others = (
            self.free(n, name) for name, n in (("valid", 1), ("address", 3), ("bit", 1), ("mine", 1), ("others", 1))
        )
        watched_in = self.free(3, "watched")
        started, watched = Signal(), Signal(3)
        m.d.sync += started.eq(1)
        with m.If(~started):
            m.d.sync += watched.eq(watched_in)
        follow = Signal(3)
        m.d.comb += follow.eq(Mux(started, watched, watched_in))
        payload = w.writes.payload
        # A writer that gathers writes to bursts is told when more may follow.
        more = self.free(1, "more") if hasattr(w, "more") else Const(0)
        if hasattr(w, "more"):
            m.d.comb += w.more.eq(more)
        m.d.comb += [
            w.base[0].eq(BASE), w.window_beats.eq(WINDOW), w.timeout.eq(0), w.clear.eq(self.free(1, "clear") if self.clears else 0),
            w.writes.valid.eq(offered), payload.address.eq(FIRST + rel), payload.data.eq(bit), payload.strobe.eq(Cat(mine, others.replicate(BEAT - 1))),
            *(getattr(axi, n).eq(self.free(1, n)) for n in ("awready", "wready", "bvalid")), axi.bresp.eq(self.free(2, "bresp")),
        ]  # fmt: skip

        bursts = Bursts(
            m, monitor, axi.awvalid, axi.awready, axi.awaddr, axi.awlen, axi.awsize, axi.awburst, "an address"
        )
        # Data, in the order of their addresses.
        step = Signal(8)
        w_taken = axi.wvalid & axi.wready
        m.d.comb += bursts.pop.eq(w_taken & axi.wlast)
        with m.If(w_taken):
            m.d.sync += step.eq(Mux(axi.wlast, 0, step + 1))
        waited = past(m, axi.wvalid & ~axi.wready)
        monitor.claim("data stay until they are taken", ~waited | axi.wvalid)
        same = (
            (axi.wdata[0] == past(m, axi.wdata[0]))
            & (axi.wstrb[:2] == past(m, axi.wstrb[:2], 2))
            & (axi.wlast == past(m, axi.wlast))
        )
        monitor.claim("data do not change while they wait", ~waited | same)
        monitor.claim("data follow an address", ~axi.wvalid | bursts.some)
        monitor.claim(
            "the last beat of a burst is marked, and no other", ~axi.wvalid | (axi.wlast == (step == bursts.head_last))
        )
        # Answers: to a burst whose address and data have been taken.
        addressed, finished = Signal(4), Signal(4)
        answer = axi.bvalid & axi.bready
        aw_taken = axi.awvalid & axi.awready
        m.d.sync += [addressed.eq(addressed + aw_taken - answer), finished.eq(finished + bursts.pop - answer)]
        owed = (addressed != 0) & (finished != 0)
        monitor.assume(~axi.bvalid | owed)
        inflight = Signal(4)
        m.d.sync += inflight.eq(inflight + bursts.new - answer)
        monitor.claim("no more bursts are in flight than allowed", inflight + bursts.new <= c.outstanding)
        monitor.claim("an answer is taken", ~axi.bvalid | axi.bready)
        stalled = (axi.awvalid & ~axi.awready) | (axi.wvalid & ~axi.wready) | (owed & ~axi.bvalid)
        busy = (inflight + bursts.new != 0) | axi.awvalid | axi.wvalid
        over = after_the_end(m, monitor, w, bursts.new, busy, stalled, 8 + 2 * c.burst_beats, "burst")
        monitor.claim("what is owed is told", (w.owed[0] == 0) | (inflight + bursts.new + past(m, answer) != 0))

        # The byte.
        beat = Signal(4)
        m.d.comb += beat.eq(bursts.head_first + step)
        given, given_bit, made, made_bit = Signal(), Signal(), Signal(), Signal()
        taken = w.writes.valid & w.writes.ready
        with m.If(taken & (rel == follow) & mine & (rel < WINDOW - FIRST)):
            m.d.sync += [given.eq(1), given_bit.eq(bit)]
        with m.If(w_taken & (beat == follow) & axi.wstrb[0]):
            m.d.sync += [made.eq(1), made_bit.eq(axi.wdata[0])]
        monitor.claim("no byte is written that nobody gave", ~(w_taken & axi.wstrb[0] & (beat == follow)) | given)
        monitor.claim(
            "once idle, memory holds what was given",
            over | ~w.idle | ((given == made) & (~given | (given_bit == made_bit))),
        )
        rest = Signal(6)
        with m.If(offered | more | over | w.idle):
            m.d.sync += rest.eq(0)
        with m.Elif(~stalled):
            m.d.sync += rest.eq(rest + 1)
        monitor.claim("it becomes idle when memory answers", rest < 20 + 4 * c.burst_beats)
        self.reached = {
            "a byte is written": w.idle & made,
            "a burst is answered with an error": (w.error >= 5) & (w.error <= 6),
            "a soft reset ends": w.quiet & past(m, ~w.quiet & over),
        }
        outside = Signal()
        with m.If(taken & (rel >= WINDOW - FIRST)):
            m.d.sync += outside.eq(1)
        answered_badly = Signal()
        with m.If(answer & axi.bresp[1]):
            m.d.sync += answered_badly.eq(1)
        if not self.clears:
            monitor.claim("an error has a cause", (w.error == 0) | outside | answered_badly)
            late = Signal(2)
            with m.If((outside | answered_badly) & (late != 3)):
                m.d.sync += late.eq(late + 1)
            monitor.claim("and a cause makes an error", (late != 3) | (w.error != 0))


class ReaderBench(Bench):
    """Segments at any addresses, any answers. One beat of any segment is followed from the segment to the stream."""

    def __init__(self, config: AcceleratorConfig | None = None, *, clears: bool = True, arbitrary: bool = False):
        super().__init__(arbitrary=arbitrary)
        self.config = config or scaled()
        self.clears = clears
        self.reached: dict[str, Value] = {}
        self.name = f"StreamReader, bursts of {self.config.burst_beats}, {self.config.outstanding} outstanding" + (
            "" if clears else ", without soft resets"
        )

    def build(self, m: Module, monitor: Monitor) -> None:
        c = self.config
        with short_queues():
            m.submodules.reader = r = _elaborated(StreamReader(c))
        axi = r.m_axi[0]
        offered, rel, beats = self.free(1, "valid"), self.free(3, "address"), self.free(3, "beats")
        m.d.comb += [
            r.base[0].eq(BASE), r.window_beats.eq(WINDOW), r.timeout.eq(0), r.clear.eq(self.free(1, "clear") if self.clears else 0),
            r.segments.valid.eq(offered), r.segments.payload.address.eq(FIRST + rel), r.segments.payload.beats.eq(beats),
            r.beats.ready.eq(self.free(1, "ready")), axi.arready.eq(self.free(1, "arready")), axi.rvalid.eq(self.free(1, "rvalid")),
            axi.rresp.eq(self.free(2, "rresp")),
        ]  # fmt: skip
        bursts = Bursts(
            m, monitor, axi.arvalid, axi.arready, axi.araddr, axi.arlen, axi.arsize, axi.arburst, "an address"
        )
        # Memory: beats of the bursts that it has taken, in order; a beat holds its own address.
        taken, step = Signal(3), Signal(8)
        ar = axi.arvalid & axi.arready
        r_taken = axi.rvalid & axi.rready
        m.d.comb += [
            axi.rlast.eq(step == bursts.head_last),
            axi.rdata.eq((bursts.head_first + step)[:3]),
            bursts.pop.eq(r_taken & axi.rlast),
        ]
        m.d.sync += taken.eq(taken + ar - bursts.pop)
        with m.If(r_taken):
            m.d.sync += step.eq(Mux(axi.rlast, 0, step + 1))
        monitor.assume(~axi.rvalid | (taken != 0))
        inflight = bursts.count + bursts.new
        monitor.claim("no more bursts are in flight than allowed", inflight <= c.outstanding)
        monitor.claim("whoever asks takes the answer", ~axi.rvalid | axi.rready)
        stalled = (axi.arvalid & ~axi.arready) | ((taken != 0) & ~axi.rvalid)
        over = after_the_end(m, monitor, r, bursts.new, inflight != 0, stalled, 8 + 2 * c.burst_beats, "burst")

        # One beat of a segment, and how many come before it.
        ahead_of = self.free(3, "which")
        follow = self.free(1, "follow")
        accepted = r.segments.valid & r.segments.ready & (beats != 0) & (rel + beats <= WINDOW - FIRST) & ~over
        given = r.beats.valid & r.beats.ready
        due, following, ahead, value = Signal(8), Signal(), Signal(8), Signal(3)
        m.d.sync += due.eq(due + Mux(accepted, beats, 0) - given)
        with m.If(following & given):
            m.d.sync += ahead.eq(ahead - 1)
            with m.If(ahead == 0):
                m.d.sync += following.eq(0)
        with m.If(accepted & follow & ~following & (ahead_of < beats)):
            m.d.sync += [following.eq(1), ahead.eq(due - given + ahead_of), value.eq(rel + ahead_of)]
        monitor.assume(due < 32)  # a consumer that stands still for ever is asked for no more
        monitor.claim("a beat comes only if it was asked for", over | ~r.beats.valid | (due != 0))
        monitor.claim(
            "beats come in order and as memory holds them",
            over | ~(following & given & (ahead == 0)) | (r.beats.payload[:3] == value),
        )
        waits = past(m, r.beats.valid & ~r.beats.ready)
        shown = past(m, r.beats.payload[:3], 3)
        monitor.claim("a beat that waits stays", over | ~waits | (r.beats.valid & (r.beats.payload[:3] == shown)))
        patience = Signal(6)
        with m.If((due == 0) | r.beats.valid | over):
            m.d.sync += patience.eq(0)
        with m.Elif(~stalled):
            m.d.sync += patience.eq(patience + 1)
        monitor.claim("what was asked for comes when memory answers", patience < 16 + 2 * c.burst_beats)
        self.reached = {
            "a followed beat comes": following & given & (ahead == 0),
            "a burst is answered with an error": (r.error >= 3) & (r.error <= 4),
            "a soft reset ends": r.quiet & past(m, ~r.quiet & over),
        }
        outside, answered_badly = Signal(), Signal()
        with m.If(r.segments.valid & r.segments.ready & (beats != 0) & (rel + beats > WINDOW - FIRST)):
            m.d.sync += outside.eq(1)
        with m.If(r_taken & axi.rresp[1]):
            m.d.sync += answered_badly.eq(1)
        if not self.clears:
            monitor.claim("an error has a cause", (r.error == 0) | outside | answered_badly)
            late = Signal(3)
            with m.If(answered_badly & (late != 7)):
                m.d.sync += late.eq(late + 1)
            monitor.claim("and a bad answer makes an error", (late < 3) | (r.error != 0))


def _elaborated(component: BeatWriter | StreamReader) -> BeatWriter | StreamReader:
    """A component whose parts are made now, while the queues are scaled down."""
    made = component.elaborate(None)
    component.elaborate = lambda platform: made  # type: ignore[method-assign]
    for name in list(made._named_submodules):  # parts that look at the sizes when they are elaborated
        part = made._named_submodules[name]
        if hasattr(part, "_config"):
            inner = part.elaborate(None)
            part.elaborate = lambda platform, inner=inner: inner
    return component


__all__ = ["ADDRESSES", "Array", "Const", "ReaderBench", "WriterBench", "scaled"]
