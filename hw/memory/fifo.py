"""Queues of the memory side: a small one in distributed RAM, and the deep stream FIFO in UltraRAM or block RAM."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from tellme.hw.primitives import deep_ram

COLUMN_BITS = 64
"""Data bits of a RAM column: a URAM288 or a BRAM36 in simple dual-port mode is 72 wide, 8 of them parity."""

ULTRA_DEPTH = 2048
"""From this depth on the deep FIFO asks for UltraRAM (4096 words each) where there is any, below it the tool chooses."""


class Queue(wiring.Component):
    """First-in first-out queue in distributed RAM (one write port, combinational read).

    An entry written in cycle t can be read in cycle t+1; an entry each cycle in and out.

    Parameters
    ----------
    width : bits of an entry.
    depth : entries, a power of two of at least 2.

    Interface attributes
    --------------------
    i, o : streams of `width` bits. `o.payload` is meaningful while `o.valid`.
    clear : empties the queue; wins over both streams.
    level : entries held.
    """

    def __init__(self, *, width: int, depth: int) -> None:
        if width < 1:
            raise ValueError(f"width must be at least 1, not {width!r}")
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least 2, not {depth!r}")
        self._width = width
        self._depth = depth
        super().__init__(
            {
                "i": In(stream.Signature(width)),
                "o": Out(stream.Signature(width)),
                "clear": In(1),
                "level": Out(bits_for(depth)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ram = ram = memory.Memory(shape=self._width, depth=self._depth, init=[])
        write, read = ram.write_port(), ram.read_port(domain="comb")
        head = Signal(range(self._depth))
        tail = Signal(range(self._depth))
        push, pop = Signal(), Signal()
        m.d.comb += [
            self.i.ready.eq(~self.level[-1]),
            self.o.valid.eq(self.level != 0),
            push.eq(self.i.valid & self.i.ready),
            pop.eq(self.o.valid & self.o.ready),
            write.addr.eq(tail),
            write.data.eq(self.i.payload),
            write.en.eq(push),
            read.addr.eq(head),
            self.o.payload.eq(read.data),
        ]
        m.d.sync += [head.eq(head + pop), tail.eq(tail + push), self.level.eq(self.level + push - pop)]
        with m.If(self.clear):
            m.d.sync += [head.eq(0), tail.eq(0), self.level.eq(0)]
        return m


class RegisterSlice(wiring.Component):
    """Registers in a stream's valid, payload and ready, so that no path goes through; an entry a cycle, one cycle late.

    Parameters
    ----------
    width : bits of an entry. Two are held.

    Interface attributes
    --------------------
    i, o : streams of `width` bits.
    clear : drops what is held; wins over both streams.
    """

    def __init__(self, *, width: int) -> None:
        self._width = width
        super().__init__(
            {"i": In(stream.Signature(width)), "o": Out(stream.Signature(width)), "clear": In(1)},
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spare = Signal(self._width, reset_less=True)
        out = Signal(self._width, reset_less=True)
        valid, full = Signal(), Signal()
        free = Signal()
        m.d.comb += [
            free.eq(~valid | self.o.ready),
            self.i.ready.eq(~full),
            self.o.valid.eq(valid),
            self.o.payload.eq(out),
        ]
        with m.If(~full):
            m.d.sync += spare.eq(self.i.payload)
        with m.If(free):
            m.d.sync += [out.eq(Mux(full, spare, self.i.payload)), valid.eq(full | self.i.valid), full.eq(0)]
        with m.Elif(self.i.valid):
            m.d.sync += full.eq(1)
        with m.If(self.clear):
            m.d.sync += [valid.eq(0), full.eq(0)]
        return m


class DeepFifo(wiring.Component):
    """Deep FIFO in RAM columns of 64 bits with a registered output: an entry a cycle in and out.

    A word written in cycle t can be taken in cycle t+3 at the earliest (write, RAM read, output register).
    There is no full flag: the writer keeps account of the room, which `taken` gives back.

    Parameters
    ----------
    width : bits of a word, a multiple of 64.
    depth : words of RAM, a power of two; two more are held behind it.

    Interface attributes
    --------------------
    w_en, w_data : write a word.
    o : stream of words.
    taken : one word left the RAM this cycle, its place is free.
    clear : empties everything; wins over both sides.
    level : words in the RAM.
    """

    def __init__(self, *, width: int, depth: int) -> None:
        if width < COLUMN_BITS or width % COLUMN_BITS:
            raise ValueError(f"width must be a multiple of {COLUMN_BITS}, not {width!r}")
        if depth < 2 or depth & (depth - 1):
            raise ValueError(f"depth must be a power of two of at least 2, not {depth!r}")
        self._width = width
        self._depth = depth
        super().__init__(
            {
                "w_en": In(1),
                "w_data": In(width),
                "o": Out(stream.Signature(width)),
                "taken": Out(1),
                "clear": In(1),
                "level": Out(bits_for(depth)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        attrs = deep_ram(platform) if self._depth >= ULTRA_DEPTH else {}
        head = Signal(range(self._depth))
        tail = Signal(range(self._depth))
        some = Signal()
        valid1, valid2 = Signal(), Signal()
        enable1, enable2, take = Signal(), Signal(), Signal()
        words = []
        for c in range(self._width // COLUMN_BITS):
            ram = memory.Memory(shape=COLUMN_BITS, depth=self._depth, init=[], attrs=attrs)
            m.submodules[f"column{c}"] = ram
            write, read = ram.write_port(), ram.read_port()
            m.d.comb += [
                write.addr.eq(tail),
                write.data.eq(self.w_data.word_select(c, COLUMN_BITS)),
                write.en.eq(self.w_en),
                read.addr.eq(head),
                read.en.eq(enable1),
            ]
            words.append(read.data)
        # Two enabled stages behind the RAM, each moving when the next has room: no bubble, no spare buffer.
        out = Signal(self._width, reset_less=True)
        m.d.comb += [
            enable2.eq(~valid2 | self.o.ready),
            enable1.eq(~valid1 | enable2),
            take.eq(enable1 & some),
            self.taken.eq(take),
            self.o.valid.eq(valid2),
            self.o.payload.eq(out),
        ]
        with m.If(enable2):
            m.d.sync += [out.eq(Cat(words)), valid2.eq(valid1)]
        with m.If(enable1):
            m.d.sync += valid1.eq(some)
        m.d.sync += [
            head.eq(head + take),
            tail.eq(tail + self.w_en),
            self.level.eq(self.level + self.w_en - take),
            some.eq(self.w_en | ~((self.level == 0) | ((self.level == 1) & take))),
        ]
        with m.If(self.clear):
            m.d.sync += [head.eq(0), tail.eq(0), self.level.eq(0), some.eq(0), valid1.eq(0), valid2.eq(0)]
        return m
