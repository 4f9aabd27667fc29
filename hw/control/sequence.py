"""Order of attention phases."""

from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.hw.interfaces import PassParameters, phase_layout


class PhaseSequencer(wiring.Component):
    """Walks the units (KV head, lane group) of an ATTENTION and gives their phases in execution order.

    One phase a cycle within a part; finding a lane group costs a cycle a lane. Golden: `golden.schedule.phases`.

    Interface attributes
    --------------------
    start : pulse; `kv_heads` and `parameters` stay stable until `busy` falls.
    parameters : lanes of the pass.
    phases : stream of `phase_layout`.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "busy": Out(1),
                "kv_heads": In(8),
                "parameters": In(PassParameters(config)),
                "phases": Out(stream.Signature(phase_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        lane_bits = clog2(c.lanes)
        kpb_bits = c.keys_per_beat.bit_length() - 1
        key_bits = c.key_block.bit_length() - 1
        unit = data.StructLayout({"kv_head": 8, "lo": lane_bits, "hi": lane_bits, "parity": 1})
        k = Signal(unit)
        v = Signal(unit)
        have_v = Signal()
        exhausted = Signal()
        part_v = Signal()
        cur = Signal(unit)
        m.d.comb += cur.eq(Mux(part_v, v, k))

        cached = Signal(16)
        block = Signal(16)
        base = Signal(16)
        # Lanes and score words of the unit, less one; then with it. A sum a state: there is time.
        lane_span = Signal(lane_bits)
        word_span = Signal(lane_bits)
        own_keys = Signal(lane_bits + 1)
        own_words = Signal(lane_bits + 1)
        keys = Signal(16)  # of the cache block, and the score words of them
        words = Signal(16)
        last_lane = Signal(lane_bits)
        m.d.sync += last_lane.eq(self.parameters.lanes - 1)
        unit_words = Signal(16)
        newest = Signal(16)
        newest_keys = Signal(16)

        p = self.phases.payload
        last = Signal()
        m.d.comb += [
            p.v.eq(part_v),
            p.kv_head.eq(cur.kv_head),
            p.lane_lo.eq(cur.lo),
            p.lane_hi.eq(cur.hi),
            p.parity.eq(cur.parity),
            p.unit_words.eq(unit_words),
            p.last.eq(last),
            p.final.eq(part_v & exhausted & last),
        ]
        with m.FSM() as fsm:
            with m.State("Idle"):
                with m.If(self.start):
                    m.d.sync += [k.eq(0), have_v.eq(0), exhausted.eq(0), part_v.eq(0)]
                    m.next = "Scan"
            with m.State("Scan"):
                with m.If((k.hi != last_lane) & self.parameters.same_slot.bit_select(k.hi, 1)):
                    m.d.sync += k.hi.eq(k.hi + 1)
                with m.Else():
                    m.next = "Part"
            with m.State("Part"):
                m.d.sync += [
                    cached.eq(self.parameters.position[cur.lo]),
                    lane_span.eq(cur.hi - cur.lo),
                    word_span.eq((cur.hi >> kpb_bits) - (cur.lo >> kpb_bits)),
                ]
                m.next = "Measure"
            with m.State("Measure"):
                m.d.sync += [
                    own_keys.eq(lane_span + 1),
                    own_words.eq(word_span + 1),
                    unit_words.eq(word_span + ((cached + (2 * c.keys_per_beat - 1)) >> kpb_bits)),
                    newest.eq((cached - 1) >> key_bits),
                    newest_keys.eq(((cached - 1) & (c.key_block - 1)) + 1),
                ]
                m.next = "Own"
            with m.State("Own"):
                m.d.comb += [
                    self.phases.valid.eq(1),
                    p.own.eq(1),
                    p.first.eq(1),
                    last.eq(cached == 0),
                    p.keys.eq(own_keys),
                ]
                m.d.sync += [
                    block.eq(newest),
                    base.eq(own_words),
                    keys.eq(newest_keys),
                    words.eq((newest_keys + (c.keys_per_beat - 1)) >> kpb_bits),
                ]
                with m.If(self.phases.ready):
                    m.next = "Next"
                    with m.If(cached != 0):
                        m.next = "Cache"
            with m.State("Cache"):
                m.d.comb += [
                    self.phases.valid.eq(1),
                    last.eq(block == 0),
                    p.keys.eq(keys),
                    p.base.eq(base),
                    p.block.eq(block),
                ]
                with m.If(self.phases.ready):
                    m.d.sync += [block.eq(block - 1), base.eq(base + words)]
                    m.d.sync += [keys.eq(c.key_block), words.eq(c.key_tile)]
                    with m.If(block == 0):
                        m.next = "Next"
            with m.State("Next"):
                with m.If(part_v & exhausted):
                    m.next = "Idle"
                with m.Elif(~part_v & have_v):
                    m.d.sync += part_v.eq(1)
                    m.next = "Part"
                with m.Else():
                    # V of the previous unit is done (or there is none): this unit becomes the previous one.
                    m.d.sync += [v.eq(k), have_v.eq(1), part_v.eq(0), k.parity.eq(~k.parity)]
                    m.next = "Scan"
                    with m.If(k.hi == last_lane):
                        m.d.sync += [k.lo.eq(0), k.hi.eq(0), k.kv_head.eq(k.kv_head + 1)]
                        with m.If(k.kv_head + 1 == self.kv_heads):
                            m.d.sync += [exhausted.eq(1), part_v.eq(1)]
                            m.next = "Part"
                    with m.Else():
                        m.d.sync += [k.lo.eq(k.hi + 1), k.hi.eq(k.hi + 1)]
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
        return m
