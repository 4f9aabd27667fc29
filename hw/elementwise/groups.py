"""Largest magnitudes of groups of features, and the exponents of their activations. Golden: `golden.elementwise.exponents`."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import memory, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import CHUNK, AcceleratorConfig
from tellme.golden.ternary import EXPONENT, EXPONENT_STEP, GROUP
from tellme.hw.elementwise.common import CHUNK_LAYOUT, chunk_bits, lane_bits, word_bits
from tellme.hw.interfaces import EXPONENT_BITS
from tellme.hw.pipeline import delay_line, register

_WIDTH = 31
"""Of a magnitude: their patterns compare as integers, NaN above all."""


class GroupMaxima(wiring.Component):
    """The largest |u| of every group of a lane, from the chunks that go to the u buffer.

    A chunk a cycle, a lane's in ascending order within each group. A read is of what chunks of `delay` cycles ago left.

    Parameters
    ----------
    config : the accelerator.

    Interface attributes
    --------------------
    write, lane, chunk, u : In. A chunk.
    read, read_lane, read_word : In. A word of the u buffer; no chunk is under way.
    largest : Out, two cycles later, of its group.
    """

    delay = 6

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                "write": In(1),
                "lane": In(lane_bits(config)),
                "chunk": In(chunk_bits(config)),
                "u": In(CHUNK_LAYOUT),
                "read": In(1),
                "read_lane": In(lane_bits(config)),
                "read_word": In(word_bits(config)),
                "largest": Out(_WIDTH),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config

        def larger(a: Value, b: Value) -> Value:
            return Mux(a > b, a, b)

        pair = [register(m, larger(self.u[i][:_WIDTH], self.u[i + 1][:_WIDTH]), f"pair{i}") for i in range(0, CHUNK, 2)]
        four = register(m, larger(*pair), "four")
        new = register(m, four, "new")
        late = register(m, new, "late")
        low = exact_log2(GROUP // CHUNK)
        place = Cat(self.chunk[low:], self.lane)
        valid = delay_line(m, self.write, 2, "valid", reset_less=False)
        address, first = (
            delay_line(m, v, 2, name) for v, name in ((place, "address"), (self.chunk[:low] == 0, "first"))
        )
        depth = config.lanes * config.max_features // GROUP
        m.submodules.maxima = maxima = memory.Memory(shape=unsigned(_WIDTH), depth=depth, init=[])
        write = maxima.write_port()
        read = maxima.read_port(transparent_for=(write,))
        words = exact_log2(GROUP // config.word)
        m.d.comb += [
            read.addr.eq(Mux(self.read, Cat(self.read_word[words:], self.read_lane), address)),
            read.en.eq(1),
        ]
        # What the memory had, behind its clock-to-out; of the chunks on their way, the last one and the one before may be of the same group.
        looking, second = register(m, valid, "looking", reset_less=False), register(m, address, "second")
        storing, third = register(m, looking, "storing", reset_less=False), register(m, second, "third")
        store, written = register(m, storing, "store", reset_less=False), register(m, third, "written")
        begin = delay_line(m, first, 2, "begin")
        result, before = Signal(_WIDTH, reset_less=True), Signal(_WIDTH, reset_less=True)
        again, passed = Signal(), Signal()
        m.d.sync += [
            again.eq(looking & storing & (second == third)),
            passed.eq(valid & storing & (address == third)),
            before.eq(Mux(passed, result, read.data)),
        ]
        held = Mux(begin, 0, Mux(again, result, before))
        m.d.sync += result.eq(larger(late, held))
        m.d.comb += [write.addr.eq(written), write.data.eq(result), write.en.eq(store)]
        m.d.comb += self.largest.eq(register(m, read.data, "largest"))
        return m


class GroupExponent(wiring.Component):
    """How many steps of EXPONENT_STEP a group's activations may be multiplied by two: a word a cycle, `delay` cycles.

    Interface attributes
    --------------------
    largest, group : patterns of the largest magnitudes of the token, and of the group.
    enable : else 0.
    code : the exponent in steps.
    """

    delay = 2

    def __init__(self) -> None:
        super().__init__({"largest": In(_WIDTH), "group": In(_WIDTH), "enable": In(1), "code": Out(EXPONENT_BITS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        difference = Signal(_WIDTH, reset_less=True)
        m.d.sync += difference.eq(self.largest - self.group)
        room, enable = difference[23:], register(m, self.enable, "enabled")
        low = exact_log2(EXPONENT_STEP)
        with m.If(room >= EXPONENT):
            m.d.sync += self.code.eq(Mux(enable, EXPONENT // EXPONENT_STEP, 0))
        with m.Else():
            m.d.sync += self.code.eq(Mux(enable, room[low : low + EXPONENT_BITS], 0))
        return m
