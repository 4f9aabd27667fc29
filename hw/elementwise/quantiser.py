"""From float32 features to int8 words. Golden: `golden.elementwise.quantise`, `quantise_head`."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.kv import KvGeometry
from tellme.golden.ternary import EXPONENT_STEP
from tellme.hw.elementwise.common import count_bits, lane_bits, with_flags, word_bits
from tellme.hw.elementwise.groups import GroupExponent
from tellme.hw.elementwise.scales import PLACES, HeadCounter, ScaleUnit, Target, scale_tag
from tellme.hw.fp import FloatToInt8, Multiplier
from tellme.hw.interfaces import EXPONENT_BITS
from tellme.hw.pipeline import delay_line, register


@dataclass(frozen=True)
class _Word:
    """The word that is read: `issue` now, `last` of its job; `inputs`, or else heads."""

    issue: Signal
    last: Signal
    inputs: Signal
    outer: Signal  # tile or head
    lane: Signal
    w: Signal  # within the tile or head
    word: Signal  # within the lane's part of the buffer
    kv_cell: Signal  # first cell of the K or V head
    target: Signal


def _times_power(x: Value, code: Value) -> Value:
    """A float32 of magnitude below 2^64, or one that is no number, times 2^(code * EXPONENT_STEP); what was 0 rounds to 0 as before."""
    exponent = x[23:31]
    low = exact_log2(EXPONENT_STEP)
    power = Mux(exponent[6:].all(), 0, Cat(C(0, low), code))
    return Cat(x[:23], (exponent + power)[:8], x[31])


def quantiser_delay(config: AcceleratorConfig) -> int:
    """Cycles from the read of a word to its write; a power of two of a group takes one more."""
    return 2 + Multiplier.delay + FloatToInt8.delay + (config.packing.group > 0)


class Quantiser(wiring.Component):
    """Reads words of the u buffer, multiplies them with their factor, rounds, and writes int8 words.

    Two jobs: the inputs of a matrix (tile, lane, 20 words), and the heads of a QKV matrix (head, lane, words of a
    head). A word a cycle, as soon as its factor is there.

    Parameters
    ----------
    config : the accelerator.

    Interface attributes
    --------------------
    start_inputs, start_heads : In, pulses. Both may be given together: the inputs come first.
    lanes, tiles, head_dim, heads, kv_heads : In, the job.
    done, tag, inv : In, a result of ScaleUnit, in the order of use.
    u_read, u_lane, u_word, u_data : read port of the u buffer, two cycles of latency.
    grouped, largest, group_largest, write_exponent : where the format of weights has groups: In, whether inputs have exponents; the token's
        maximum, with `inv`; the group's, with `u_data`; Out, with `write_data`.
    write, write_lane, write_word, write_data : Out, to the int8 buffer.
    own_write, own_addr, own_part : Out, to the own-K/V RAM; the data are `write_data`.
    quantised : Out, words of the inputs written since the start.
    head_quantised : Out, pulse: the factors of a head are used.
    inputs_done, heads_done : Out, pulses: the last word of a job is written.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        self.delay = quantiser_delay(config)
        groups = {"grouped": In(1), "largest": In(31), "group_largest": In(31), "write_exponent": Out(EXPONENT_BITS)}
        super().__init__(
            {
                **(groups if config.packing.group else {}),
                "start_inputs": In(1),
                "start_heads": In(1),
                "lanes": In(count_bits(config)),
                "tiles": In(16),
                "head_dim": In(16),
                "heads": In(8),
                "kv_heads": In(8),
                "done": In(1),
                "tag": In(scale_tag(config)),
                "inv": In(32),
                "u_read": Out(1),
                "u_lane": Out(lane_bits(config)),
                "u_word": Out(word_bits(config)),
                "u_data": In(8 * config.beat_bytes),
                "write": Out(1),
                "write_lane": Out(lane_bits(config)),
                "write_word": Out(word_bits(config)),
                "write_data": Out(8 * config.word),
                "own_write": Out(1),
                "own_addr": Out(clog2(KvGeometry(config).own_depth)),
                "own_part": Out(2),
                "quantised": Out(32),
                "head_quantised": Out(1),
                "inputs_done": Out(1),
                "heads_done": Out(1),
            }
        )

    @staticmethod
    def expected_cycles(config: AcceleratorConfig, *, tiles: int, lanes: int) -> int:
        """Cycles of quantise_busy for a matrix's inputs."""
        return 2 + ScaleUnit.delay + 1 + tiles * lanes * config.tile_words + quantiser_delay(config)

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        at = self._walk(m)
        self._write(m, at)
        factor = self._factor(m, at)
        self._multiply(m, factor[:32], self._exponent(m, at, factor[32:]) if config.packing.group else None)
        return m

    def _walk(self, m: Module) -> _Word:
        """Word after word of both jobs."""
        config = self._config
        kv = KvGeometry(config)
        wide = word_bits(config) + 1  # the last tile may reach beyond the buffer
        inputs, heads = Signal(), Signal()  # jobs under way
        outer = Signal(16)
        lane, last_lane = Signal(lane_bits(config)), Signal(lane_bits(config))
        most = max(config.tile_words, config.max_head_dim // config.word)  # words of a lane
        w, words = Signal(bits_for(most)), Signal(bits_for(most))
        word, base = Signal(wide), Signal(wide)
        kv_cell = Signal(clog2(2 * kv.cells(config.max_kv_dim)))  # first cell of a K or V head
        ready, some = Signal(range(PLACES * config.lanes + 1)), Signal()  # factors that wait; whether there are
        counter = HeadCounter(m, self.heads, self.kv_heads, "count")
        issue, take, lane_end, outer_end, last = Signal(), Signal(), Signal(), Signal(), Signal()
        head_words = self.head_dim[clog2(config.word) :]
        lane_words = Mux(inputs, config.tile_words, head_words)  # two or more
        settle = Signal()  # words follows the job by a cycle
        # What the counters stand at is known before the cycle that asks: a lane takes two cycles or more.
        w_first, w_last, w_before_last = (
            Signal(init=1),
            Signal(),
            Signal(bits_for(most)),
        )  # w == 0, w == words - 1; words - 2
        lane_last, outer_first, outer_last = Signal(), Signal(init=1), Signal()
        last_outer = Signal(16)
        m.d.sync += [
            last_lane.eq(self.lanes - 1),
            words.eq(lane_words),
            w_before_last.eq(lane_words - 2),
            last_outer.eq(self.tiles - 1),
            lane_last.eq(lane == last_lane),
            outer_last.eq(outer == last_outer),
            settle.eq(self.start_inputs | self.start_heads | last),
        ]
        m.d.comb += [
            take.eq(w_first & (~inputs | outer_first)),
            issue.eq((inputs | heads) & ~settle & (~take | some)),
            lane_end.eq(issue & w_last),
            outer_end.eq(lane_end & lane_last),
            last.eq(outer_end & Mux(inputs, outer_last, counter.last)),
            self.head_quantised.eq(outer_end & ~inputs),
        ]
        m.d.sync += [
            ready.eq(ready + self.done - (issue & take)),
            some.eq(self.done | (ready[1:] != 0) | (ready[0] & ~(issue & take))),
        ]
        with m.If(issue):
            m.d.sync += [w.eq(w + 1), word.eq(word + 1), w_first.eq(w_last), w_last.eq(w == w_before_last)]
        with m.If(lane_end):
            m.d.sync += [w.eq(0), word.eq(base), lane.eq(lane + 1)]
        with m.If(outer_end):
            following = Signal(wide)
            m.d.comb += following.eq(base + words)
            m.d.sync += [lane.eq(0), outer.eq(outer + 1), outer_first.eq(0), base.eq(following), word.eq(following)]
            with m.If(~inputs):
                counter.step(m)
                with m.If(counter.target != Target.QUERY):
                    m.d.sync += kv_cell.eq(kv_cell + kv.cells(self.head_dim))
        with m.If(last):
            m.d.sync += [outer.eq(0), outer_first.eq(1), base.eq(0), word.eq(0)]
            with m.If(inputs):
                m.d.sync += inputs.eq(0)
            with m.Else():
                m.d.sync += heads.eq(0)
        with m.If(self.start_inputs):
            m.d.sync += inputs.eq(1)
        with m.If(self.start_heads):
            m.d.sync += [heads.eq(1), kv_cell.eq(0), *counter.reset()]

        m.d.comb += [self.u_read.eq(issue), self.u_lane.eq(lane), self.u_word.eq(word)]
        return _Word(issue, last, inputs, outer, lane, w, word, kv_cell, counter.target)

    def _factor(self, m: Module, at: _Word) -> Value:
        """The factor of the word, when the word comes from the u buffer; behind it the token's maximum, where there are groups."""
        config = self._config
        stored = Cat(self.inv, self.largest) if config.packing.group else self.inv
        m.submodules.factors = factors = memory.Memory(
            shape=unsigned(len(stored)), depth=PLACES * config.lanes, init=[]
        )
        store, look = factors.write_port(), factors.read_port(domain="comb")
        m.d.comb += [
            store.addr.eq(Cat(self.tag.place, self.tag.lane)),
            store.data.eq(stored),
            store.en.eq(self.done),
            look.addr.eq(Cat(Mux(at.inputs, 0, at.outer[:2]), at.lane)),
        ]
        return delay_line(m, look.data, 2, "factor")

    def _write(self, m: Module, at: _Word) -> None:
        """Where the word goes: a lane's part of the int8 buffer, or the own-K/V RAM."""
        config = self._config
        cell_bits = exact_log2(config.cell // config.word)
        split_bits = exact_log2(config.keys_per_beat)
        half = word_bits(config) - 1
        own, inside = Signal(), Signal()
        own_addr, own_part = Signal(len(self.own_addr)), Signal(2)
        m.d.comb += [
            own.eq(~at.inputs & (at.target != Target.QUERY)),
            inside.eq(~own & (~at.inputs | ~at.word[-1])),
            own_addr.eq(KvGeometry(config).own_address(at.kv_cell + at.w[cell_bits:], at.lane[split_bits:])),
            own_part.eq(Cat(at.w[:cell_bits], at.lane[:split_bits])),
        ]
        place = data.StructLayout({"lane": len(at.lane), "word": word_bits(config), "addr": len(own_addr), "part": 2})
        here = Signal(place)
        m.d.comb += [
            here.lane.eq(at.lane),
            # Queries stand in the upper half of a lane's part, where no input of a QKV matrix reaches.
            here.word.eq(Cat(at.word[:half], Mux(at.inputs, at.word[half], 1))),
            here.addr.eq(own_addr),
            here.part.eq(own_part),
        ]
        starting = Cat(
            at.issue & at.inputs, at.issue & inside, at.issue & own, at.last & at.inputs, at.last & ~at.inputs
        )
        state, there = with_flags(m, starting, here, self.delay, "place")
        m.d.comb += [
            self.write.eq(state[1]),
            self.own_write.eq(state[2]),
            self.write_lane.eq(there.lane),
            self.write_word.eq(there.word),
            self.own_addr.eq(there.addr),
            self.own_part.eq(there.part),
        ]
        m.d.sync += [self.inputs_done.eq(state[3]), self.heads_done.eq(state[4])]
        with m.If(state[0]):
            m.d.sync += self.quantised.eq(self.quantised + 1)
        with m.If(self.start_inputs):
            m.d.sync += self.quantised.eq(0)

    def _exponent(self, m: Module, at: _Word, largest: Value) -> Value:
        """Of the word's group, in steps, as its products come."""
        m.submodules.exponent = exponent = GroupExponent()
        m.d.comb += [
            exponent.largest.eq(largest),
            exponent.group.eq(self.group_largest),
            exponent.enable.eq(delay_line(m, at.inputs & self.grouped, 2, "with_exponent")),
        ]
        code = delay_line(m, exponent.code, Multiplier.delay - GroupExponent.delay, "exponent")
        m.d.comb += self.write_exponent.eq(delay_line(m, code, 1 + FloatToInt8.delay, "write_exponent"))
        return code

    def _multiply(self, m: Module, factor: Value, code: Value | None) -> None:
        for i in range(self._config.word):
            m.submodules[f"mul{i}"] = mul = Multiplier()
            m.submodules[f"round{i}"] = rounded = FloatToInt8()
            product = mul.o if code is None else register(m, _times_power(mul.o, code), f"scaled{i}")
            m.d.comb += [
                mul.a.eq(self.u_data.word_select(i, 32)),
                mul.b.eq(factor),
                rounded.i.eq(product),
                self.write_data.word_select(i, 8).eq(rounded.o),
            ]
