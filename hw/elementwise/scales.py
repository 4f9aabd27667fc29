"""Scales of the quantisers, from statistics. Golden: `golden.elementwise.quantise`, `quantise_head`."""

from __future__ import annotations

from enum import IntEnum

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.check import HEAD_DIM_MULTIPLE
from tellme.golden.config import AcceleratorConfig
from tellme.golden.elementwise import SMALLEST_ABSMAX, inverse_count
from tellme.golden.fp import bits
from tellme.golden.hadamard import WIDE
from tellme.golden.kv import LARGEST, NARROW_LARGEST
from tellme.hw.elementwise.common import ONE, count_bits, lane_bits
from tellme.hw.elementwise.statistics import Statistics
from tellme.hw.fp import Adder, Multiplier, Reciprocal, ReciprocalSqrt
from tellme.hw.fp.format import float_const
from tellme.hw.pipeline import counted, delay_line, register

PLACES = 4
"""Heads whose scales may wait for the quantiser."""


class Target(IntEnum):
    """What is quantised."""

    INPUTS = 0
    QUERY = 1
    KEY = 2
    VALUE = 3


def scale_tag(config: AcceleratorConfig) -> data.StructLayout:
    """Layout of what identifies a scale: Target, head (query or KV head number), place, lane."""
    return data.StructLayout({"target": 2, "head": 8, "place": 2, "lane": lane_bits(config)})


class HeadCounter:
    """Counts heads in their order: queries, keys, values. `target` and `head` name the current one.

    Between a reset and a step, and between steps, lie two cycles or more.

    Parameters
    ----------
    m : module that gets the registers.
    heads, kv_heads : how many.
    name : stem of the registers' names.
    """

    def __init__(self, m: Module, heads: Signal, kv_heads: Signal, name: str):
        self._heads, self._kv_heads = heads, kv_heads
        self.target = Signal(2, name=f"{name}_target", init=Target.QUERY)
        self.head = Signal(8, name=f"{name}_head")
        self.last = Signal(name=f"{name}_last")
        self._final = Signal(name=f"{name}_final")  # a cycle late: a head takes two cycles or more
        last_query, last_kv = Signal(8, name=f"{name}_last_query"), Signal(8, name=f"{name}_last_kv")
        final = Signal(name=f"{name}_now_final")
        m.d.comb += final.eq(self.head == Mux(self.target == Target.QUERY, last_query, last_kv))
        m.d.sync += [
            last_query.eq(heads - 1),
            last_kv.eq(kv_heads - 1),
            self._final.eq(final),
            self.last.eq(final & (self.target == Target.VALUE)),
        ]

    def reset(self) -> list[object]:
        """Assignments (domain sync) back to the first query head."""
        return [self.target.eq(Target.QUERY), self.head.eq(0)]

    def step(self, m: Module) -> None:
        """Assigns the next head (domain sync)."""
        m.d.sync += self.head.eq(counted(self.head, self._final))
        with m.If(self._final):
            m.d.sync += self.target.eq(self.target + 1)


class ScaleUnit(wiring.Component):
    """Reads the statistics of lane after lane, and makes the factor of the quantiser and the scale of its result.

    A lane every two cycles: all lanes of a token job at once, or of every head as soon as it is complete.

    Parameters
    ----------
    config : the accelerator.

    Interface attributes
    --------------------
    start_inputs, start_heads : In, pulses. Both may be given together: the inputs come first.
    lanes, norm_in, inv_n, eps, q_scale, head_norm, head_dim, heads, kv_heads : In, the job; `norm_in`: the inputs are
        normalised, `head_norm`: queries and keys are.
    k_narrow, v_narrow : In, keys, values become integers of 4 bits.
    hadamard : In, where the accelerator has it: queries and keys become integers of up to WIDE, for the Hadamard unit.
    head_settled : In, pulse: the statistics of another head are complete in all lanes.
    head_quantised : In, pulse: the factors of the oldest head are used.
    read, read_half, read_lane, read_parity, ss, amax : the finalising read of Statistics; `read_inputs` when it is not
        of a head.
    captured : Out, pulse: the statistics of a head may be overwritten.
    done, tag : Out. A result: `inv` (the factor), `scale`, and `query_scale`, the scale times q_scale; `largest`, the maximum that it is
        made of, where the format of weights has groups.
    """

    delay = (
        Statistics.read_delay
        + Multiplier.delay
        + Adder.delay
        + ReciprocalSqrt.delay
        + 1
        + Multiplier.delay
        + 1
        + max(Reciprocal.delay, Multiplier.delay)
        + Multiplier.delay
    )
    """From the read of a lane's second half to its result."""

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                **({"largest": Out(31)} if config.packing.group else {}),
                **({"hadamard": In(1)} if config.hadamard else {}),
                "start_inputs": In(1),
                "start_heads": In(1),
                "lanes": In(count_bits(config)),
                "norm_in": In(1),
                "inv_n": In(32),
                "eps": In(32),
                "q_scale": In(32),
                "head_norm": In(1),
                "head_dim": In(16),
                "heads": In(8),
                "kv_heads": In(8),
                "k_narrow": In(1),
                "v_narrow": In(1),
                "head_settled": In(1),
                "head_quantised": In(1),
                "read": Out(1),
                "read_half": Out(1),
                "read_lane": Out(lane_bits(config)),
                "read_parity": Out(1),
                "ss": In(32),
                "amax": In(31),
                "read_inputs": Out(1),
                "captured": Out(1),
                "done": Out(1),
                "tag": Out(scale_tag(config)),
                "inv": Out(32),
                "scale": Out(32),
                "query_scale": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        tag = self._sequence(m)
        self._arithmetic(m, tag)
        return m

    def _sequence(self, m: Module) -> Signal:
        """Issues the reads."""
        inputs, heads = Signal(), Signal()  # jobs under way
        half, lane, last_lane = Signal(), Signal(lane_bits(self._config)), Signal(lane_bits(self._config))
        running = Signal()  # inside a head
        # Heads to be read, places for their scales; whether there are.
        complete, some_complete = Signal(2), Signal()
        free, some_free = Signal(range(PLACES + 1)), Signal()
        place = Signal(2)
        end = Signal()
        head_end = Signal()
        tag = Signal(scale_tag(self._config))
        counter = HeadCounter(m, self.heads, self.kv_heads, "count")
        lane_last = Signal()  # a cycle late: a lane takes two
        m.d.sync += [last_lane.eq(self.lanes - 1), lane_last.eq(lane == last_lane)]
        m.d.comb += [
            self.read.eq(inputs | (heads & (running | (some_complete & some_free)))),
            self.read_inputs.eq(inputs),
            self.read_half.eq(half),
            self.read_lane.eq(lane),
            self.read_parity.eq(~inputs & place[0]),
            end.eq(half & lane_last),  # a second half is read without a pause
            head_end.eq(end & ~inputs),
            self.captured.eq(head_end),
            tag.lane.eq(lane),
        ]
        with m.If(~inputs):
            m.d.comb += [tag.target.eq(counter.target), tag.head.eq(counter.head), tag.place.eq(place)]
        with m.If(self.read):
            m.d.sync += [half.eq(~half), running.eq(~inputs)]
            with m.If(half):
                m.d.sync += lane.eq(lane + 1)
        with m.If(end):
            m.d.sync += [lane.eq(0), running.eq(0), inputs.eq(0)]
        with m.If(head_end):
            counter.step(m)
            m.d.sync += place.eq(place + 1)
            with m.If(counter.last):
                m.d.sync += heads.eq(0)
        m.d.sync += [
            complete.eq(complete + self.head_settled - head_end),
            some_complete.eq(self.head_settled | complete[1] | (complete[0] & ~head_end)),
            free.eq(free + self.head_quantised - head_end),
            some_free.eq(self.head_quantised | (free[1:] != 0) | (free[0] & ~head_end)),
        ]
        with m.If(self.start_inputs):
            m.d.sync += inputs.eq(1)
        with m.If(self.start_heads):
            m.d.sync += [heads.eq(1), place.eq(0), complete.eq(0), free.eq(PLACES), *counter.reset()]
            m.d.sync += [some_complete.eq(0), some_free.eq(1)]
        return tag

    def _arithmetic(self, m: Module, tag: Signal) -> None:
        mul, recip, rsqrt = Multiplier.delay, Reciprocal.delay, ReciprocalSqrt.delay
        m.submodules.mean = mean = Multiplier()
        m.submodules.add = add = Adder()
        m.submodules.rsqrt = root = ReciprocalSqrt()
        m.d.comb += [
            mean.a.eq(self.ss),
            add.a.eq(mean.o),
            add.b.eq(self.eps),
            root.i.eq(add.o),
        ]
        # 1/n of what is read: of the inputs, or of a head's dimensions.
        of_inputs, inv_dim = Signal(), Signal(32)
        m.d.comb += of_inputs.eq(tag.target == Target.INPUTS)
        with m.Switch(self.head_dim[exact_log2(HEAD_DIM_MULTIPLE) :]):
            for n in range(1, self._config.max_head_dim // HEAD_DIM_MULTIPLE + 1):
                with m.Case(n):
                    m.d.comb += inv_dim.eq(int(bits(inverse_count(n * HEAD_DIM_MULTIPLE))))
        of_inputs_then = delay_line(m, of_inputs, Statistics.read_delay, "of_inputs")
        m.d.comb += mean.b.eq(Mux(of_inputs_then, self.inv_n, inv_dim))

        to_root = Statistics.read_delay + mul + Adder.delay + rsqrt
        tag_root = delay_line(m, tag, to_root, "tag_root", ring=True)
        normalised = Mux(of_inputs, self.norm_in, self.head_norm & (tag.target != Target.VALUE))
        narrow, narrow_r = Signal(), Signal(reset_less=True)
        if self._config.narrow_cache:
            key, value = (tag_root.target == t for t in (Target.KEY, Target.VALUE))
            m.d.comb += narrow.eq((key & self.k_narrow) | (value & self.v_narrow))
        m.d.sync += narrow_r.eq(narrow)
        most: Value = Mux(narrow_r, float_const(NARROW_LARGEST), float_const(LARGEST))
        narrow_late = delay_line(m, narrow_r, mul + 1, "narrow")
        part: Value = Mux(narrow_late, float_const(1 / NARROW_LARGEST), float_const(1 / LARGEST))
        if self._config.hadamard:
            turned = (tag_root.target == Target.QUERY) | (tag_root.target == Target.KEY)
            wide = register(m, turned & self.hadamard, "wide")
            most = Mux(wide, float_const(WIDE), most)
            part = Mux(delay_line(m, wide, mul + 1, "wide"), float_const(1 / WIDE), part)
        r = Signal(32, reset_less=True)
        m.d.sync += r.eq(Mux(delay_line(m, normalised, to_root, "normalised"), root.o, ONE))

        m.submodules.normal = normal = Multiplier()
        m.submodules.r127 = r127 = Multiplier()
        a = Signal(31, reset_less=True)
        smallest = int(bits(SMALLEST_ABSMAX))
        m.d.comb += [
            normal.a.eq(delay_line(m, self.amax, mul + Adder.delay + rsqrt + 1, "amax", ring=True)),
            normal.b.eq(r),
            r127.a.eq(r),
            r127.b.eq(most),
        ]
        # Not negative: patterns compare as integers, and NaN wins.
        m.d.sync += a.eq(Mux(normal.o[:31] > smallest, normal.o[:31], smallest))

        m.submodules.recip = inverse = Reciprocal()
        m.submodules.inv = inv = Multiplier()
        m.submodules.scale = scale = Multiplier()
        m.submodules.query = query = Multiplier()
        late = max(recip, mul)
        m.d.comb += [
            inverse.i.eq(a),
            inv.a.eq(delay_line(m, r127.o, 1 + late, "r127", ring=True)),
            inv.b.eq(delay_line(m, inverse.o, late - recip, "inverse", ring=True)),
            self.inv.eq(inv.o),
            scale.a.eq(a),
            scale.b.eq(part),
            query.a.eq(scale.o),
            query.b.eq(self.q_scale),
            self.scale.eq(delay_line(m, scale.o, late, "scale", ring=True)),
            self.query_scale.eq(delay_line(m, query.o, late - mul, "query", ring=True)),
            self.done.eq(delay_line(m, self.read & self.read_half, self.delay, "done", reset_less=False)),
            self.tag.eq(delay_line(m, tag_root, self.delay - to_root, "tag", ring=True)),
        ]
        if self._config.packing.group:
            m.d.comb += self.largest.eq(
                delay_line(m, self.amax, self.delay - Statistics.read_delay, "largest", ring=True)
            )
        assert to_root + 1 + mul + 1 + late + mul == self.delay
