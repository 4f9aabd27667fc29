"""From float32 features to int8 words. Golden: `golden.elementwise.quantise`, `quantise_head`, `golden.hadamard.quantise`."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.hadamard import WIDE_BITS
from tellme.golden.kv import KvGeometry
from tellme.golden.ternary import EXPONENT_STEP
from tellme.hw.elementwise.common import count_bits, lane_bits, with_flags, word_bits
from tellme.hw.elementwise.groups import GroupExponent
from tellme.hw.elementwise.hadamard import Hadamard, head_layout
from tellme.hw.elementwise.scales import PLACES, HeadCounter, ScaleUnit, Target, scale_tag
from tellme.hw.fp import FloatToFixed, FloatToInt8, Multiplier
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
    first: Signal  # of the tile or head and lane
    w_last: Signal  # the last of them
    word: Signal  # within the lane's part of the buffer
    kv_cell: Signal  # first cell of the K or V head
    target: Signal
    head: Signal  # of its target


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
    head). A word a cycle, as soon as its factor is there. With `hadamard` in the configuration all heads go through the
    Hadamard unit, and their scales with them.

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
    hadamard, k_narrow, scale; scaled, scale_tag, new_scale : where the accelerator has it: In, the job, and the scale with `inv`; Out, a
        head's scale and where it belongs.
    write, write_lane, write_word, write_data : Out, to the int8 buffer.
    own_write, own_addr, own_part : Out, to the own-K/V RAM; the data are `write_data`.
    quantised : Out, words of the inputs written since the start.
    head_quantised : Out, pulse: the factors of a head are used.
    inputs_done, heads_done : Out, pulses: the last word of a job is written.
    """

    @classmethod
    def head_delay(cls, config: AcceleratorConfig) -> int:
        """From the read of a word of a head to its write."""
        if config.hadamard:
            return 2 + Multiplier.delay + FloatToFixed.delay + Hadamard.delay(config)
        return quantiser_delay(config)

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        self.delay = quantiser_delay(config)
        groups = {"grouped": In(1), "largest": In(31), "group_largest": In(31), "write_exponent": Out(EXPONENT_BITS)}
        turning = {"hadamard": In(1), "k_narrow": In(1), "scale": In(32)}
        turning |= {"scaled": Out(1), "scale_tag": Out(scale_tag(config)), "new_scale": Out(32)}
        super().__init__(
            {
                **(groups if config.packing.group else {}),
                **(turning if config.hadamard else {}),
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
        self._turned = Signal()  # the word that is written comes from the Hadamard unit
        at = self._walk(m)
        self._write(m, at)
        factor = self._factor(m, at)
        self._multiply(m, at, factor, self._exponent(m, at, factor.largest) if config.packing.group else None)
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
        return _Word(issue, last, inputs, outer, lane, w, w_first, w_last, word, kv_cell, counter.target, counter.head)

    def _factor(self, m: Module, at: _Word) -> data.View:
        """The factor of the word, when the word comes from the u buffer; with it the token's maximum, where there are groups, and the
        scale, which the Hadamard unit changes."""
        config = self._config
        names = ["inv", *(["largest"] if config.packing.group else []), *(["scale"] if config.hadamard else [])]
        layout = data.StructLayout({name: getattr(self, name).shape() for name in names})
        m.submodules.factors = factors = memory.Memory(shape=layout, depth=PLACES * config.lanes, init=[])
        store, look = factors.write_port(), factors.read_port(domain="comb")
        m.d.comb += [
            store.addr.eq(Cat(self.tag.place, self.tag.lane)),
            *(store.data[name].eq(getattr(self, name)) for name in names),
            store.en.eq(self.done),
            look.addr.eq(Cat(Mux(at.inputs, 0, at.outer[:2]), at.lane)),
        ]
        factor: data.View = delay_line(m, look.data, 2, "factor")
        return factor

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
        if config.hadamard:
            state, there = self._two_ways(m, at, starting, here)
        else:
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

    def _two_ways(self, m: Module, at: _Word, starting: Value, here: data.View) -> tuple[Value, data.View]:
        """As `with_flags`: of inputs after `delay`, of heads, which go through the Hadamard unit, after `head_delay`."""
        inputs = at.inputs.replicate(len(starting))
        soon = with_flags(m, starting & inputs, here, self.delay, "place")
        late = with_flags(m, starting & ~inputs, here, self.head_delay(self._config), "head_place")
        m.d.comb += self._turned.eq(late[0].any())
        place = Signal(here.shape())
        m.d.comb += place.eq(Mux(self._turned, late[1].as_value(), soon[1].as_value()))
        return soon[0] | late[0], place

    def _turn(self, m: Module, at: _Word, scale: Value, products: list[Value]) -> Value:
        """The words of heads, behind the Hadamard unit."""
        config = self._config
        m.submodules.hadamard = turner = Hadamard(config)
        for i, product in enumerate(products):
            m.submodules[f"wide{i}"] = wide = FloatToFixed(0, WIDE_BITS)
            m.d.comb += [wide.i.eq(product), turner.x[i].eq(wide.o)]
        to_x = 2 + Multiplier.delay + FloatToFixed.delay
        head = head_layout(config)
        now = Signal(head)
        m.d.comb += [
            now.turn.eq(self.hadamard & (at.target != Target.VALUE)),
            now.narrow.eq(self.k_narrow & (at.target == Target.KEY)),
            Cat(now.target, now.head, now.lane).eq(Cat(at.target, at.head, at.lane)),
        ]
        flags = Cat(at.issue & ~at.inputs, at.first, at.w_last)
        (valid, first, last), there = with_flags(
            m, flags, Cat(now.as_value()[:-32], at.w[: len(turner.place)]), to_x, "head"
        )
        m.d.comb += [
            turner.valid.eq(valid),
            turner.first.eq(first),
            turner.last.eq(last),
            Cat(turner.head.as_value()[:-32], turner.place).eq(there),
            turner.head.scale.eq(delay_line(m, scale, to_x - 2, "head_scale", ring=True)),
            self.scaled.eq(turner.scaled),
            self.scale_tag.eq(turner.tag),
            self.new_scale.eq(turner.scale),
        ]
        return turner.o

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

    def _multiply(self, m: Module, at: _Word, factor: data.View, code: Value | None) -> None:
        products, words = [], Signal(len(self.write_data))
        for i in range(self._config.word):
            m.submodules[f"mul{i}"] = mul = Multiplier()
            m.submodules[f"round{i}"] = rounded = FloatToInt8()
            product = mul.o if code is None else register(m, _times_power(mul.o, code), f"scaled{i}")
            m.d.comb += [
                mul.a.eq(self.u_data.word_select(i, 32)),
                mul.b.eq(factor.inv),
                rounded.i.eq(product),
                words.word_select(i, 8).eq(rounded.o),
            ]
            products.append(mul.o)
        if self._config.hadamard:
            turned = self._turn(m, at, factor.scale, products)
            m.d.comb += self.write_data.eq(Mux(self._turned, turned, words))
        else:
            m.d.comb += self.write_data.eq(words)
