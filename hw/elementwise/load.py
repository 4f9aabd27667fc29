"""Loads from memory: gain, input features, rotary table."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import CHUNK, AcceleratorConfig, clog2
from tellme.hw.elementwise.common import CHUNK_LAYOUT, chunk_bits, count_bits, head_pitch, lane_bits


class Loader(wiring.Component):
    """Takes beats: gain_beats of the gain; x_beats of every lane, a chunk a cycle; rope_beats of every lane.

    Jobs that are started together run in that order.

    Parameters
    ----------
    config : the accelerator.

    Interface attributes
    --------------------
    load : In, stream of beats.
    start_gain, start_x, start_rope : In, pulses. A job of 0 beats ends at once.
    gain_beats, x_beats, rope_beats, inputs, lanes : In, the job; features from `inputs` on are dropped.
    gain_busy, x_busy, rope_busy : Out.
    gain_write, gain_addr; rope_write, rope_addr; beat : Out. A beat for one of the tables.
    x_valid, x_last, x_lane, x_chunk, x : Out. A chunk of input features; the last of the job.
    """

    def __init__(self, config: AcceleratorConfig):
        self._config = config
        gain_beats = config.max_features // config.word
        rope_beats = config.lanes * head_pitch(config) * CHUNK // config.word
        super().__init__(
            {
                "load": In(stream.Signature(8 * config.beat_bytes)),
                "start_gain": In(1),
                "start_x": In(1),
                "start_rope": In(1),
                "gain_beats": In(16),
                "x_beats": In(16),
                "rope_beats": In(16),
                "inputs": In(16),
                "lanes": In(count_bits(config)),
                "gain_busy": Out(1),
                "x_busy": Out(1),
                "rope_busy": Out(1),
                "gain_write": Out(1),
                "gain_addr": Out(range(gain_beats)),
                "rope_write": Out(1),
                "rope_addr": Out(range(rope_beats)),
                "beat": Out(8 * config.beat_bytes),
                "x_valid": Out(1),
                "x_last": Out(1),
                "x_lane": Out(lane_bits(config)),
                "x_chunk": Out(chunk_bits(config)),
                "x": Out(CHUNK_LAYOUT),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        parts = config.word // CHUNK
        gain, x, rope = Signal(), Signal(), Signal()  # jobs under way
        beat, last_beat = Signal(16), Signal(16)
        lane, last_lane = Signal(lane_bits(config)), Signal(lane_bits(config))
        part = Signal(clog2(parts))
        settle = Signal()  # last_beat follows the job by a cycle
        take, end = Signal(), Signal()
        starting = self.start_gain | self.start_x | self.start_rope
        m.d.sync += [last_lane.eq(self.lanes - 1), settle.eq(starting | end)]
        with m.If(gain):
            m.d.sync += last_beat.eq(self.gain_beats - 1)
        with m.Elif(x):
            m.d.sync += last_beat.eq(self.x_beats - 1)
        with m.Else():
            m.d.sync += last_beat.eq(self.rope_beats - 1)

        chunks = ~gain & x
        m.d.comb += [
            self.gain_busy.eq(gain),
            self.x_busy.eq(x),
            self.rope_busy.eq(rope),
            self.load.ready.eq((gain | rope | x) & ~settle & (~chunks | (part == parts - 1))),
            take.eq(self.load.ready & self.load.valid),
            end.eq(take & (beat == last_beat) & (gain | (lane == last_lane))),
        ]
        with m.If(take):
            m.d.sync += beat.eq(beat + 1)
            with m.If(beat == last_beat):
                m.d.sync += [beat.eq(0), lane.eq(lane + 1)]
        with m.If(end):
            m.d.sync += lane.eq(0)
            with m.If(gain):
                m.d.sync += gain.eq(0)
            with m.Elif(x):
                m.d.sync += x.eq(0)
            with m.Else():
                m.d.sync += rope.eq(0)
        with m.If(self.start_gain):
            m.d.sync += gain.eq(self.gain_beats != 0)
        with m.If(self.start_x):
            m.d.sync += x.eq(self.x_beats != 0)
        with m.If(self.start_rope):
            m.d.sync += rope.eq(self.rope_beats != 0)

        pitch = head_pitch(config) * CHUNK // config.word
        m.d.comb += [
            self.beat.eq(self.load.payload),
            self.gain_write.eq(take & gain),
            self.gain_addr.eq(beat),
            self.rope_write.eq(take & ~gain & ~x),
            self.rope_addr.eq(Cat(beat[: clog2(pitch)], lane) if pitch > 1 else lane),
        ]

        inputs, last_input = Signal(14), Signal(14)  # in chunks
        m.d.sync += [inputs.eq(self.inputs[2:]), last_input.eq(self.inputs[2:] - 1)]
        step = (chunks & self.load.valid) & ~settle
        chunk = Cat(part, beat) if parts > 1 else beat
        chunk = chunk[: len(self.x_chunk) + 1]
        with m.If(step):
            m.d.sync += part.eq(part + 1 if parts > 1 else 0)
        m.d.sync += [
            self.x_valid.eq(step & (chunk < inputs)),
            self.x_last.eq((lane == last_lane) & (chunk == last_input)),
            self.x_lane.eq(lane),
            self.x_chunk.eq(chunk),
            self.x.eq(self.load.payload.word_select(part, 32 * CHUNK)),
        ]
        return m
