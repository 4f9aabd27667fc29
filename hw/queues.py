"""All queues of the accelerator: in distributed RAM, in block RAM, and the deep one in UltraRAM.

Where `amaranth.lib.fifo` has a queue of the same cycles, logic and levels, it is used; the others say why not.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Shape, Signal
from amaranth.lib import data, fifo, memory, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for

from tellme.hw.primitives import deep_ram

COLUMN_BITS = 64
"""Data bits of a RAM column: a URAM288 or a BRAM36 in simple dual-port mode is 72 wide, 8 of them parity."""

ULTRA_DEPTH = 2048
"""From this depth on the deep FIFO asks for UltraRAM (4096 words each) where there is any, below it the tool chooses."""


class Queue(wiring.Component):
    """First-in first-out queue in distributed RAM (one write port, combinational read): `SyncFIFO` with `clear`.

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
        queue = fifo.SyncFIFO(width=self._width, depth=self._depth)
        m.submodules.queue = ResetInserter(self.clear)(queue)
        wiring.connect(m, wiring.flipped(self.i), queue.w_stream)
        wiring.connect(m, queue.r_stream, wiring.flipped(self.o))
        m.d.comb += self.level.eq(queue.level)
        return m


class RegisterSlice(wiring.Component):
    """Registers in a stream's valid, payload and ready, so that no path goes through; an entry a cycle, one cycle late.

    Of `amaranth.lib.fifo`, a `SyncFIFOBuffered` of two entries cuts the paths, too, but is two cycles late.

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
    There is no full flag: the writer keeps account of the room, which `taken` gives back. `SyncFIFOBuffered` has no
    second register behind the RAM, without which UltraRAM is too slow, and compares its level in the writer's cycle.

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


class ShortQueue(wiring.Component):
    """First-in first-out queue whose `out.ready` may come late in the cycle: one LUT behind it are clock enables only.

    `depth` entries in a memory and one in its output register.
    `SyncFIFOBuffered` has the same cycles from entry to entry, but no `room` that is known a cycle before: with a subtraction
    for it behind its level, it is larger and slower: docs/decisions.md.

    Parameters
    ----------
    shape : of an entry. depth : a power of two of at least 4.

    Interface attributes
    --------------------
    write, payload : an entry is added; who writes keeps account of the room.
    room : an entry may be written, whatever was written in the cycle before (which it does not count yet).
    out : stream.
    """

    delay = 2
    """From the cycle in which an entry is written to the first in which it can be taken."""
    room_delay = 2
    """From the cycle in which an entry is taken to the first in which `room` counts it."""

    def __init__(self, shape: Any, depth: int):
        self._shape = shape
        self._depth = depth
        super().__init__({"write": In(1), "payload": In(shape), "room": Out(1), "out": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        bits = Shape.cast(self._shape).width
        m.submodules.ram = ram = memory.Memory(shape=bits, depth=self._depth, init=[])
        write = ram.write_port()
        read = ram.read_port()
        # A bit more than an address: full and empty differ.
        put, get = Signal(range(2 * self._depth)), Signal(range(2 * self._depth))
        fetch = Signal()
        m.d.comb += [
            fetch.eq((put != get) & (~self.out.valid | self.out.ready)),
            write.en.eq(self.write),
            write.addr.eq(put),
            write.data.eq(self.payload),
            read.en.eq(fetch),
            read.addr.eq(get),
        ]
        payload = self.out.payload
        m.d.comb += (payload.as_value() if isinstance(payload, data.View) else payload).eq(read.data)
        m.d.sync += self.room.eq((put - get)[: len(put)] < self._depth - 1)
        with m.If(self.write):
            m.d.sync += put.eq(put + 1)
        with m.If(fetch):
            m.d.sync += [get.eq(get + 1), self.out.valid.eq(1)]
        with m.Elif(self.out.ready):
            m.d.sync += self.out.valid.eq(0)
        return m


class ReservedQueue(wiring.Component):
    """First-in first-out queue in block RAM. Room is reserved before an entry is computed, so that a write always fits.

    `delay` = 2 cycles from a write into the empty queue to `out.valid`. No queue of `amaranth.lib.fifo` counts what is
    reserved: beside one, that count is most of the logic.

    Parameters
    ----------
    shape : of an entry. depth : entries that may be reserved, a power of two of at least 4.

    Interface attributes
    --------------------
    room : one more entry may be reserved.
    reserve : an entry is reserved (only with `room`).
    write, payload : a reserved entry arrives.
    out : stream, oldest first.
    """

    delay = 2

    def __init__(self, shape: Any, depth: int) -> None:
        self._shape = shape
        self._depth = depth
        super().__init__(
            {
                "room": Out(1),
                "reserve": In(1),
                "write": In(1),
                "payload": In(shape),
                "out": Out(stream.Signature(shape)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        depth = self._depth
        m.submodules.ram = ram = memory.Memory(shape=self._shape, depth=depth, init=[])
        write, read = ram.write_port(), ram.read_port()
        head, tail = Signal(range(depth)), Signal(range(depth))
        stored, some = Signal(range(depth + 1)), Signal()  # in the memory, not the one at the output; whether there are
        more, less = Signal(len(stored), init=1), Signal(len(stored), init=-1 % (1 << len(stored)))
        # Under way, stored, or at the output, without what the latest cycle reserved and took.
        promised = Signal(range(depth + 1))
        reserved, taken = Signal(), Signal()
        last_place = Signal()  # promised == depth - 1
        valid = Signal()
        fetch = Signal()
        m.d.comb += [
            fetch.eq(some & (~valid | self.out.ready)),
            self.room.eq(~promised[-1] & ~(last_place & reserved)),
            self.out.valid.eq(valid),
            self.out.payload.eq(read.data),
            write.addr.eq(head),
            write.data.eq(self.payload),
            write.en.eq(self.write),
            read.addr.eq(tail),
            read.en.eq(fetch),
        ]
        m.d.sync += [
            some.eq(self.write | (stored[1:] != 0) | (stored[0] & ~fetch)),
            reserved.eq(self.reserve),
            taken.eq(valid & self.out.ready),
            promised.eq(promised + reserved - taken),
        ]
        # What follows is known before `fetch`, which comes late.
        with m.If(self.write & ~fetch):
            m.d.sync += [stored.eq(more), more.eq(more + 1), less.eq(stored)]
        with m.If(~self.write & fetch):
            m.d.sync += [stored.eq(less), more.eq(stored), less.eq(less - 1)]
        with m.If(reserved & ~taken):
            m.d.sync += last_place.eq(promised == depth - 2)
        with m.If(taken & ~reserved):
            m.d.sync += last_place.eq(promised[-1])
        with m.If(self.write):
            m.d.sync += head.eq(head + 1)
        with m.If(fetch):
            m.d.sync += [tail.eq(tail + 1), valid.eq(1)]
        with m.Elif(self.out.ready):
            m.d.sync += valid.eq(0)
        return m
