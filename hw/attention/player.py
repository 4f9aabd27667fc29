"""The runs of the attention unit, a beat a cycle from the tile store or the own K/V RAM."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.kv import KvGeometry
from tellme.hw.attention.block import SCORE_SPACING, Sizes, pointer_bits, tag_layout
from tellme.hw.attention.signatures import StorePort
from tellme.hw.interfaces import OwnReadPort
from tellme.hw.pipeline import wire


class _Place:
    """Where the player is: registers that every step of it reads."""

    def __init__(self, sizes: Sizes, pointer: int):
        self.active = Signal()
        self.phase = Signal(sizes.phase)
        self.cell = Signal(16)
        self.run_set = Signal(sizes.set_bits)
        self.beat = Signal(sizes.beat_bits)
        self.final_beat = Signal(sizes.beat_bits)
        self.word = Signal(sizes.word_bits)
        """Of the weights of the run's first beat."""
        self.row = Signal(16)
        """Of the own K/V RAM: {V, KV head, cell}."""
        self.half = Signal()
        """Of the weighted sums."""

        # Flags that move with `beat`.
        self.run_start = Signal()
        self.part_start = Signal()
        self.first_cell = Signal()
        self.last_beat = Signal()
        self.real = Signal()  # beat < phase.beats
        self.bundle_start = Signal()
        self.last_bundle = Signal()
        # A run takes SCORE_SPACING cycles or more, so what does not change in a run may come a cycle late.
        self.last_set = Signal()
        self.last_cell = Signal()

        # Pointers into all beats ever, modulo four rings.
        self.oldest = Signal(pointer)
        self.at = Signal(pointer)  # oldest + beat
        self.following = Signal(pointer)  # behind the cell's beats; a cycle late
        self.fresh = Signal()  # first cycle of a cell: following is not known yet
        self.own_beat = Signal(sizes.beat_bits)
        # Of a weighted sum: the beats of a bundle are there, and those of the first bundle behind the cell. Both a cycle
        # late, so they ask for a beat more than is needed, or for all of the cell.
        self.bundle_ready = Signal()
        self.next_ready = Signal()


class Player(wiring.Component):
    """Plays the runs: reads a beat a cycle from the tile store or the own K/V RAM, and tells every part what it is.

    Phases, cells, sets and beats without a gap. A run waits for its query operands (K), for the unit's weights (first
    phase of a V part), for the beats, and for a free half of the results of weighted sums. A dot run takes at least
    SCORE_SPACING cycles, a weighted sum whole bundles of `Sizes.depth` beats, of which none comes late.

    Interface attributes
    --------------------
    cells, kv_heads, split : see AttentionUnit.
    phases : all phases.
    store : the tile store's pointers and address.
    own : read port of the own K/V RAM; its grant is not waited for.
    weight_address : read port of the weight RAM, one cycle of latency.
    tag : what is issued, one cycle before the data of store, own RAM and weight RAM.
    queries_ready, swap : operands wait; pulse, they are taken.
    weights_ready : pulse, the weights of the next unit are complete.
    scored : pulse, the softmax has read a K phase.
    dumped : pulse, a half of the weighted sums is free.
    stall_memory, stall_softmax : see AttentionUnit.
    """

    def __init__(self, sizes: Sizes, depth: int):
        assert SCORE_SPACING >= 4 and sizes.depth >= 4  # what does not change in a run may come late
        self.sizes = sizes
        self.depth = depth
        config = sizes.config
        self.kv = KvGeometry(config)
        super().__init__(
            {
                "cells": In(16),
                "kv_heads": In(8),
                "split": In(1),
                "phases": In(stream.Signature(sizes.phase)),
                "store": Out(StorePort(sizes, depth)),
                "own": Out(OwnReadPort(config)),
                "weight_address": Out(sizes.word_bits),
                "tag": Out(tag_layout(sizes)),
                "swap": Out(1),
                "queries_ready": In(1),
                "weights_ready": In(1),
                "scored": In(1),
                "dumped": In(1),
                "stall_memory": Out(1),
                "stall_softmax": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        place = _Place(self.sizes, pointer_bits(self.depth))
        go = Signal()
        self._pointers(m, place)
        self._permit(m, place, go)
        self._issue(m, place, go)
        load = Signal()
        m.d.sync += [self.store.free.eq(0), self.store.free_beats.eq(place.phase.beats), place.fresh.eq(0)]
        self._advance(m, place, go, load)
        with m.If(~place.active):
            m.d.comb += load.eq(1)
        m.d.comb += self.phases.ready.eq(load)
        v_rows = Signal(16)
        m.d.sync += v_rows.eq(self.kv.own_values(self.kv_heads, self.cells))
        with m.If(load):
            self._begin(m, place, v_rows)
        return m

    def _pointers(self, m: Module, place: _Place) -> None:
        """Where the beats of the cell, of the bundle and of the next cell are, and whether they are there."""
        bundle_bits = exact_log2(self.sizes.depth)
        ahead = Signal.like(place.at)
        beyond = Signal.like(place.at)
        m.d.comb += [ahead.eq(self.store.stored + ~place.at), beyond.eq(self.store.stored - place.following)]
        m.d.sync += [
            place.following.eq(place.oldest + Mux(place.phase.own, 0, place.phase.beats)),
            place.bundle_ready.eq((~ahead[-1] & ahead[bundle_bits:-1].any()) | (~place.fresh & ~beyond[-1])),
            place.next_ready.eq(~place.fresh & ~beyond[-1] & beyond[bundle_bits:-1].any()),
        ]

    def _permit(self, m: Module, place: _Place, go: Signal) -> None:
        """Whether the beat may be issued: it is there (`enough`), and everything else that the run needs (`clear`)."""
        phase = place.phase
        scores_out = Signal(2)
        weights = Signal(2)
        credits = Signal(2, init=2)
        use_scores, use_weights, use_credit = Signal(), Signal(), Signal()
        m.d.sync += [
            scores_out.eq(scores_out + use_scores - self.scored),
            weights.eq(weights + self.weights_ready - use_weights),
            credits.eq(credits - use_credit + self.dumped),
        ]
        enough = Signal()
        clear = Signal()
        weighted = Signal()
        m.d.comb += weighted.eq(~(place.part_start & phase.first) | (weights != 0))
        with m.If(phase.v):
            m.d.comb += [
                enough.eq(phase.own | ~place.bundle_start | place.bundle_ready),
                clear.eq(weighted & (~(place.bundle_start & place.last_bundle) | (credits != 0))),
            ]
        with m.Else():
            m.d.comb += [
                enough.eq(phase.own | ~place.real | (self.store.stored[:-1] != place.at[:-1])),
                clear.eq(~place.run_start | (self.queries_ready & (~place.part_start | (scores_out != 2)))),
            ]
        m.d.comb += [
            go.eq(place.active & enough & clear),
            use_scores.eq(go & place.part_start & ~phase.v),
            use_weights.eq(go & place.part_start & phase.v & phase.first),
            use_credit.eq(go & phase.v & place.bundle_start & place.last_bundle),
            self.swap.eq(go & place.run_start & ~phase.v),
            self.stall_memory.eq(place.active & clear & ~enough),
            self.stall_softmax.eq(place.active & ~clear),
            # Also while the run waits for a moment: who shares the RAM should not have to wait for `go`.
            self.own.en.eq(
                place.active & phase.own & place.real & Mux(phase.v, weighted, ~place.run_start | self.queries_ready)
            ),
        ]

    def _issue(self, m: Module, place: _Place, go: Signal) -> None:
        """Addresses of the beat, and what it is."""
        sizes = self.sizes
        bundle_bits = exact_log2(sizes.depth)
        phase = place.phase
        tile_bits = exact_log2(sizes.config.key_tile)
        # When attention is split, a beat of bytes is one half's alone: its keys are half of a score word.
        halved = Signal()
        row = Signal(sizes.beat_bits)
        halves = Signal(2)
        m.d.comb += [
            halved.eq(self.split & ~phase.narrow),
            row.eq(Mux(halved, place.beat >> 1, place.beat)),
            halves.eq(Cat(~halved | ~place.beat[0], ~halved | place.beat[0])),
            self.store.address.eq(place.at),
            # No own key lies beyond the row's beats.
            self.own.address.eq(self.kv.own_address(place.row, place.own_beat[: exact_log2(self.kv.own_beats)])),
            self.weight_address.eq(place.word + row),
            self.tag.own.eq(phase.own),
            self.tag.narrow.eq(phase.narrow),
            self.tag.dot.eq(Mux(go & ~phase.v & place.real, halves, 0)),
            self.tag.swap.eq(self.swap),
            self.tag.sum.eq(go & phase.v),
            self.tag.real.eq(Mux(place.real, halves, 0)),
            self.tag.address.eq(
                Mux(self.split, Cat(row[: tile_bits - 1], place.run_set), Cat(row[:tile_bits], place.run_set))
            ),
            self.tag.half.eq(Mux(phase.v, place.half, phase.half)),
            self.tag.first.eq(Mux(phase.v, place.beat[bundle_bits:] == 0, place.first_cell)),
            self.tag.last.eq(Mux(phase.v, place.last_bundle, place.last_beat & place.last_set & place.last_cell)),
            self.tag.end.eq(go & ~phase.v & place.last_beat & place.last_set & place.last_cell),
            self.tag.step.eq(place.beat),
        ]

    def _advance(self, m: Module, place: _Place, go: Signal, load: Signal) -> None:
        """To the next beat, run (set), cell; `load`: behind the phase's last beat."""
        sizes = self.sizes
        bundle_bits = exact_log2(sizes.depth)
        phase, beat = place.phase, place.beat
        own_first = wire(m, phase.lane_lo >> exact_log2(sizes.config.keys_per_beat), "own_first")
        before_last = Signal(sizes.beat_bits)
        before_last_bundle = Signal(sizes.beat_bits - bundle_bits)
        one_bundle = Signal()
        final_cell = Signal(16)
        m.d.sync += [
            before_last.eq(place.final_beat - 1),
            before_last_bundle.eq(place.final_beat[bundle_bits:] - 1),
            one_bundle.eq(place.final_beat[bundle_bits:] == 0),
            final_cell.eq(self.cells - 1),
            place.last_set.eq(place.run_set == phase.sets),
            place.last_cell.eq(place.cell == final_cell),
        ]
        with m.If(go):
            m.d.sync += [
                beat.eq(beat + 1),
                place.at.eq(place.at + 1),
                place.own_beat.eq(place.own_beat + 1),
                place.run_start.eq(0),
                place.part_start.eq(0),
                place.last_beat.eq(beat == before_last),
                place.bundle_start.eq(beat[:bundle_bits].all()),
            ]
            with m.If(beat == phase.last_beat):
                m.d.sync += place.real.eq(0)
            with m.If(beat[:bundle_bits].all()):
                m.d.sync += place.last_bundle.eq(beat[bundle_bits:] == before_last_bundle)
            with m.If(place.last_beat):
                m.d.sync += [
                    beat.eq(0),
                    place.at.eq(place.oldest),
                    place.own_beat.eq(own_first),
                    place.run_start.eq(1),
                    place.last_beat.eq(0),
                    place.real.eq(1),
                    place.bundle_start.eq(1),
                    place.bundle_ready.eq(1),
                    place.last_bundle.eq(one_bundle),
                    place.run_set.eq(place.run_set + 1),
                    place.word.eq(place.word + phase.unit_words),
                    place.half.eq(place.half ^ phase.v),
                ]
                with m.If(place.last_set):
                    m.d.sync += [
                        self.store.free.eq(~phase.own),
                        place.oldest.eq(place.following),
                        place.at.eq(place.following),
                        place.fresh.eq(1),
                        place.bundle_ready.eq(place.next_ready),
                        place.run_set.eq(0),
                        place.cell.eq(place.cell + 1),
                        place.first_cell.eq(0),
                        place.row.eq(place.row + 1),
                        place.word.eq(Cat(phase.base, phase.parity)),
                    ]
                    with m.If(place.last_cell):
                        m.d.comb += load.eq(1)

    def _begin(self, m: Module, place: _Place, v_rows: Signal) -> None:
        """A phase, if there is one: its first beat is next."""
        sizes = self.sizes
        depth = sizes.depth
        phase = self.phases.payload
        m.d.sync += [
            place.active.eq(self.phases.valid),
            place.phase.eq(phase),
            place.cell.eq(0),
            place.run_set.eq(0),
            place.beat.eq(0),
            place.at.eq(Mux(place.active, place.following, place.oldest)),
            place.fresh.eq(1),
            place.own_beat.eq(phase.lane_lo >> exact_log2(sizes.config.keys_per_beat)),
            place.run_start.eq(1),
            place.part_start.eq(1),
            place.first_cell.eq(1),
            place.last_beat.eq(0),
            place.real.eq(1),
            place.bundle_start.eq(1),
            place.bundle_ready.eq(place.active & place.next_ready),
            place.last_bundle.eq(phase.last_beat[exact_log2(depth) :] == 0),
            # Whole bundles of values; of keys at least SCORE_SPACING cycles.
            place.final_beat.eq(
                Mux(
                    phase.v,
                    phase.last_beat | (depth - 1),
                    Mux(phase.last_beat < SCORE_SPACING - 1, SCORE_SPACING - 1, phase.last_beat),
                )
            ),
            place.word.eq(Cat(phase.base, phase.parity)),
            place.row.eq(phase.kv_cell + Mux(phase.v, v_rows, 0)),
        ]
