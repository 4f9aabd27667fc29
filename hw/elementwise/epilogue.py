"""Epilogues of the linear layers. Golden: `golden.elementwise` scale, rope, residual, gate_relu2, gate_silu."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from tellme.golden.config import CHUNK, AcceleratorConfig
from tellme.golden.program import Kind
from tellme.hw.elementwise.common import (
    CHUNK_LAYOUT,
    ONE,
    chunk_bits,
    count_bits,
    head_pitch,
    lane_bits,
    with_flags,
)
from tellme.hw.elementwise.scales import HeadCounter, Target
from tellme.hw.elementwise.statistics import Statistics, chunk_info
from tellme.hw.elementwise.transpose import OCTET, Transposer
from tellme.hw.fp import Adder, Exponential, IntToFloat, Multiplier, Reciprocal
from tellme.hw.pipeline import delay_line, register

HEADS_AHEAD = 2
"""Heads whose maxima the statistics can hold; of sums of squares, which normalised heads need, they hold one."""


class Epilogue(wiring.Component):
    """Makes features of the rows of a matrix: four accumulators of a lane a cycle.

    All kinds share eight multipliers and four adders. A chunk of features comes out `delay(kind)` cycles after its
    rows left the transposer: for a gate every other cycle, two rows of gate and up making one feature each. Of QKV it
    comes out before RoPE, and back from the statistics, with the gain: the squares of a head are of the one, its maxima
    of the other.

    Parameters
    ----------
    config : the accelerator.

    Interface attributes
    --------------------
    start : In, pulse.
    kind, rows, lanes, scale0, scale1, scale2, gain_out, head_dim, heads, kv_heads : In, the job.
    rows_in : In, stream of rows.
    go : In, chunks may leave the transposer.
    captured : In, pulse: the statistics of a head are read, another may follow.
    act_lane, act_scale : activation scale of a lane, in the same cycle.
    x_lane, x_chunk, x : the residual stream, two cycles of latency.
    rope_lane, rope_chunk, rope : (cos, sin, cos, sin), two cycles of latency.
    gained : In. A chunk of QKV with its gain, from the statistics, which chunks enter a cycle after they come out here.
    turned : Out. It, rotated, Statistics.turn_delay cycles later.
    valid, last, head_last, keep, info, gain_chunk, v : Out. A chunk of features; `last` of the job, `head_last` of a head
        and all lanes; `keep`: it is the residual stream.
    """

    # Cycles after the issue of a chunk: scaled, y, and the features of each kind.
    _scaled = Transposer.delay + 1 + Multiplier.delay  # the scale; conversions of accumulators are no slower
    _y = _scaled + Multiplier.delay
    _qkv = _y
    _gained = _y + 1 + 1 + Statistics.gain_delay  # through the registers of this output and of the statistics' sources
    _residual = _y + 1 + Adder.delay
    _sigmoid = _y + Exponential.delay + 1 + Adder.delay + Reciprocal.delay
    _gate = _sigmoid + 1 + Multiplier.delay + 1 + Multiplier.delay

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "kind": In(range(len(Kind))),
                "rows": In(16),
                "lanes": In(count_bits(config)),
                "scale0": In(32),
                "scale1": In(32),
                "scale2": In(32),
                "gain_out": In(1),
                "head_dim": In(16),
                "heads": In(8),
                "kv_heads": In(8),
                "rows_in": In(stream.Signature(data.ArrayLayout(signed(config.row_width), config.lanes))),
                "go": In(1),
                "captured": In(1),
                "act_lane": Out(lane_bits(config)),
                "act_scale": In(32),
                "x_lane": Out(lane_bits(config)),
                "x_chunk": Out(chunk_bits(config)),
                "x": In(CHUNK_LAYOUT),
                "rope_lane": Out(lane_bits(config)),
                "rope_chunk": Out(range(head_pitch(config))),
                "rope": In(CHUNK_LAYOUT),
                "gained": In(CHUNK_LAYOUT),
                "turned": Out(CHUNK_LAYOUT),
                "valid": Out(1),
                "last": Out(1),
                "head_last": Out(1),
                "keep": Out(1),
                "info": Out(chunk_info(config)),
                "gain_chunk": Out(chunk_bits(config)),
                "v": Out(CHUNK_LAYOUT),
            }
        )

    @classmethod
    def delay(cls, kind: Kind) -> int:
        """Cycles from the issue of a chunk by the transposer to its features."""
        if kind == Kind.QKV:
            return cls._qkv + 1
        return 1 + (cls._residual if kind == Kind.RESIDUAL else cls._gate)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        self._is_qkv, self._is_residual, self._is_silu = Signal(), Signal(), Signal()
        m.d.comb += [
            self._is_qkv.eq(self.kind == Kind.QKV),
            self._is_residual.eq(self.kind == Kind.RESIDUAL),
            self._is_silu.eq(self.kind == Kind.GATE_SILU),
        ]
        y, state, tag = self._scale(m)
        self._features(m, y, state, tag)
        return m

    def _scale(self, m: Module) -> tuple[list[Signal], Signal, data.View]:
        """Numbers the chunks and multiplies with the scales; y, (valid, last, head_last) and the tag, at time `_y`."""
        config = self._config
        mul = Multiplier.delay
        m.submodules.transposer = rows = Transposer(config)
        connect(m, flipped(self.rows_in), rows.rows_in)
        m.d.comb += [rows.start.eq(self.start), rows.rows.eq(self.rows), rows.lanes.eq(self.lanes)]

        # ---- which chunk
        octet, last_octet = Signal(13), Signal(13)
        dim, last_dim = Signal(range(config.max_head_dim // OCTET)), Signal(range(config.max_head_dim // OCTET))
        parity = Signal()
        ahead = Signal(range(HEADS_AHEAD + 1))  # heads begun and not captured
        counter = HeadCounter(m, self.heads, self.kv_heads, "count")
        layout = data.StructLayout(
            {"lane": len(self.x_lane), "half": 1, "octet": 13, "dim": len(dim), "first": 1, "parity": 1, "target": 2}
        )
        tag = Signal(layout, reset_less=True)
        state = Signal(3)
        begin = rows.issue & rows.issue_first & (dim == 0) & self._is_qkv
        full = Mux(self.gain_out, ahead != 0, ahead == HEADS_AHEAD)
        m.d.comb += rows.go.eq(self.go & (~self._is_qkv | (dim != 0) | ~full))
        m.d.sync += [
            last_octet.eq(self.rows[3:] - 1),
            last_dim.eq(self.head_dim[3:] - 1),
            ahead.eq(ahead + begin - self.captured),
            tag.lane.eq(rows.issue_lane),
            tag.half.eq(rows.issue_half),
            tag.octet.eq(octet),
            tag.dim.eq(dim),
            tag.first.eq(Mux(self._is_qkv, dim < 4, Mux(self._is_residual, octet < 4, octet < 8))),
            tag.parity.eq(parity),
            tag.target.eq(counter.target),
            state.eq(
                Cat(
                    rows.issue,
                    rows.issue & rows.issue_last & (octet == last_octet),
                    rows.issue & rows.issue_last & (dim == last_dim) & self._is_qkv,
                )
            ),
        ]
        with m.If(rows.issue & rows.issue_last):
            m.d.sync += [octet.eq(octet + 1), dim.eq(dim + 1)]
            with m.If(dim == last_dim):
                m.d.sync += [dim.eq(0), parity.eq(~parity & self._is_qkv)]
                counter.step(m)
        with m.If(self.start):
            m.d.sync += [octet.eq(0), dim.eq(0), parity.eq(0), ahead.eq(0), *counter.reset()]

        # ---- y = acc * (weight scale * activation scale)
        even, odd, act = (Signal(32, name=n, reset_less=True) for n in ("even", "odd", "act"))
        m.d.comb += self.act_lane.eq(tag.lane)
        m.d.sync += act.eq(self.act_scale)
        with m.If(self._is_qkv & (tag.target != Target.QUERY)):
            m.d.sync += even.eq(Mux(tag.target == Target.KEY, self.scale1, self.scale2))
        with m.Else():
            m.d.sync += even.eq(self.scale0)
        m.d.sync += odd.eq(self.scale1)
        m.submodules.scale_even = scale_even = Multiplier()
        m.submodules.scale_odd = scale_odd = Multiplier()
        m.d.comb += [scale_even.a.eq(even), scale_even.b.eq(act), scale_odd.a.eq(odd), scale_odd.b.eq(act)]
        late = self._scaled - Transposer.delay - 1 - mul
        s_even = delay_line(m, scale_even.o, late, "s_even", ring=True)
        is_gate = ~self._is_qkv & ~self._is_residual
        s_odd = delay_line(m, Mux(is_gate, scale_odd.o, scale_even.o), late, "s_odd", ring=True)
        convert = [IntToFloat(config.row_width) for _ in range(CHUNK)]
        values = delay_line(m, rows.values, self._scaled - Transposer.delay - convert[0].delay, "values", ring=True)
        y = []
        for i in range(CHUNK):
            m.submodules[f"convert{i}"] = number = convert[i]
            m.submodules[f"scale{i}"] = scaled = Multiplier()
            m.d.comb += [number.i.eq(values[i]), scaled.a.eq(number.o), scaled.b.eq(s_odd if i % 2 else s_even)]
            y.append(scaled.o)

        # ---- operands that are there together with y
        tag = delay_line(m, tag, self._y - Transposer.delay - 2, "tag_read", ring=True)
        rope = delay_line(m, Cat(tag.half, tag.dim, tag.lane), self._gained - self._y, "rope_read", ring=True)
        m.d.comb += [
            Cat(self.rope_chunk, self.rope_lane).eq(rope),
            self.x_lane.eq(tag.lane),
            self.x_chunk.eq(Cat(tag.half, tag.octet)),
        ]
        tag = delay_line(m, tag, 2, "tag_y")
        return y, delay_line(m, state, self._y - Transposer.delay, "state_y", reset_less=False), tag

    def _features(self, m: Module, y: list[Signal], state: Signal, tag: data.View) -> None:
        """RoPE, residual sum or gate, on shared multipliers and adders."""
        mul = Multiplier.delay
        muls, adds, outs = [], [], []
        for i in range(2 * CHUNK):
            m.submodules[f"mul{i}"] = unit = Multiplier()
            a, b = Signal(32, name=f"mul{i}_a", reset_less=True), Signal(32, name=f"mul{i}_b", reset_less=True)
            m.d.comb += [unit.a.eq(a), unit.b.eq(b)]
            muls.append((a, b, unit.o))
        for i in range(CHUNK):
            m.submodules[f"add{i}"] = unit = Adder()
            a, b = Signal(32, name=f"add{i}_a", reset_less=True), Signal(32, name=f"add{i}_b", reset_less=True)
            m.d.comb += [unit.a.eq(a), unit.b.eq(b), unit.subtract.eq(self._is_qkv & (i % 2 == 0))]
            adds.append((a, b, unit.o))

        gates = []
        for p in range(CHUNK // 2):
            a, b = y[2 * p], y[2 * p + 1]
            front, back = self.gained[2 * p], self.gained[2 * p + 1]
            cos, sin = self.rope[2 * p], self.rope[2 * p + 1]
            even, odd = adds[2 * p], adds[2 * p + 1]
            m0, m1, m2, m3 = muls[4 * p : 4 * p + 4]

            # SiLU: a / (1 + exp(-a)) * b; the other gate takes the same time.
            m.submodules[f"exp{p}"] = exp = Exponential()
            m.submodules[f"recip{p}"] = recip = Reciprocal()
            m.d.comb += [exp.i.eq(a ^ 1 << 31), recip.i.eq(even[2])]
            gate = delay_line(m, a, self._sigmoid - self._y, f"gate{p}", ring=True)
            up = delay_line(m, b, self._sigmoid + 1 + mul - self._y, f"up{p}", ring=True)
            relu = Mux(gate[31], 0, gate)
            gates.append(m1[2])

            with m.If(self._is_qkv):
                m.d.sync += [m0[0].eq(front), m0[1].eq(cos), m1[0].eq(back), m1[1].eq(sin)]
            with m.Else():
                m.d.sync += [
                    m0[0].eq(Mux(self._is_silu, gate, relu)),
                    m0[1].eq(Mux(self._is_silu, recip.o, relu)),
                    m1[0].eq(m0[2]),
                    m1[1].eq(up),
                ]
            m.d.sync += [m2[0].eq(back), m2[1].eq(cos), m3[0].eq(front), m3[1].eq(sin)]

            with m.If(self._is_qkv):
                m.d.sync += [even[0].eq(m0[2]), even[1].eq(m1[2]), odd[0].eq(m2[2]), odd[1].eq(m3[2])]
            with m.Elif(self._is_residual):
                m.d.sync += [even[0].eq(self.x[2 * p]), even[1].eq(a), odd[0].eq(self.x[2 * p + 1]), odd[1].eq(b)]
            with m.Else():
                m.d.sync += [even[0].eq(ONE), even[1].eq(exp.o), odd[0].eq(0), odd[1].eq(0)]
            outs += [even[2], odd[2]]

        # ---- chunks: a gate's comes with the second half of an octet
        first_half = register(m, Cat(*gates), "first_half")
        chosen_state, chosen_tag = Signal(3), Signal(tag.shape())
        v = Signal(CHUNK_LAYOUT)
        m.d.comb += self.turned.as_value().eq(Cat(*outs))
        with m.If(self._is_qkv):
            m.d.comb += [chosen_state.eq(state), chosen_tag.eq(tag), v.as_value().eq(Cat(*y))]
        # A chunk that has left must not come out again at a later tap, when the next job is of another kind.
        state = Mux(self._is_qkv, 0, state)
        state, tag = with_flags(m, state, tag, self._residual - self._qkv, "residual")
        with m.If(self._is_residual):
            m.d.comb += [chosen_state.eq(state), chosen_tag.eq(tag), Cat(*(v[i] for i in range(CHUNK))).eq(Cat(*outs))]
        state = Mux(self._is_residual, 0, state)
        state, tag = with_flags(m, state, tag, self._gate - self._residual, "gate")
        with m.If(~self._is_qkv & ~self._is_residual):
            m.d.comb += [
                chosen_state.eq(Mux(tag.half, state, 0)),
                chosen_tag.eq(tag),
                v.as_value().eq(Cat(first_half, *gates)),
            ]
        whole = self._is_qkv | self._is_residual
        chunk = Signal(len(self.gain_chunk))
        keys, rotated = Signal(len(self.gain_chunk)), Signal()  # where the gain of keys begins: behind that of queries
        m.d.sync += keys.eq(self.head_dim[2:])
        m.d.comb += [
            chunk.eq(Mux(whole, Cat(chosen_tag.half, chosen_tag.octet), chosen_tag.octet)),
            rotated.eq(self._is_qkv & (chosen_tag.target != Target.VALUE)),
        ]
        in_head = Cat(chosen_tag.half, chosen_tag.dim) + Mux(chosen_tag.target == Target.KEY, keys, 0)
        valid = Signal(3)
        m.d.sync += [
            valid.eq(chosen_state),
            self.v.eq(v),
            self.keep.eq(self._is_residual),
            self.info.lane.eq(chosen_tag.lane),
            self.info.chunk.eq(chunk),
            self.gain_chunk.eq(Mux(self._is_qkv, in_head, chunk)),
            self.info.first.eq(chosen_tag.first),
            self.info.parity.eq(chosen_tag.parity),
            self.info.gain.eq(self.gain_out & (~self._is_qkv | rotated)),
            self.info.turn.eq(rotated),
        ]
        m.d.comb += Cat(self.valid, self.last, self.head_last).eq(valid)
