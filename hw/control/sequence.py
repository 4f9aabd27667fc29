"""Order of attention phases."""

from __future__ import annotations

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.hw.interfaces import PassParameters, phase_layout


class PhaseSequencer(wiring.Component):
    """Walks the units (KV head, lane group) of an ATTENTION and gives their phases in execution order.

    One phase a cycle within a part; finding a lane group costs a cycle a lane. Golden: `golden.schedule.phases`.

    Interface attributes
    --------------------
    start : pulse; `kv_heads` and `parameters` stay stable until `busy` falls.
    split : attention is split: a score word holds twice the keys.
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
                "split": In(1),
                "parameters": In(PassParameters(config)),
                "phases": Out(stream.Signature(phase_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        lane_bits = clog2(c.lanes)
        beat_key_bits = exact_log2(c.keys_per_beat)
        key_bits = exact_log2(c.key_block)
        unit_layout = data.StructLayout({"kv_head": 8, "lo": lane_bits, "hi": lane_bits, "parity": 1})
        # A unit's scores are computed while the values of the one before are summed: K of a unit, then V of its predecessor.
        scoring, summing = Signal(unit_layout), Signal(unit_layout)
        have_summing, exhausted, of_values = Signal(), Signal(), Signal()
        unit = Signal(unit_layout)
        m.d.comb += unit.eq(Mux(of_values, summing, scoring))

        cached, block, base = Signal(16), Signal(16), Signal(16)
        # Lanes and score words of the unit, less one; then with it. A sum a state: there is time.
        lane_span, word_span = Signal(lane_bits), Signal(lane_bits)
        own_last = Signal(lane_bits)
        own_keys, own_words = Signal(lane_bits + 1), Signal(lane_bits + 1)
        keys = Signal(16)  # of the cache block, and the score words of them
        words = Signal(16)
        last_lane = Signal(lane_bits)
        m.d.sync += last_lane.eq(self.parameters.lanes - 1)
        m.d.comb += own_last.eq(word_span >> self.split)
        unit_words = Signal(16)
        newest, newest_keys = Signal(16), Signal(16)

        phase = self.phases.payload
        last = Signal()
        m.d.comb += [
            phase.v.eq(of_values),
            phase.kv_head.eq(unit.kv_head),
            phase.lane_lo.eq(unit.lo),
            phase.lane_hi.eq(unit.hi),
            phase.parity.eq(unit.parity),
            phase.unit_words.eq(unit_words),
            phase.last.eq(last),
            phase.final.eq(of_values & exhausted & last),
        ]
        with m.FSM() as fsm:
            with m.State("Idle"):
                with m.If(self.start):
                    m.d.sync += [scoring.eq(0), have_summing.eq(0), exhausted.eq(0), of_values.eq(0)]
                    m.next = "Scan"
            with m.State("Scan"):
                with m.If((scoring.hi != last_lane) & self.parameters.same_slot.bit_select(scoring.hi, 1)):
                    m.d.sync += scoring.hi.eq(scoring.hi + 1)
                with m.Else():
                    m.next = "Part"
            with m.State("Part"):
                m.d.sync += [
                    cached.eq(self.parameters.position[unit.lo]),
                    lane_span.eq(unit.hi - unit.lo),
                    word_span.eq((unit.hi >> beat_key_bits) - (unit.lo >> beat_key_bits)),
                ]
                m.next = "Measure"
            with m.State("Measure"):
                m.d.sync += [
                    own_keys.eq(lane_span + 1),
                    own_words.eq(own_last + 1),
                    unit_words.eq(own_last + self._words(cached, 1)),
                    newest.eq((cached - 1) >> key_bits),
                    newest_keys.eq(((cached - 1) & (c.key_block - 1)) + 1),
                ]
                m.next = "Own"
            with m.State("Own"):
                m.d.comb += [
                    self.phases.valid.eq(1),
                    phase.own.eq(1),
                    phase.first.eq(1),
                    last.eq(cached == 0),
                    phase.keys.eq(own_keys),
                ]
                m.d.sync += [
                    block.eq(newest),
                    base.eq(own_words),
                    keys.eq(newest_keys),
                    words.eq(self._words(newest_keys)),
                ]
                with m.If(self.phases.ready):
                    m.next = "Next"
                    with m.If(cached != 0):
                        m.next = "Cache"
            with m.State("Cache"):
                m.d.comb += [
                    self.phases.valid.eq(1),
                    last.eq(block == 0),
                    phase.keys.eq(keys),
                    phase.base.eq(base),
                    phase.block.eq(block),
                ]
                with m.If(self.phases.ready):
                    m.d.sync += [block.eq(block - 1), base.eq(base + words)]
                    m.d.sync += [keys.eq(c.key_block), words.eq(Mux(self.split, c.key_tile // 2, c.key_tile))]
                    with m.If(block == 0):
                        m.next = "Next"
            with m.State("Next"):
                with m.If(of_values & exhausted):
                    m.next = "Idle"
                with m.Elif(~of_values & have_summing):
                    m.d.sync += of_values.eq(1)
                    m.next = "Part"
                with m.Else():
                    # V of the previous unit is done (or there is none): this unit becomes the previous one.
                    m.d.sync += [
                        summing.eq(scoring),
                        have_summing.eq(1),
                        of_values.eq(0),
                        scoring.parity.eq(~scoring.parity),
                    ]
                    m.next = "Scan"
                    with m.If(scoring.hi == last_lane):
                        m.d.sync += [scoring.lo.eq(0), scoring.hi.eq(0), scoring.kv_head.eq(scoring.kv_head + 1)]
                        with m.If(scoring.kv_head + 1 == self.kv_heads):
                            m.d.sync += [exhausted.eq(1), of_values.eq(1)]
                            m.next = "Part"
                    with m.Else():
                        m.d.sync += [scoring.lo.eq(scoring.hi + 1), scoring.hi.eq(scoring.hi + 1)]
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
        return m

    def _words(self, keys: Value, more: int = 0) -> Value:
        """Score words of so many cached keys, and `more`."""
        beat_key_bits = exact_log2(self.config.keys_per_beat)
        bits = [beat_key_bits + split for split in range(2 if self.config.narrow_cache else 1)]
        counts = [(keys + (((1 + more) << b) - 1)) >> b for b in bits]
        return Mux(self.split, counts[-1], counts[0])
