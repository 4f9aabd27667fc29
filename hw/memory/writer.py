"""The beat writer: beats or parts of beats into memory, each port writing its part."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import ErrorCode
from tellme.hw.memory.axi import (
    BURST_INCR,
    CACHE_MODIFIABLE_BUFFERABLE,
    PROT_DATA,
    AxiWrite,
    aligned,
)
from tellme.hw.memory.reader import first_error, response_error
from tellme.hw.pipeline import register
from tellme.hw.queues import Queue

LONGEST = 32
"""Beats of a write burst at most: what one row of distributed RAM holds of a port's data (RAM32M16)."""
WRITE_QUEUE = 16
"""Bursts that wait at each port, and words at least."""


def write_layout(config: AcceleratorConfig) -> data.StructLayout:
    """A write: beat address, the beat's bytes, and which of them to write."""
    return data.StructLayout({"address": 32, "data": config.beat_bytes * 8, "strobe": config.beat_bytes})


class _PortWriter(wiring.Component):
    """One port: writes of a word in, AXI4 bursts out. For BeatWriter, which describes the times.

    Interface attributes
    --------------------
    words : stream {beat address, the port's part of the beat, strobe}.
    more : further writes may come soon: an open burst waits for them.
    base : byte address of the port's region.
    stop : no write is issued any more. `drain` : soft reset: writes are dropped.
    waiting : writes wait. `owed`, `flying` : memory owes responses; how many.
    answered : a response came, a cycle ago.
    oldest : beat address of the oldest write that is owed a response.
    bad, bad_code, bad_address : an error response, its ErrorCode, the beat address.
    m_axi : write channels.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._longest = min(config.burst_beats, LONGEST)
        self._low = exact_log2(self._longest)
        super().__init__(
            {
                "words": In(
                    stream.Signature(
                        data.StructLayout({"address": 32, "data": config.port_bytes * 8, "strobe": config.port_bytes})
                    )
                ),
                "more": In(1),
                "base": In(64),
                "stop": In(1),
                "drain": In(1),
                "waiting": Out(1),
                "owed": Out(1),
                "flying": Out(16),
                "answered": Out(1),
                "oldest": Out(32),
                "bad": Out(1),
                "bad_code": Out(8),
                "bad_address": Out(32),
                "m_axi": Out(AxiWrite(data_bytes=config.port_bytes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        cfg = self._config
        m = Module()
        axi = self.m_axi
        byte_bits = exact_log2(cfg.port_bytes)

        # Words wait until the burst that they are in is whole, as its length goes ahead of them.
        content = data.StructLayout({"data": cfg.port_bytes * 8, "strobe": cfg.port_bytes})
        burst_layout = data.StructLayout({"address": 32, "last": self._low})
        m.submodules.queue = queue = Queue(width=content.size, depth=max(WRITE_QUEUE, self._longest))
        m.submodules.bursts = bursts = Queue(width=burst_layout.size, depth=WRITE_QUEUE)
        word = data.View(content, queue.o.payload)
        burst = data.View(burst_layout, bursts.o.payload)
        begun = Signal(burst_layout)  # the burst that words still may join
        following = Signal(32)  # address behind it
        is_open, whole, joins, take, close = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            self.words.ready.eq(queue.i.ready & bursts.i.ready),
            take.eq(self.words.valid & self.words.ready),
            queue.i.valid.eq(take),
            queue.i.payload.eq(Cat(self.words.payload.data, self.words.payload.strobe)),
            whole.eq(following[: self._low] == 0),
            joins.eq(is_open & ~whole & (self.words.payload.address == following)),
            close.eq(is_open & bursts.i.ready & ((take & ~joins) | (~take & (whole | ~self.more)))),
            bursts.i.valid.eq(close),
            bursts.i.payload.eq(begun),
            queue.clear.eq(self.drain),
            bursts.clear.eq(self.drain),
            self.waiting.eq(queue.level != 0),
        ]
        with m.If(close):
            m.d.sync += is_open.eq(0)
        with m.If(take):
            m.d.sync += [
                is_open.eq(1),
                following.eq(self.words.payload.address + 1),
                begun.last.eq(Mux(joins, begun.last + 1, 0)),
            ]
            with m.If(~joins):
                m.d.sync += begun.address.eq(self.words.payload.address)
        with m.If(self.drain):
            m.d.sync += is_open.eq(0)

        # A burst that has begun is completed whatever happens, because AXI has no way back: in a soft reset without strobes.
        flying = Signal(range(cfg.outstanding + 1))
        sending = Signal()
        left = Signal(self._low)
        issue, move, retire = Signal(), Signal(), Signal()
        m.d.comb += [
            move.eq(sending & (~axi.wvalid | axi.wready)),
            issue.eq(
                bursts.o.valid
                & (~axi.awvalid | axi.awready)
                & (~sending | (move & (left == 0)))
                & ~flying[-1]
                & ~self.stop
                & ~self.drain
            ),
            bursts.o.ready.eq(issue),
            queue.o.ready.eq(move),
            self.owed.eq(flying != 0),
            self.flying.eq(flying),
        ]
        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(axi.wready):
            m.d.sync += axi.wvalid.eq(0)
        with m.If(move):
            m.d.sync += [
                axi.wvalid.eq(1),
                axi.wdata.eq(word.data),
                axi.wstrb.eq(word.strobe & (~self.drain).replicate(cfg.port_bytes)),
                axi.wlast.eq(left == 0),
                left.eq(left - 1),
                sending.eq(left != 0),
            ]
        with m.If(issue):
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.awaddr.eq(Cat(Const(0, byte_bits), aligned(self.base)[byte_bits:] + burst.address)),
                axi.awlen.eq(burst.last),
                sending.eq(1),
                left.eq(burst.last),
            ]
        m.d.comb += [
            axi.awid.eq(0),
            axi.awsize.eq(byte_bits),
            axi.awburst.eq(BURST_INCR),
            axi.awcache.eq(CACHE_MODIFIABLE_BUFFERABLE),
            axi.awprot.eq(PROT_DATA),
            axi.bready.eq(1),
        ]

        m.submodules.addresses = addresses = memory.Memory(shape=32, depth=cfg.outstanding, init=[])
        write, read = addresses.write_port(), addresses.read_port(domain="comb")
        issued, retired = Signal(range(cfg.outstanding)), Signal(range(cfg.outstanding))
        response = Signal(2)
        m.d.comb += [
            write.addr.eq(issued),
            write.data.eq(burst.address),
            write.en.eq(issue),
            read.addr.eq(retired),
            self.oldest.eq(read.data),
            self.answered.eq(retire),
        ]
        m.d.sync += [
            retire.eq(axi.bvalid & axi.bready),
            response.eq(axi.bresp),
            flying.eq(flying + issue - retire),
            issued.eq(issued + issue),
            retired.eq(retired + retire),
            self.bad.eq(retire & response[1] & ~self.drain),
            self.bad_code.eq(response_error(ErrorCode.WRITE_SLVERR, ErrorCode.WRITE_DECERR, response)),
            self.bad_address.eq(self.oldest),
        ]
        return m


class BeatWriter(wiring.Component):
    """Writes beats, or the strobed parts of beats, through the ports that have a part.

    Writes of a port are made in order. Those that follow one another in memory are one burst, of at most `burst_beats` and
    `LONGEST` beats, cut at multiples of that (so inside 4 KiB); `outstanding` bursts at a time. A burst waits for what
    follows it as long as `more` is set or a write is offered. From the acceptance of the write that closes a burst, or of the
    last one, to `awvalid`: 5 cycles, one more to `wvalid`; a write each cycle when memory takes them.

    Parameters
    ----------
    config : AcceleratorConfig; ports, port_bytes, burst_beats, outstanding.

    Interface attributes
    --------------------
    writes : stream {address, data, strobe}. After an error writes are taken and dropped.
    more : whoever writes is at it, and more writes may follow; `idle` comes only without.
    base : byte address of each port's region, a multiple of 4096; lower bits and those above 40 bits count as 0.
    window_beats : a write at or behind it is an error and not made.
    timeout : cycles in which responses are owed and none arrives, after which TIMEOUT is raised; 0: never.
    clear : soft reset (a pulse or longer): waiting writes are dropped, errors cleared, what AXI owes is awaited.
    error, error_address : ErrorCode, and the beat address (of a bad response, of the burst's first beat); kept until `clear`.
        No burst is issued after an error.
    idle : nothing was offered, nothing waited, and every response had come, a cycle ago.
    quiet : AXI owes nothing and no soft reset is going on.
    owed : responses that AXI owes each port.
    writes_count : a write was taken (and not dropped) in the cycle before.
    m_axi : write channels of the ports.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "writes": In(stream.Signature(write_layout(config))),
                "more": In(1),
                "base": In(data.ArrayLayout(64, config.ports)),
                "window_beats": In(32),
                "timeout": In(32),
                "clear": In(1),
                "error": Out(8),
                "error_address": Out(32),
                "idle": Out(1),
                "quiet": Out(1),
                "owed": Out(data.ArrayLayout(16, config.ports)),
                "writes_count": Out(1),
                "m_axi": Out(AxiWrite(data_bytes=config.port_bytes)).array(config.ports),
            }
        )

    def elaborate(self, platform: object) -> Module:
        cfg = self._config
        m = Module()
        ports = [_PortWriter(cfg) for _ in range(cfg.ports)]
        for i, p in enumerate(ports):
            m.submodules[f"port{i}"] = p
            wiring.connect(m, wiring.flipped(self.m_axi[i]), p.m_axi)

        draining, drain, stop = Signal(), Signal(), Signal()
        owed = Cat(p.owed for p in ports).any()
        m.d.comb += [
            drain.eq(self.clear | draining),
            stop.eq(self.error != ErrorCode.NONE),
            self.quiet.eq(~drain & ~owed),
        ]
        with m.If(drain):
            m.d.sync += draining.eq(self.clear | owed)

        # A register of the write with its window check, then every concerned port's queue at once.
        valid, inside, advance = Signal(), Signal(), Signal()
        address = Signal(32, reset_less=True)
        content = Signal(cfg.beat_bytes * 8, reset_less=True)
        strobe = Signal(cfg.beat_bytes, reset_less=True)
        ready = Cat(p.words.ready for p in ports).all()
        m.d.comb += [
            advance.eq(~valid | ready | ~inside | stop),
            self.writes.ready.eq(advance & ~drain),
            self.writes_count.eq(valid & inside & ready & ~stop),
        ]
        m.d.sync += self.idle.eq(~self.writes.valid & ~valid & ~Cat(p.waiting for p in ports).any() & self.quiet)
        with m.If(advance):
            m.d.sync += [
                valid.eq(self.writes.valid & ~drain & ~stop),
                inside.eq(self.writes.payload.address < self.window_beats),
                address.eq(self.writes.payload.address),
                content.eq(self.writes.payload.data),
                strobe.eq(self.writes.payload.strobe),
            ]
        more = register(m, self.more, "more")
        for i, p in enumerate(ports):
            part = strobe.word_select(i, cfg.port_bytes)
            m.d.comb += [
                p.words.valid.eq(valid & inside & ready & ~stop & part.any()),
                p.words.payload.address.eq(address),
                p.words.payload.data.eq(content.word_select(i, cfg.port_bytes * 8)),
                p.words.payload.strobe.eq(part),
                p.more.eq(more | self.writes.valid | valid),
                p.base.eq(self.base[i]),
                self.owed[i].eq(p.flying),
                p.stop.eq(stop),
                p.drain.eq(drain),
            ]

        waited = Signal(32)
        expired = Signal()
        oldest = Signal(32)
        m.d.sync += [waited.eq(waited + 1), expired.eq(owed & (self.timeout != 0) & (waited == self.timeout))]
        with m.If(~owed | Cat(p.answered for p in ports).any()):
            m.d.sync += waited.eq(0)
        for n, p in enumerate(ports):
            with m.If(p.owed) if n == 0 else m.Elif(p.owed):
                m.d.sync += oldest.eq(p.oldest)

        first_error(
            m,
            [(p.bad, p.bad_code, p.bad_address) for p in ports]
            + [
                (valid & ~inside, ErrorCode.WRITE_WINDOW, address),
                (expired, ErrorCode.TIMEOUT, oldest),
            ],
            self.error,
            self.error_address,
        )
        with m.If(drain):
            m.d.sync += [self.error.eq(ErrorCode.NONE), waited.eq(0), expired.eq(0), valid.eq(0)]
        return m
