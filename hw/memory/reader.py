"""The stream reader: segments of the beat address space in, beats out, one each cycle, ahead of compute."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from tellme.golden.boards import PHASE_PERIOD
from tellme.golden.config import AcceleratorConfig
from tellme.golden.registers import ErrorCode
from tellme.hw.memory.axi import (
    ADDRESS_WIDTH,
    BURST_INCR,
    CACHE_MODIFIABLE_BUFFERABLE,
    PROT_DATA,
    RESPONSE_DECERR,
    AxiRead,
    aligned,
)
from tellme.hw.queues import DeepFifo, Queue, RegisterSlice

SEGMENT = data.StructLayout({"address": 32, "beats": 32})
"""A run of beats: first beat address, number of beats."""


LEAD = 2
"""Bursts that a port may be ahead of the slowest one, but for what is under way: so regions keep the phases that they were placed
at. One that runs further ahead passes through the banks of the others (docs/decisions.md, "Ports in step")."""


def burst_queue(config: AcceleratorConfig) -> int:
    """Bursts that wait at each port, as long as ports run freely (`free`): half a period of the banks if a burst is long, else as
    many as the smallest distributed RAM serves."""
    return 32 if config.burst_beats * config.port_bytes >= PHASE_PERIOD // 64 else 16


def first_error(m: Module, items: list[tuple[Signal, int | Signal, Signal]], code: Signal, address: Signal) -> None:
    """Loads the sticky `code` and `address` from the first (condition, code, address) that holds, unless one is set."""
    with m.If(code == ErrorCode.NONE):
        for n, (condition, value, where) in enumerate(items):
            with m.If(condition) if n == 0 else m.Elif(condition):
                m.d.sync += [code.eq(value), address.eq(where)]


def response_error(slverr: ErrorCode, decerr: ErrorCode, response: Signal) -> Mux:
    """ErrorCode of an AXI response that has bit 1 set."""
    return Mux(response == RESPONSE_DECERR, decerr, slverr)


class _PortReader(wiring.Component):
    """One port: bursts in, words out. For StreamReader, which describes the times.

    Interface attributes
    --------------------
    bursts : stream {beat address, beats - 1}.
    base : byte address of the port's region.
    stop : no burst is issued any more. `drain` : soft reset: bursts and words are dropped.
    free : bursts are taken as far as the queue goes, not `LEAD`. `waiting` : bursts wait.
    words : stream of the port's parts of beats. `level` : how many wait.
    owed, flying : memory owes words; bursts that it owes.
    arrived : a word came, a cycle ago.
    oldest : beat address of the oldest burst that is owed.
    bad, bad_code, bad_address : an error response, its ErrorCode, the beat address.
    m_axi : read channels.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        self._low = exact_log2(config.burst_beats)
        super().__init__(
            {
                "bursts": In(stream.Signature(data.StructLayout({"address": 32, "last": self._low}))),
                "base": In(64),
                "stop": In(1),
                "drain": In(1),
                "free": In(1),
                "waiting": Out(1),
                "words": Out(stream.Signature(config.port_bytes * 8)),
                "level": Out(bits_for(config.fifo_beats)),
                "owed": Out(1),
                "flying": Out(16),
                "arrived": Out(1),
                "oldest": Out(32),
                "bad": Out(1),
                "bad_code": Out(8),
                "bad_address": Out(32),
                "m_axi": Out(AxiRead(data_bytes=config.port_bytes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        cfg = self._config
        m = Module()
        axi = self.m_axi
        byte_bits = exact_log2(cfg.port_bytes)
        align = byte_bits + self._low

        m.submodules.queue = queue = Queue(width=len(self.bursts.payload.as_value()), depth=burst_queue(cfg))
        m.submodules.fifo = fifo = DeepFifo(width=cfg.port_bytes * 8, depth=cfg.fifo_beats)
        burst = data.View(self.bursts.payload.shape(), queue.o.payload)
        # Alone, a port has nobody to be ahead of.
        close = Const(1) if cfg.ports == 1 else self.free | (queue.level < LEAD)
        m.d.comb += [
            queue.i.valid.eq(self.bursts.valid),
            queue.i.payload.eq(self.bursts.payload),
            self.bursts.ready.eq(queue.i.ready & close),
            queue.clear.eq(self.drain),
            self.waiting.eq(queue.level != 0),
            fifo.clear.eq(self.drain),
            self.words.valid.eq(fifo.o.valid),
            self.words.payload.eq(fifo.o.payload),
            fifo.o.ready.eq(self.words.ready),
            self.level.eq(fifo.level),
        ]

        # Issue: only with room for the whole burst set aside, so that `rready` never has to fall.
        room = Signal(range(cfg.fifo_beats + 1), init=cfg.fifo_beats)
        flying = Signal(range(cfg.outstanding + 1))
        issue, retire = Signal(), Signal()
        m.d.comb += [
            issue.eq(
                queue.o.valid
                & (~axi.arvalid | axi.arready)
                & (room[self._low :] != 0)
                & ~flying[-1]
                & ~self.stop
                & ~self.drain
            ),
            queue.o.ready.eq(issue),
            self.owed.eq(flying != 0),
            self.flying.eq(flying),
        ]
        length = Signal(range(cfg.burst_beats))
        m.d.comb += length.eq(burst.last)
        spent = Cat(~length, Const(-1, len(room) - len(length)))
        with m.If(axi.arready):
            m.d.sync += axi.arvalid.eq(0)
        with m.If(issue):
            m.d.sync += [
                axi.arvalid.eq(1),
                axi.arlen.eq(length),
                # The base is a multiple of the longest burst, so that the low bits need no adder.
                axi.araddr.eq(
                    Cat(
                        Const(0, byte_bits),
                        burst.address[: self._low],
                        (aligned(self.base)[align:] + burst.address[self._low :])[: ADDRESS_WIDTH - align],
                    )
                ),
            ]
        m.d.comb += [
            axi.arid.eq(0),
            axi.arsize.eq(byte_bits),
            axi.arburst.eq(BURST_INCR),
            axi.arcache.eq(CACHE_MODIFIABLE_BUFFERABLE),
            axi.arprot.eq(PROT_DATA),
            axi.rready.eq(1),
        ]
        taken = Signal()
        m.d.sync += [
            taken.eq(fifo.taken),
            flying.eq(flying + issue - retire),
            # room + taken - (length + 1) when a burst is issued, in one adder: -(x + 1) is ~x, and `taken` its carry.
            room.eq((Cat(1, room) + Cat(taken, spent & issue.replicate(len(room))))[1:]),
        ]
        with m.If(self.drain):
            m.d.sync += [taken.eq(0), room.eq(cfg.fifo_beats)]

        # Addresses of the bursts in flight, for error_address. One master ID: responses come in order.
        m.submodules.addresses = addresses = memory.Memory(shape=32, depth=cfg.outstanding, init=[])
        write, read = addresses.write_port(), addresses.read_port(domain="comb")
        issued, retired = Signal(range(cfg.outstanding)), Signal(range(cfg.outstanding))
        m.d.comb += [
            write.addr.eq(issued),
            write.data.eq(burst.address),
            write.en.eq(issue),
            read.addr.eq(retired),
            self.oldest.eq(read.data),
        ]
        m.d.sync += [issued.eq(issued + issue), retired.eq(retired + retire)]

        # Data: a register, then the FIFO.
        r_valid, r_last = Signal(), Signal()
        r_response = Signal(2)
        r_data = Signal(cfg.port_bytes * 8, reset_less=True)
        index = Signal(8)
        m.d.sync += [
            r_valid.eq(axi.rvalid & axi.rready),
            r_last.eq(axi.rlast),
            r_response.eq(axi.rresp),
            r_data.eq(axi.rdata),
        ]
        m.d.comb += [
            retire.eq(r_valid & r_last),
            fifo.w_en.eq(r_valid),
            fifo.w_data.eq(r_data),
            self.arrived.eq(r_valid),
        ]
        with m.If(r_valid):
            m.d.sync += index.eq(Mux(r_last, 0, index + 1))
        m.d.sync += [
            self.bad.eq(r_valid & r_response[1]),
            self.bad_code.eq(response_error(ErrorCode.READ_SLVERR, ErrorCode.READ_DECERR, r_response)),
            self.bad_address.eq(self.oldest + index),
        ]
        with m.If(self.drain):
            m.d.sync += self.bad.eq(0)
        return m


class StreamReader(wiring.Component):
    """Reads segments of the beat address space through all ports and gives their beats in order, one each cycle.

    Segments are cut into bursts of at most `burst_beats` at multiples of `burst_beats`, so that no burst crosses a
    4 KiB boundary. Segments that follow one another in memory are cut as one, if the next has come by the time that it is
    needed: a burst is held back only while every port has others to send. Each port issues its own bursts, at most `outstanding`
    in flight and never more than its FIFO has room for, and so runs ahead of the consumer by up to `fifo_beats`, but of a slow
    port by no more than `LEAD` bursts, unless `free`. A beat leaves when every port has its part.

    From a segment's acceptance to `arvalid`: 6 cycles; from an R beat to `beats.valid`: 5 cycles; a burst each cycle.

    Parameters
    ----------
    config : AcceleratorConfig; ports, port_bytes, burst_beats, outstanding, fifo_beats.

    Interface attributes
    --------------------
    segments : stream {address, beats}; a segment of 0 beats is dropped. After an error segments are taken and dropped.
    beats : stream of 8B bits; byte j of a beat comes from port j // port_bytes.
    base : byte address of each port's region, a multiple of 4096; lower bits and those above 40 bits count as 0.
    window_beats : a segment that ends behind it is an error, and none of it is read.
    timeout : cycles in which responses are owed and none arrives, after which TIMEOUT is raised; 0: never.
    free : ports run ahead of one another by what `burst_queue` holds: for measurements.
    clear : soft reset (a pulse or longer): segments and beats are dropped, errors cleared, what AXI owes is awaited.
    error, error_address : ErrorCode, and the beat address; kept until `clear`. No burst is issued after an error.
    quiet : AXI owes nothing and no soft reset is going on.
    owed : bursts that AXI owes each port.
    port_beat, port_stall : of each port, for counters: a beat came; a burst is owed and no beat came. A cycle late.
    level : beats in the emptiest port's FIFO, two cycles ago.
    m_axi : read channels of the ports.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "segments": In(stream.Signature(SEGMENT)),
                "beats": Out(stream.Signature(config.beat_bytes * 8)),
                "base": In(data.ArrayLayout(64, config.ports)),
                "window_beats": In(32),
                "timeout": In(32),
                "free": In(1),
                "clear": In(1),
                "error": Out(8),
                "error_address": Out(32),
                "quiet": Out(1),
                "owed": Out(data.ArrayLayout(16, config.ports)),
                "port_beat": Out(config.ports),
                "port_stall": Out(config.ports),
                "level": Out(bits_for(config.fifo_beats)),
                "m_axi": Out(AxiRead(data_bytes=config.port_bytes)).array(config.ports),
            }
        )

    def elaborate(self, platform: object) -> Module:
        cfg = self._config
        m = Module()
        ports = [_PortReader(cfg) for _ in range(cfg.ports)]
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

        self._split(m, ports, drain, stop)

        # A beat leaves when all ports have theirs.
        m.submodules.slice = out = RegisterSlice(width=cfg.beat_bytes * 8)
        whole = Cat(p.words.valid for p in ports).all()
        m.d.comb += [
            out.i.valid.eq(whole),
            out.i.payload.eq(Cat(p.words.payload for p in ports)),
            out.clear.eq(drain),
        ]
        wiring.connect(m, out.o, wiring.flipped(self.beats))
        for i, p in enumerate(ports):
            m.d.comb += [
                p.words.ready.eq(whole & out.i.ready),
                p.base.eq(self.base[i]),
                self.owed[i].eq(p.flying),
                self.port_beat[i].eq(p.arrived),
                self.port_stall[i].eq(p.owed & ~p.arrived),
                p.stop.eq(stop),
                p.drain.eq(drain),
                p.free.eq(self.free),
            ]

        # Level: a registered minimum by pairs, for counters and analysis.
        levels = [p.level for p in ports]
        while len(levels) > 1:
            pairs = []
            for a, b in zip(levels[::2], levels[1::2], strict=True):
                low = Signal(len(a))
                m.d.sync += low.eq(Mux(a < b, a, b))
                pairs.append(low)
            levels = pairs
        m.d.comb += self.level.eq(levels[0])

        waited = Signal(32)
        expired = Signal()
        oldest = Signal(32)
        m.d.sync += [waited.eq(waited + 1), expired.eq(owed & (self.timeout != 0) & (waited == self.timeout))]
        with m.If(~owed | Cat(p.arrived for p in ports).any()):
            m.d.sync += waited.eq(0)
        for n, p in enumerate(ports):
            with m.If(p.owed) if n == 0 else m.Elif(p.owed):
                m.d.sync += oldest.eq(p.oldest)

        first_error(
            m,
            [(p.bad, p.bad_code, p.bad_address) for p in ports]
            + [
                (self._outside, ErrorCode.READ_WINDOW, self._outside_address),
                (expired, ErrorCode.TIMEOUT, oldest),
            ],
            self.error,
            self.error_address,
        )
        with m.If(drain):
            m.d.sync += [self.error.eq(ErrorCode.NONE), waited.eq(0), expired.eq(0)]
        return m

    def _split(self, m: Module, ports: list[_PortReader], drain: Signal, stop: Signal) -> None:
        """Window check and burst splitter, one for all ports: their bases share the alignment of a burst."""
        cfg = self._config
        low = exact_log2(cfg.burst_beats)
        advance, taken = Signal(), Signal()

        # Stage 0: where the segment ends. Stage 1: is that inside, and does it begin where the one before it ends. Stage 2: how
        # many bursts.
        valid0, valid1, valid2 = Signal(), Signal(), Signal()
        address0, address1 = Signal(32), Signal(32)
        end0, tail = Signal(33), Signal(33)
        last1 = Signal(33)
        some0, inside1 = Signal(), Signal()
        goes_on1, goes_on2 = Signal(), Signal()
        block2 = Signal(32 - low)
        blocks2 = Signal(32 - low)
        low2, last2 = Signal(low), Signal(low)
        segment = self.segments
        m.d.comb += [
            advance.eq(~valid2 | taken),
            segment.ready.eq((advance | stop) & ~drain),
        ]
        self._outside = Signal()
        self._outside_address = address1
        m.d.comb += self._outside.eq(valid1 & ~inside1)
        with m.If(advance):
            m.d.sync += [
                valid0.eq(segment.valid & segment.ready & ~stop),
                address0.eq(segment.payload.address),
                end0.eq(segment.payload.address + segment.payload.beats),
                some0.eq(segment.payload.beats != 0),
                valid1.eq(valid0 & some0),
                address1.eq(address0),
                last1.eq(end0 - 1),
                inside1.eq(end0 <= self.window_beats),
                goes_on1.eq(address0 == tail),
                valid2.eq(valid1 & inside1),
                block2.eq(address1[low:]),
                blocks2.eq(last1[low:32] - address1[low:]),
                low2.eq(address1[:low]),
                last2.eq(last1[:low]),
                goes_on2.eq(goes_on1),
            ]
            with m.If(valid0 & some0):
                m.d.sync += tail.eq(end0)

        # Stage 3: the segment being cut; stage 4: a burst on its way to the ports' queues. A segment that ends inside a block
        # takes in the next one if that goes on there, and waits for it as long as every port has other bursts to send.
        valid3, valid4, free4, final = Signal(), Signal(), Signal(), Signal()
        block3, blocks3 = Signal(32 - low), Signal(32 - low)
        low3, last3 = Signal(low), Signal(low)
        address4, length4 = Signal(32), Signal(low)
        inner, join, leave, ahead = Signal(), Signal(), Signal(), Signal()
        ready = Cat(p.bursts.ready for p in ports).all()
        m.d.sync += ahead.eq(Cat(p.waiting for p in ports).all())
        m.d.comb += [
            free4.eq(~valid4 | ready),
            final.eq(blocks3 == 0),
            inner.eq(final & ~last3.all()),
            join.eq(valid3 & inner & valid2 & goes_on2),
            leave.eq(valid3 & free4 & ~join & ~(inner & ~valid2 & ahead)),
            taken.eq(valid2 & (~valid3 | join | (final & free4))),
        ]
        with m.If(free4):
            m.d.sync += [
                valid4.eq(leave),
                address4.eq(Cat(low3, block3)),
                length4.eq(Mux(final, last3, (1 << low) - 1) - low3),
            ]
        with m.If(leave):
            m.d.sync += [block3.eq(block3 + 1), blocks3.eq(blocks3 - 1), low3.eq(0)]
            with m.If(final):
                m.d.sync += valid3.eq(0)
        with m.If(taken):
            m.d.sync += [valid3.eq(1), blocks3.eq(blocks2), last3.eq(last2)]
            with m.If(~join):
                m.d.sync += [block3.eq(block2), low3.eq(low2)]
        for p in ports:
            m.d.comb += [
                p.bursts.valid.eq(valid4 & ready),
                p.bursts.payload.address.eq(address4),
                p.bursts.payload.last.eq(length4),
            ]
        with m.If(drain):
            m.d.sync += [v.eq(0) for v in (valid0, valid1, valid2, valid3, valid4)]
