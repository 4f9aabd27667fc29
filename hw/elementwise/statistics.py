"""Statistics of a token's features, and their product with the gain. Golden: `golden.elementwise.statistics`, `head_statistics`."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import CHUNK, PARTIALS, AcceleratorConfig
from tellme.hw.elementwise.buffers import BeatTable
from tellme.hw.elementwise.common import CHUNK_LAYOUT, ONE, chunk_bits, lane_bits, with_flags
from tellme.hw.fp import Adder, Multiplier
from tellme.hw.pipeline import delay_line, register

BANKS = CHUNK
"""Partial k lives in bank k mod 4, half k // 4."""


def chunk_info(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of what goes with a chunk: lane, chunk number, and how the statistics take it.

    first: one of the 8 chunks that start the partials. parity: which of two sets of maxima takes it (heads alternate).
    gain: multiply with the gain. turn: then rotate (RoPE).
    """
    return data.StructLayout(
        {"lane": lane_bits(config), "chunk": chunk_bits(config), "first": 1, "parity": 1, "gain": 1, "turn": 1}
    )


class Statistics(wiring.Component):
    """Sums of squares and absolute maxima of every lane, in 8 partials each; products with the gain for the u buffer.

    A chunk of CHUNK features enters every cycle, but the same partial of a lane at most every 8 cycles, which chunks in
    ascending order keep by themselves. A finalising read adds up the partials of a lane on the same adders, so no
    chunk may be under way whose sum matters; the maxima may be read at any time. The maxima and the u buffer are of
    what the gain and RoPE make of a chunk, the squares of the chunk itself.

    Parameters
    ----------
    config : the accelerator.

    Interface attributes
    --------------------
    valid, last, head_last : In. A chunk; the last of its job; the last of a head, of all lanes.
    info, gain_chunk, v : In. Its place, which chunk of the gain is for it, its features.
    gained : Out. The chunk times the gain, `gain_delay` cycles later.
    turned : In. `gained`, rotated, `turn_delay` cycles later; taken for chunks that say `turn`.
    gain_write, gain_addr, gain_data : In. Loads a beat of the gain.
    u_write, u_lane, u_chunk, u : Out. A chunk for the u buffer.
    settled, head_settled : Out, pulses: all that `last`, `head_last` chunks and those before them change is stored.
    read, read_half, read_lane, read_parity : In. Finalising read of a lane: half 0, then half 1 in the next cycle.
    present : In, partials that have a chunk; the others count as 0.
    ss, amax : Out, `read_delay` cycles after half 1.
    """

    read_delay = 2 + 3 * Adder.delay
    gain_delay = BeatTable.delay + 1 + Multiplier.delay
    """From a chunk to `gained`."""
    turn_delay = 1 + Multiplier.delay + 1 + Adder.delay
    """From `gained` to `turned`."""
    delay = gain_delay + turn_delay + 1
    """From a chunk to its write into the u buffer."""
    settle_delay = Multiplier.delay + 3 + 3 * Adder.delay
    """From a chunk to `settled`, `head_settled`."""
    maxima_lag = delay + 4 - settle_delay
    """Cycles by which maxima are stored, and therefore read, later than sums."""

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        beats = config.max_features // config.word
        super().__init__(
            {
                "valid": In(1),
                "last": In(1),
                "head_last": In(1),
                "info": In(chunk_info(config)),
                "gain_chunk": In(chunk_bits(config)),
                "v": In(CHUNK_LAYOUT),
                "gained": Out(CHUNK_LAYOUT),
                "turned": In(CHUNK_LAYOUT),
                "gain_write": In(1),
                "gain_addr": In(range(beats)),
                "gain_data": In(8 * config.beat_bytes),
                "u_write": Out(1),
                "u_lane": Out(lane_bits(config)),
                "u_chunk": Out(chunk_bits(config)),
                "u": Out(CHUNK_LAYOUT),
                "settled": Out(1),
                "head_settled": Out(1),
                "read": In(1),
                "read_half": In(1),
                "read_lane": In(lane_bits(config)),
                "read_parity": In(1),
                "present": In(PARTIALS),
                "ss": Out(32),
                "amax": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._gain(m)
        self._sums(m)
        self._maxima(m)
        return m

    def _tap(self, m: Module, cycles: int, name: str) -> tuple[Value, data.View]:
        """(valid, last, head_last) and info of the chunk that entered `cycles` cycles ago."""
        return with_flags(m, Cat(self.valid, self.last, self.head_last), self.info, cycles, name)

    def _gain(self, m: Module) -> None:
        """u = v * gain, rotated or as it is."""
        config = self._config
        m.submodules.gain = table = BeatTable(beats=config.max_features // config.word, word=config.word)
        m.d.comb += [
            table.write.eq(self.gain_write),
            table.write_addr.eq(self.gain_addr),
            table.write_data.eq(self.gain_data),
            table.read_addr.eq(self.gain_chunk),
        ]
        gained = delay_line(m, self.info.gain, BeatTable.delay, "gained")
        v = delay_line(m, self.v, BeatTable.delay + 1, "v_gain")
        for i in range(CHUNK):
            m.submodules[f"gain_mul{i}"] = mul = Multiplier()
            gain = Signal(32, name=f"gain{i}", reset_less=True)
            m.d.sync += gain.eq(Mux(gained, table.read_data.word_select(i, 32), ONE))
            m.d.comb += [mul.a.eq(v[i]), mul.b.eq(gain), self.gained[i].eq(mul.o)]
        straight = delay_line(m, self.gained, self.turn_delay, "straight", ring=True)
        turn = delay_line(m, self.info.turn, self.gain_delay + self.turn_delay, "turn")
        u = Signal(CHUNK_LAYOUT, reset_less=True)
        m.d.sync += u.eq(Mux(turn, self.turned, straight))
        m.d.comb += self.u.eq(u)
        state, info = self._tap(m, self.delay, "u")
        m.d.comb += [self.u_write.eq(state[0]), self.u_lane.eq(info.lane), self.u_chunk.eq(info.chunk)]

    def _sums(self, m: Module) -> None:
        """Squares, their tree, the partials; on a finalising read the tree over the partials."""
        add = [Adder() for _ in range(4)]
        for i in range(4):
            m.submodules[f"add{i}"] = add[i]
        banks = [memory.Memory(shape=unsigned(32), depth=2 * self._config.lanes, init=[]) for _ in range(BANKS)]
        reads, writes = [], []
        for i, bank in enumerate(banks):
            m.submodules[f"sums{i}"] = bank
            reads.append(bank.read_port(domain="comb"))
            writes.append(bank.write_port())

        # When a chunk's sum comes out of the tree it is added to its partial; a finalising read does not meet one.
        enter = Multiplier.delay + 1
        tree = enter + 2 * Adder.delay
        state, info = self._tap(m, tree, "sum")
        tree_in = [Signal(32, name=f"tree_in{i}", reset_less=True) for i in range(CHUNK)]
        for i in range(CHUNK):
            m.submodules[f"square{i}"] = square = Multiplier()
            m.d.comb += [square.a.eq(self.v[i]), square.b.eq(self.v[i])]
            partial = Mux(self.present.bit_select(Cat(Const(i, 2), self.read_half), 1), reads[i].data, 0)
            m.d.sync += tree_in[i].eq(Mux(self.read, partial, square.o))
            m.d.comb += reads[i].addr.eq(
                Mux(self.read, Cat(self.read_half, self.read_lane), Cat(info.chunk[2], info.lane))
            )
        m.d.comb += [
            add[0].a.eq(tree_in[0]),
            add[0].b.eq(tree_in[1]),
            add[1].a.eq(tree_in[2]),
            add[1].b.eq(tree_in[3]),
            add[2].a.eq(add[0].o),
            add[2].b.eq(add[1].o),
        ]
        partial, new = Signal(32, reset_less=True), Signal(32, reset_less=True)
        second = delay_line(m, self.read & self.read_half, 1 + 2 * Adder.delay, "second", reset_less=False)
        held = Mux(info.first, 0, Array([r.data for r in reads])[info.chunk[:2]])
        m.d.sync += [new.eq(add[2].o), partial.eq(Mux(second, new, held))]
        m.d.comb += [add[3].a.eq(partial), add[3].b.eq(new), self.ss.eq(add[3].o)]

        done, place = with_flags(m, state, Cat(info.chunk[:3], info.lane), 1 + Adder.delay, "summed")
        for i, write in enumerate(writes):
            m.d.comb += [
                write.addr.eq(place[2:]),
                write.data.eq(add[3].o),
                write.en.eq(done[0] & (place[:2] == i)),
            ]
        m.d.sync += [self.settled.eq(done[0] & done[1]), self.head_settled.eq(done[0] & done[2])]
        assert tree + 1 + Adder.delay + 1 == self.settle_delay
        assert Adder.delay + 2 <= PARTIALS

    def _maxima(self, m: Module) -> None:
        """Largest |u| of each partial; on a finalising read the largest of a lane."""

        def larger(a: Value, b: Value) -> Value:
            return Mux(a > b, a, b)

        width = 31  # magnitudes: their patterns compare as integers, NaN above all
        pair = [Signal(width, name=f"pair{i}", reset_less=True) for i in range(2)]
        four = Signal(width, reset_less=True)
        m.d.sync += [pair[i].eq(larger(self.u[2 * i][:width], self.u[2 * i + 1][:width])) for i in range(2)]
        m.d.sync += four.eq(larger(*pair))

        state, info = self._tap(m, self.delay + 2, "max")
        new = Signal(width, reset_less=True)
        held = Signal(width, reset_less=True)
        place = Signal(3 + len(info.lane) + 1, reset_less=True)
        store = register(m, state, "max_store", reset_less=False)
        read_pair = [Signal(width, name=f"read_pair{i}", reset_less=True) for i in range(2)]
        finals = []
        helds = []
        there = Cat(self.present.bit_select(Cat(Const(i, 2), self.read_half), 1) for i in range(BANKS))
        final_addr = delay_line(m, Cat(self.read_half, self.read_parity, self.read_lane), self.maxima_lag, "final_addr")
        there = delay_line(m, there, self.maxima_lag, "there")
        for i in range(BANKS):
            bank = memory.Memory(shape=unsigned(width), depth=4 * self._config.lanes, init=[])
            m.submodules[f"maxima{i}"] = bank
            write, read, final = bank.write_port(), bank.read_port(domain="comb"), bank.read_port(domain="comb")
            m.d.comb += [
                read.addr.eq(Cat(info.chunk[2], info.parity, info.lane)),
                final.addr.eq(final_addr),
                write.addr.eq(place[2:]),
                write.data.eq(larger(new, held)),
                write.en.eq(store[0] & (place[:2] == i)),
            ]
            helds.append(read.data)
            stored = Signal(width, name=f"final{i}", reset_less=True)
            m.d.sync += stored.eq(Mux(there[i], final.data, 0))
            finals.append(stored)
        m.d.sync += [
            new.eq(four),
            held.eq(Mux(info.first, 0, Array(helds)[info.chunk[:2]])),
            place.eq(Cat(info.chunk[:3], info.parity, info.lane)),
        ]

        read_four, best = Signal(width, reset_less=True), Signal(width, reset_less=True)
        m.d.sync += [read_pair[i].eq(larger(finals[2 * i], finals[2 * i + 1])) for i in range(2)]
        m.d.sync += read_four.eq(larger(*read_pair))
        lag = self.maxima_lag
        second = delay_line(m, self.read & self.read_half, lag + 3, "max_second", reset_less=False)
        m.d.sync += best.eq(Mux(second, larger(best, read_four), read_four))
        m.d.comb += self.amax.eq(delay_line(m, best, self.read_delay - lag - 4, "best", ring=True))
