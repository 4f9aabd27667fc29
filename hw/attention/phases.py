"""Order of work: descriptors are completed and handed to every part of the attention unit."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import clog2
from tellme.golden.kv import KvGeometry
from tellme.hw.attention.block import Sizes
from tellme.hw.interfaces import phase_layout
from tellme.hw.queues import ShortQueue

CONSUMERS = ("load", "play", "query", "score", "dump")
"""Parts that walk the phases, each at its own pace."""


class PhaseQueue(wiring.Component):
    """Works out what the parts need of a phase, and queues it for each of them.

    A phase every `spacing` cycles. `depth` phases may be under way between the fastest and the slowest part.

    Interface attributes
    --------------------
    head_mode, cells, group, head_first, head_count, split, k_narrow : see AttentionUnit.
    blocks : descriptors in execution order.
    load, play : stream of `Sizes.phase`, all phases.
    query, score : K phases.
    dump : V phases.
    """

    spacing = 5
    """Cycles from one phase to the next: a state each to take, to work out (three), and to give it."""
    depth = 4
    """Phases that the queue of a part holds."""

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        config = sizes.config
        lane = clog2(config.lanes)
        super().__init__(
            {
                "head_mode": In(1),
                "cells": In(16),
                "group": In(8),
                "head_first": In(lane),
                "head_count": In(lane + 1),
                "split": In(1),
                "k_narrow": In(1),
                "blocks": In(stream.Signature(phase_layout(config))),
                **{name: Out(stream.Signature(sizes.phase)) for name in CONSUMERS},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        phase = Signal(self.sizes.phase)
        given = Signal()
        taken = Signal()
        self._complete(m, phase, given, taken)
        ready = []
        for name in CONSUMERS:
            port = getattr(self, name)
            m.submodules[name] = queue = ShortQueue(self.sizes.phase, self.depth)
            wants = {"query": ~phase.v, "score": ~phase.v, "dump": phase.v}.get(name, 1)
            m.d.comb += [queue.payload.eq(phase), queue.write.eq(taken & wants)]
            wiring.connect(m, wiring.flipped(port), queue.out)
            ready.append(queue.room)
        m.d.comb += taken.eq(given & Cat(*ready).all())
        return m

    def _complete(self, m: Module, phase: Signal, given: Signal, taken: Signal) -> None:
        """Takes a descriptor and works `phase` out, a product or a sum a cycle; `given` until it is `taken`."""
        config = self.sizes.config
        kv = KvGeometry(config)
        key_bits = exact_log2(config.keys_per_beat)
        block = self.blocks.payload
        half = Signal()
        lanes = Signal(clog2(config.lanes) + 1)
        own_last = Signal(clog2(config.lanes))
        with m.FSM():
            with m.State("Take"):
                m.d.comb += self.blocks.ready.eq(1)
                with m.If(self.blocks.valid):
                    for name in ("v", "own", "first", "last", "final", "keys", "base", "unit_words", "parity"):
                        m.d.sync += phase[name].eq(block[name])
                    m.d.sync += [
                        phase.index.eq(block.block),
                        phase.half.eq(half),
                        phase.kv_head.eq(block.kv_head),
                        phase.lane_lo.eq(block.lane_lo),
                        phase.lane_hi.eq(block.lane_hi),
                    ]
                    with m.If(self.head_mode):
                        m.d.sync += [
                            phase.lane_lo.eq(self.head_first),
                            phase.lane_hi.eq(self.head_first + self.head_count - 1),
                            phase.own.eq(0),
                            phase.kv_head.eq(0),
                        ]
                    m.next = "Multiply"
            with m.State("Multiply"):
                m.d.sync += [
                    phase.narrow.eq(self.split & ~phase.own & (phase.v | self.k_narrow)),
                    phase.first_head.eq(phase.kv_head * self.group),
                    phase.kv_cell.eq(kv.own_head(phase.kv_head, self.cells)),
                    lanes.eq(phase.lane_hi - phase.lane_lo + 1),
                    own_last.eq((phase.lane_hi >> key_bits) - (phase.lane_lo >> key_bits)),
                ]
                m.next = "Count"
            with m.State("Count"):
                m.d.sync += [
                    phase.head_cell.eq(phase.first_head * self.cells),
                    phase.queries.eq(lanes * self.group),
                    phase.last_beat.eq(Mux(phase.own, own_last, (phase.keys - 1) >> (key_bits + phase.narrow))),
                ]
                m.next = "Sets"
            with m.State("Sets"):
                m.d.sync += [
                    phase.sets.eq(
                        (phase.queries - 1)
                        >> (Mux(self.split, exact_log2(self.sizes.set_queries), exact_log2(config.attention_lanes)))
                    ),
                    phase.last_query.eq(phase.queries - 1),
                    phase.beats.eq(phase.last_beat + 1),
                ]
                m.next = "Give"
            with m.State("Give"):
                m.d.comb += given.eq(1)
                with m.If(taken):
                    m.d.sync += half.eq(half ^ ~phase.v)
                    m.next = "Take"
