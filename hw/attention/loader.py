"""The attention unit's part of the stream: scales to their RAMs, keys and values to the tile store."""

from __future__ import annotations

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import clog2
from tellme.hw.attention.block import Sizes
from tellme.hw.attention.signatures import ScalePort, StorePort
from tellme.hw.interfaces import OwnScalePort


class TileLoader(wiring.Component):
    """Takes the stream's beats: scales to the scale RAMs, K and V to the tile store, ahead of the runs; copies own
    scales.

    One beat a cycle while there is room; a cycle a phase between. The store is a ring of 4 * key_tile beats.

    Interface attributes
    --------------------
    head_mode, cells : see AttentionUnit.
    phases : all phases.
    beats : the stream.
    store : what the player reads, and frees.
    store_data : the beat at the player's address, a cycle later.
    own_scales : read port of the scales of own keys.
    scale_free : pulse of bit h, the scales of half h are used.
    scales_ready : bit h, they are complete.
    scales : read port of the scales.
    """

    store_delay = 2
    """From the cycle that takes a beat to the one in which `stored` counts it."""
    scale_delay = 2
    """From the cycle that completes a phase's scales to `scales_ready`."""
    own_scale_cycles = 2
    """Of a lane: its K and its V scale."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        config = sizes.config
        self.depth = 4 * config.key_tile
        super().__init__(
            {
                "head_mode": In(1),
                "cells": In(16),
                "phases": In(stream.Signature(sizes.phase)),
                "beats": In(stream.Signature(8 * config.beat_bytes)),
                "store": In(StorePort(sizes, self.depth)),
                "store_data": Out(8 * config.beat_bytes),
                "own_scales": Out(OwnScalePort(config)),
                "scale_free": In(2),
                "scales_ready": Out(2),
                "scales": In(ScalePort(sizes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.sizes.config
        beat_bits = 8 * config.beat_bytes
        # What comes is registered, then written.
        taken = Signal(beat_bits, reset_less=True)
        accept = Signal()  # a beat for the store is taken
        to_scales = Signal(2)
        row = Signal(1 + clog2(config.scale_beats), reset_less=True)
        mask = Signal(config.word, reset_less=True)
        room = self._store(m, taken, accept)
        self._scale_memories(m, taken, to_scales, row, mask)
        # States in which beats are taken, in registers of their own: much hangs on `ready`.
        scaling, storing = Signal(), Signal()
        incoming = Signal()
        m.d.comb += [incoming.eq(scaling | (storing & room)), self.beats.ready.eq(incoming)]
        m.d.sync += to_scales.eq(0)
        with m.If(incoming):
            m.d.sync += [taken.eq(self.beats.payload), mask.eq(~0)]
        lane, value = self._own_scales(m, taken, to_scales, row, mask)
        self._order(m, scaling, storing, incoming, accept, to_scales, row, lane, value)
        return m

    def _store(self, m: Module, taken: Signal, accept: Signal) -> Signal:
        """The tile store. Returns whether it has room for a beat."""
        m.submodules.store = store = Memory(shape=taken.shape(), depth=self.depth, init=[])
        put = store.write_port()
        get = store.read_port()
        to_store = Signal()
        held = Signal(range(self.depth + 1))
        # For one more than was accepted two cycles ago and in the last two: no path from the stream's `valid` into the
        # count.
        room = Signal()
        m.d.comb += [
            get.addr.eq(self.store.address),
            get.en.eq(1),
            self.store_data.eq(get.data),
            put.addr.eq(self.store.stored),
            put.data.eq(taken),
            put.en.eq(to_store),
        ]
        with m.If(to_store):
            m.d.sync += self.store.stored.eq(self.store.stored + 1)
        m.d.sync += [
            held.eq(held + to_store - Mux(self.store.free, self.store.free_beats, 0)),
            room.eq(held < self.depth - 2),
            to_store.eq(accept),
        ]
        return room

    def _scale_memories(self, m: Module, taken: Signal, to_scales: Signal, row: Signal, mask: Signal) -> None:
        """Scales of K and of V, a beat a word; `mask` chooses which of a beat are written."""
        config = self.sizes.config
        beat_bits, keys = 8 * config.beat_bytes, config.keys_per_beat
        column_bits = exact_log2(config.word // keys)
        for i, (name, out) in enumerate((("k", self.scales.k), ("v", self.scales.v))):
            m.submodules[f"{name}_scale"] = memory = Memory(shape=beat_bits, depth=2 * config.scale_beats, init=[])
            write = memory.write_port(granularity=32)
            read = memory.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(row),
                write.data.eq(taken),
                write.en.eq(Mux(to_scales[i], mask, 0)),
                read.addr.eq(self.scales.address >> column_bits),
            ]
            parts = Array(read.data[at : at + 32 * keys] for at in range(0, beat_bits, 32 * keys))
            m.d.sync += out.eq(parts[self.scales.address[:column_bits]])

    def _own_scales(
        self, m: Module, taken: Signal, to_scales: Signal, row: Signal, mask: Signal
    ) -> tuple[Signal, Signal]:
        """Own scales, one a cycle, to where those of cached keys would be. Returns the lane, and 0 for K or 1 for V."""
        config = self.sizes.config
        phase = self.phases.payload
        key_bits = exact_log2(config.keys_per_beat)
        lane = Signal(clog2(config.lanes))
        value = Signal()
        position = Signal(clog2(config.lanes) + 1)
        m.d.comb += [
            position.eq(lane - (phase.lane_lo >> key_bits << key_bits)),
            self.own_scales.v.eq(value),
            self.own_scales.head.eq(phase.kv_head),
            self.own_scales.lane.eq(lane),
        ]
        read = Signal()
        read_v = Signal()
        read_position = Signal.like(position)
        read_row = Signal(clog2(config.scale_beats))
        m.d.comb += read_row.eq(read_position >> exact_log2(config.word))
        m.d.sync += [read.eq(self.own_scales.en), read_v.eq(value), read_position.eq(position)]
        with m.If(read):
            m.d.sync += [
                taken.eq(Cat(*[self.own_scales.data] * config.word)),
                to_scales.eq(Cat(~read_v, read_v)),
                mask.eq(1 << (read_position & (config.word - 1))),
                row.eq(Cat(read_row, phase.half)),
            ]
        return lane, value

    def _order(
        self,
        m: Module,
        scaling: Signal,
        storing: Signal,
        incoming: Signal,
        accept: Signal,
        to_scales: Signal,
        row: Signal,
        lane: Signal,
        value: Signal,
    ) -> None:
        """Phase by phase: scales (of K phases) once their half of the RAMs is free, then the beats of every cell."""
        config = self.sizes.config
        phase = self.phases.payload
        beat = Signal(range(max(config.key_tile, config.scale_beats)))
        cell = Signal(16)
        last_scale = Signal(range(max(2, config.scale_beats)))
        last_cell = Signal(16)
        complete = Signal(2)
        complete_late = Signal(2)
        busy = Signal(2)
        m.d.sync += [
            last_scale.eq(Mux(self.head_mode, config.scale_beats - 1, (phase.keys - 1) >> exact_log2(config.word))),
            last_cell.eq(self.cells - 1),
            complete_late.eq(complete),
            self.scales_ready.eq((self.scales_ready | complete_late) & ~self.scale_free),
            busy.eq(busy & ~self.scale_free),
        ]
        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [beat.eq(0), cell.eq(0), lane.eq(phase.lane_lo), value.eq(0)]
                with m.If(self.phases.valid):
                    with m.If(phase.v):
                        with m.If(phase.own):
                            m.d.comb += self.phases.ready.eq(1)
                        with m.Else():
                            m.d.sync += storing.eq(1)
                            m.next = "Data"
                    with m.Elif(~busy.bit_select(phase.half, 1)):
                        m.d.sync += [busy.bit_select(phase.half, 1).eq(1), scaling.eq(~phase.own)]
                        m.next = "K-Scales"
                        with m.If(phase.own):
                            m.next = "Own-Scales"
            with m.State("Own-Scales"):
                m.d.comb += self.own_scales.en.eq(1)
                m.d.sync += value.eq(~value)
                with m.If(value):
                    m.d.sync += lane.eq(lane + 1)
                    with m.If(lane == phase.lane_hi):
                        m.next = "Own-Last"
            with m.State("Own-Last"):
                # The last scale is on its way; the phase must stay until it is written.
                m.d.comb += [complete.eq(1 << phase.half), self.phases.ready.eq(1)]
                m.next = "Idle"
            for i, name in enumerate(("K-Scales", "V-Scales")):
                with m.State(name):
                    with m.If(self.beats.valid):
                        m.d.sync += [
                            to_scales.eq(1 << i),
                            row.eq(Cat(beat[: clog2(config.scale_beats)], phase.half)),
                            beat.eq(beat + 1),
                        ]
                        with m.If(beat == last_scale):
                            m.d.sync += beat.eq(0)
                            m.next = "V-Scales"
                            with m.If(self.head_mode | (i == 1)):
                                m.d.comb += complete.eq(1 << phase.half)
                                m.d.sync += [scaling.eq(0), storing.eq(1)]
                                m.next = "Data"
            with m.State("Data"):
                with m.If(incoming & self.beats.valid):
                    m.d.comb += accept.eq(1)
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(beat == phase.last_beat):
                        m.d.sync += [beat.eq(0), cell.eq(cell + 1)]
                        with m.If(cell == last_cell):
                            m.d.comb += self.phases.ready.eq(1)
                            m.d.sync += storing.eq(0)
                            m.next = "Idle"
