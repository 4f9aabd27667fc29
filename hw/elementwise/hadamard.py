"""Queries and keys turned by a Hadamard matrix, between rounding and the buffers. Golden: `golden.hadamard`."""

from __future__ import annotations

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2, exact_log2

from tellme.golden.config import AcceleratorConfig
from tellme.golden.hadamard import BLOCK, FACTOR_BITS, FACTOR_FRAC, TURNED_BITS, WIDE, WIDE_BITS
from tellme.golden.kv import LARGEST, NARROW_LARGEST
from tellme.hw.elementwise.common import ONE, lane_bits, with_flags
from tellme.hw.elementwise.scales import scale_tag
from tellme.hw.fp import FloatToFixed, IntToFloat, Multiplier, Reciprocal
from tellme.hw.fp.dsp import MULTIPLY_ADD_DELAY, multiply_add
from tellme.hw.fp.format import float_const
from tellme.hw.pipeline import delay_line, register, wire

_GROWTH = exact_log2(BLOCK)
"""Bits that a sum of BLOCK numbers has more; and stages of the transform."""

_AS_IT_IS = 1 << FACTOR_FRAC - _GROWTH
"""Factor of words that are not turned: they come times BLOCK."""

_FACTOR_DELAY = IntToFloat(TURNED_BITS).delay + Reciprocal.delay + Multiplier.delay + FloatToFixed.delay + 1
"""From a head's largest magnitude to where its factor can be read."""

_SCALE_DELAY = IntToFloat(TURNED_BITS).delay + Multiplier.delay + 1 + Multiplier.delay


def head_layout(config: AcceleratorConfig) -> data.StructLayout:
    """What goes with the words of a head: whether it is turned, whether it becomes 4 bits, where its scale belongs (target, head,
    lane), and the scale."""
    return data.StructLayout(
        {"turn": 1, "narrow": 1, "target": 2, "head": 8, "lane": lane_bits(config), "scale": unsigned(32)}
    )


class Hadamard(wiring.Component):
    """Turns heads, and gives them a second scale; those that are not turned pass through.

    A word a cycle, those of a head and lane in consecutive cycles. Words first meet those at a power of two's distance, the one that came
    first waiting in a short delay line, then the features of a word each other: log2(BLOCK) sums or differences. Then they wait until
    the largest of their head is known and has become a factor.

    Parameters
    ----------
    config : the accelerator.

    Interface attributes
    --------------------
    valid, first, last : In. A word; the first, the last of its head and lane.
    place : In. Its number within its block, low bits of the number within the head.
    x : In. Its features, integers of WIDE_BITS.
    head : In, with `last`. As `head_layout`.
    o : Out. The word's integers of 8 bits, `delay(config)` cycles later.
    scaled, tag, scale : Out. A pulse with a head's scale, and where that belongs.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                "valid": In(1),
                "first": In(1),
                "last": In(1),
                "place": In(max(1, exact_log2(BLOCK // config.word))),
                "x": In(data.ArrayLayout(signed(WIDE_BITS), config.word)),
                "head": In(head_layout(config)),
                "o": Out(8 * config.word),
                "scaled": Out(1),
                "tag": Out(scale_tag(config)),
                "scale": Out(32),
            }
        )

    @staticmethod
    def turn_delay(config: AcceleratorConfig) -> int:
        """Cycles of the transform: words wait for those behind them in the block, and a register a stage."""
        return BLOCK // config.word - 1 + _GROWTH

    @classmethod
    def _wait(cls, config: AcceleratorConfig) -> int:
        """Cycles from a turned word to its multiplication: the other words of the longest head, and the way to its factor."""
        return config.max_head_dim // config.word - 1 + exact_log2(config.word) + 1 + _FACTOR_DELAY

    @classmethod
    def delay(cls, config: AcceleratorConfig) -> int:
        """Cycles from `x` to `o`."""
        return cls.turn_delay(config) + cls._wait(config) + MULTIPLY_ADD_DELAY

    def elaborate(self, platform: object) -> Module:
        m, config = Module(), self._config
        late = self.turn_delay(config)
        turned = self._turn(m)
        (first, last), head = with_flags(m, Cat(self.valid & self.first, self.valid & self.last), self.head, late, "in")
        straight = delay_line(m, self.x, late, "straight", ring=True)
        turn = delay_line(m, self.head.turn, late, "turn")
        words = [
            wire(m, Mux(turn, t, Cat(C(0, _GROWTH), straight[i]).as_signed()), f"word{i}") for i, t in enumerate(turned)
        ]
        largest, (closed, head) = self._largest(m, turned, first, last, head)
        wait = self._wait(config)
        leaving = delay_line(m, last, wait, "leaving", reset_less=False)
        factor = self._scales(m, largest, closed, head, leaving)
        self._multiply(m, platform, delay_line(m, Cat(words), wait, "wait", ring=True), factor)
        return m

    def _turn(self, m: Module) -> list[Value]:
        """The transform of the word that came turn_delay cycles ago."""
        size = self._config.word
        x: list[Value] = [self.x[i] for i in range(size)]
        place = wire(m, Mux(self.valid, self.place, 0), "place_in")
        gone = 0
        for stage in range(exact_log2(BLOCK // size)):
            distance = 1 << stage
            second = delay_line(m, place[stage], gone, f"second{stage}", reset_less=False)
            sums = []
            for i, value in enumerate(x):
                kept = Signal(signed(len(value) + 1), name=f"kept{stage}_{i}")
                before = delay_line(m, kept, distance, f"before{stage}_{i}")
                m.d.comb += kept.eq(Mux(second, before - value, value))
                sums.append(register(m, (before + Mux(second, value, 0))[: len(kept)].as_signed(), f"sum{stage}_{i}"))
            x = sums
            gone += distance + 1
        for bit in range(exact_log2(size)):
            pairs = [(x[i & ~(1 << bit)], x[i | 1 << bit], i >> bit & 1) for i in range(size)]
            x = [register(m, a - b if odd else a + b, f"turn{bit}_{i}") for i, (a, b, odd) in enumerate(pairs)]
        assert gone + exact_log2(size) == self.turn_delay(self._config) and len(x[0]) == TURNED_BITS
        return x

    def _largest(
        self, m: Module, turned: list[Value], first: Value, last: Value, head: data.View
    ) -> tuple[Signal, tuple[Value, data.View]]:
        """The largest magnitude of a head and lane, at least WIDE; a flag when it is complete, with what goes with the head."""

        def larger(a: Value, b: Value) -> Value:
            return Mux(a > b, a, b)

        level = [wire(m, (y ^ y[-1].replicate(len(y)))[:-1], f"magnitude{i}") for i, y in enumerate(turned)]
        depth = 0
        while len(level) > 1:
            depth += 1
            level = [register(m, larger(*level[i : i + 2]), f"larger{depth}_{i}") for i in range(0, len(level), 2)]
        largest = Signal(TURNED_BITS - 1, reset_less=True)
        begin = delay_line(m, first, depth, "begin", reset_less=False)
        m.d.sync += largest.eq(larger(level[0], Mux(begin, WIDE, largest)))
        return largest, with_flags(m, last, head, depth + 1, "largest")

    def _scales(self, m: Module, largest: Signal, closed: Value, head: data.View, leaving: Value) -> Value:
        """From heads' largest magnitudes, with `closed`: their scales, and the factor of the words that leave now."""
        m.submodules.top = top = IntToFloat(TURNED_BITS)
        m.submodules.inverse = inverse = Reciprocal()
        m.submodules.factor = factor = Multiplier()
        m.submodules.fixed = fixed = FloatToFixed(FACTOR_FRAC, FACTOR_BITS)
        m.submodules.ratio = ratio = Multiplier()
        m.submodules.scaled = scaled = Multiplier()
        choice = delay_line(m, Cat(head.turn, head.narrow), top.delay, "choice")
        narrow = delay_line(m, choice[1], Reciprocal.delay, "narrow")
        m.d.comb += [
            top.i.eq(Cat(largest, C(0, 1)).as_signed()),
            inverse.i.eq(top.o),
            factor.a.eq(inverse.o),
            factor.b.eq(Mux(narrow, float_const(NARROW_LARGEST), float_const(LARGEST))),
            fixed.i.eq(factor.o),
            ratio.a.eq(top.o),
            ratio.b.eq(Mux(choice[1], float_const(1 / NARROW_LARGEST), float_const(1 / LARGEST))),
        ]
        turn = delay_line(m, choice[0], Multiplier.delay, "turned")
        by = register(m, Mux(turn, ratio.o, ONE), "by")
        before = _SCALE_DELAY - Multiplier.delay
        done, there = with_flags(m, closed, Cat(head.target, head.head, head.lane), _SCALE_DELAY, "scaled")
        m.d.comb += [
            scaled.a.eq(delay_line(m, head.scale, before, "scale_in", ring=True)),
            scaled.b.eq(by),
            self.scaled.eq(done),
            Cat(self.tag.target, self.tag.head, self.tag.lane).eq(there),
            self.scale.eq(scaled.o),
        ]
        turn = delay_line(m, turn, _FACTOR_DELAY - 1 - top.delay - Multiplier.delay, "factor_turn")
        stored = delay_line(m, closed, _FACTOR_DELAY - 1, "stored", reset_less=False)
        return self._queue(m, Mux(turn, fixed.o.as_unsigned(), _AS_IT_IS), stored, leaving)

    def _queue(self, m: Module, factor: Value, stored: Value, leaving: Value) -> Value:
        """Factors wait for the words of their head, which take them with `leaving`, their last one; the one that waits first."""
        depth = 1 << ceil_log2(self._config.max_head_dim // BLOCK + 1)  # so many are under way of the shortest heads
        m.submodules.factors = factors = memory.Memory(shape=unsigned(FACTOR_BITS), depth=depth, init=[])
        write, read = factors.write_port(), factors.read_port(domain="comb")
        newest, oldest = Signal(range(depth)), Signal(range(depth))
        m.d.comb += [write.en.eq(stored), write.data.eq(factor), write.addr.eq(newest), read.addr.eq(oldest)]
        m.d.sync += [newest.eq(newest + stored), oldest.eq(oldest + leaving)]
        return read.data

    def _multiply(self, m: Module, platform: object, words: Value, factor: Value) -> None:
        """Words times the factor of their head, rounded."""
        by = Cat(factor, C(0, 1)).as_signed()
        half = C(1 << FACTOR_FRAC - 1, FACTOR_FRAC + 1).as_signed()
        for i in range(self._config.word):
            y = words.word_select(i, TURNED_BITS).as_signed()
            product, _ = multiply_add(m, platform, f"product{i}", by, y, c=half, width=len(by) + TURNED_BITS)
            m.d.comb += self.o.word_select(i, 8).eq(product[FACTOR_FRAC : FACTOR_FRAC + 8])
