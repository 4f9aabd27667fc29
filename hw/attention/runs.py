"""Order of work: descriptors are completed and handed to every part; beats are stored; runs are played from the
store."""

from __future__ import annotations

from amaranth import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.config import clog2
from tellme.golden.kv import KvGeometry
from tellme.hw.attention.block import SCORE_SPACING, Sizes, log2
from tellme.hw.interfaces import phase_layout
from tellme.hw.pipeline import wire
from tellme.hw.queues import ShortQueue

CONSUMERS = ("load", "play", "query", "score", "dump")
"""Parts that walk the phases, each at its own pace."""


class PhaseQueue(wiring.Component):
    """Works out what the parts need of a phase, and queues it for each of them.

    A phase every 4 cycles. Four phases may be under way between the fastest and the slowest part.

    Interface attributes
    --------------------
    blocks : descriptors in execution order.
    <part>, of CONSUMERS : stream of `Sizes.phase`: all phases (load, play), K phases (query, score), V phases (dump).
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        c = sizes.config
        lane = clog2(c.lanes)
        super().__init__(
            {
                "head_mode": In(1),
                "cells": In(16),
                "group": In(8),
                "head_first": In(lane),
                "head_count": In(lane + 1),
                "blocks": In(stream.Signature(phase_layout(c))),
                **{name: Out(stream.Signature(sizes.phase)) for name in CONSUMERS},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        z = self.sizes
        c = z.config
        kpb = log2(c.keys_per_beat)
        block = self.blocks.payload
        phase = Signal(z.phase)
        half = Signal()
        lanes = Signal(clog2(c.lanes) + 1)
        own_last = Signal(clog2(c.lanes))
        out_valid = Signal()
        taken = Signal()
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
                    phase.first_head.eq(phase.kv_head * self.group),
                    phase.kv_cell.eq(phase.kv_head * self.cells),
                    lanes.eq(phase.lane_hi - phase.lane_lo + 1),
                    own_last.eq((phase.lane_hi >> kpb) - (phase.lane_lo >> kpb)),
                ]
                m.next = "Count"
            with m.State("Count"):
                m.d.sync += [
                    phase.head_cell.eq(phase.first_head * self.cells),
                    phase.queries.eq(lanes * self.group),
                    phase.last_beat.eq(Mux(phase.own, own_last, (phase.keys - 1) >> kpb)),
                ]
                m.next = "Sets"
            with m.State("Sets"):
                m.d.sync += [
                    phase.sets.eq((phase.queries - 1) >> log2(c.attention_lanes)),
                    phase.last_query.eq(phase.queries - 1),
                    phase.beats.eq(phase.last_beat + 1),
                ]
                m.next = "Give"
            with m.State("Give"):
                m.d.comb += out_valid.eq(1)
                with m.If(taken):
                    m.d.sync += half.eq(half ^ ~phase.v)
                    m.next = "Take"

        ready = []
        for name in CONSUMERS:
            port = getattr(self, name)
            m.submodules[name] = queue = ShortQueue(z.phase, 4)
            wants = {"query": ~phase.v, "score": ~phase.v, "dump": phase.v}.get(name, 1)
            m.d.comb += [
                queue.payload.eq(phase),
                queue.write.eq(taken & wants),
                port.payload.eq(queue.out.payload),
                port.valid.eq(queue.out.valid),
                queue.out.ready.eq(port.ready),
            ]
            ready.append(queue.room)
        m.d.comb += taken.eq(out_valid & Cat(*ready).all())
        return m


class Loader(wiring.Component):
    """Takes the stream's beats: scales to the scale RAMs, K and V to the tile store, ahead of the runs; copies own
    scales.

    One beat a cycle while there is room; a cycle a phase between. The store is a ring of 4 * key_tile beats.

    Interface attributes
    --------------------
    phases : all phases. beats : the stream.
    stored : beats stored ever, modulo four rings. free : pulse with `free_beats`, the player is done with these.
    read_address -> read_data : store, counted from the oldest beat ever (modulo its depth), 1 cycle.
    scale_free : bit h: pulse, the scales of half h are used. scales_ready : bit h: they are complete.
    k_address, v_address -> k_scales, v_scales : keys_per_beat scales at {half, beat of the tile}, 1 cycle.
    """

    def __init__(self, sizes: Sizes):
        self.sizes = sizes
        c = sizes.config
        lane = clog2(c.lanes)
        self.depth = 4 * c.key_tile
        scales = data.ArrayLayout(32, c.keys_per_beat)
        super().__init__(
            {
                "head_mode": In(1),
                "cells": In(16),
                "phases": In(stream.Signature(sizes.phase)),
                "beats": In(stream.Signature(8 * c.beat_bytes)),
                "stored": Out(pointer_bits(self.depth)),
                "free": In(1),
                "free_beats": In(sizes.beat_bits),
                "read_address": In(log2(self.depth)),
                "read_data": Out(8 * c.beat_bytes),
                "own_scale_v": Out(1),
                "own_scale_head": Out(8),
                "own_scale_lane": Out(lane),
                "own_scale_en": Out(1),
                "own_scale_data": In(32),
                "scale_free": In(2),
                "scales_ready": Out(2),
                "scale_address": In(1 + log2(c.key_tile)),
                "k_scales": Out(scales),
                "v_scales": Out(scales),
                "waiting": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        z = self.sizes
        c = z.config
        kpb = c.keys_per_beat
        p = self.phases.payload

        m.submodules.store = store = Memory(shape=8 * c.beat_bytes, depth=self.depth, init=[])
        put = store.write_port()
        get = store.read_port()
        m.d.comb += [get.addr.eq(self.read_address), get.en.eq(1), self.read_data.eq(get.data)]

        # ---- what comes is registered, then written ----------------------------------------------
        taken = Signal(8 * c.beat_bytes, reset_less=True)
        to_store = Signal()
        to_scales = Signal(2)
        row = Signal(1 + clog2(c.scale_beats), reset_less=True)
        mask = Signal(c.word, reset_less=True)
        m.d.comb += [put.addr.eq(self.stored), put.data.eq(taken), put.en.eq(to_store)]
        with m.If(to_store):
            m.d.sync += self.stored.eq(self.stored + 1)
        held = Signal(range(self.depth + 1))
        accept = Signal()
        # For one more than was accepted two cycles ago and in the last two: no path from the stream's `valid` into the count.
        room = Signal()
        m.d.sync += [
            held.eq(held + to_store - Mux(self.free, self.free_beats, 0)),
            room.eq(held < self.depth - 2),
            to_store.eq(accept),
        ]

        scale_read = []
        for i, name in enumerate(("k", "v")):
            m.submodules[f"{name}_scale"] = memory = Memory(shape=8 * c.beat_bytes, depth=2 * c.scale_beats, init=[])
            write = memory.write_port(granularity=32)
            read = memory.read_port(domain="comb")
            m.d.comb += [
                write.addr.eq(row),
                write.data.eq(taken),
                write.en.eq(Mux(to_scales[i], mask, 0)),
                read.addr.eq(self.scale_address >> log2(c.word // kpb)),
            ]
            scale_read.append((read.data, self.k_scales if name == "k" else self.v_scales))
        column = self.scale_address[: log2(c.word // kpb)]
        for value, out in scale_read:
            parts = Array(value[i : i + 32 * kpb] for i in range(0, 8 * c.beat_bytes, 32 * kpb))
            m.d.sync += out.eq(parts[column])

        # ---- own scales, one a cycle -------------------------------------------------------------
        lane = Signal(clog2(c.lanes))
        value = Signal()
        position = Signal(clog2(c.lanes) + 1)
        m.d.comb += [
            position.eq(lane - (p.lane_lo >> log2(kpb) << log2(kpb))),
            self.own_scale_v.eq(value),
            self.own_scale_head.eq(p.kv_head),
            self.own_scale_lane.eq(lane),
        ]
        own_read = Signal()
        own_v = Signal()
        own_position = Signal.like(position)
        own_row = Signal(clog2(c.scale_beats))
        m.d.comb += own_row.eq(own_position >> log2(c.word))
        m.d.sync += [own_read.eq(self.own_scale_en), own_v.eq(value), own_position.eq(position)]

        # ---- order -------------------------------------------------------------------------------
        beat = Signal(range(max(c.key_tile, c.scale_beats)))
        cell = Signal(16)
        last_scale = Signal(range(max(2, c.scale_beats)))
        last_cell = Signal(16)
        m.d.sync += [
            last_scale.eq(Mux(self.head_mode, c.scale_beats - 1, (p.keys - 1) >> log2(c.word))),
            last_cell.eq(self.cells - 1),
        ]
        complete = Signal(2)
        complete_late = Signal(2)
        m.d.sync += [
            complete_late.eq(complete),
            self.scales_ready.eq((self.scales_ready | complete_late) & ~self.scale_free),
        ]
        busy = Signal(2)
        m.d.sync += busy.eq(busy & ~self.scale_free)
        # States in which beats are taken, in registers of their own: much hangs on `ready`.
        scaling, storing = Signal(), Signal()
        incoming = Signal()
        m.d.comb += [incoming.eq(scaling | (storing & room)), self.beats.ready.eq(incoming)]
        m.d.sync += to_scales.eq(0)
        with m.If(incoming):
            m.d.sync += taken.eq(self.beats.payload)
            m.d.sync += mask.eq(~0)
        with m.If(own_read):
            m.d.sync += [
                taken.eq(Cat(*[self.own_scale_data] * c.word)),
                to_scales.eq(Cat(~own_v, own_v)),
                mask.eq(1 << (own_position & (c.word - 1))),
                row.eq(Cat(own_row, p.half)),
            ]
        with m.FSM():
            with m.State("Idle"):
                m.d.sync += [beat.eq(0), cell.eq(0), lane.eq(p.lane_lo), value.eq(0)]
                with m.If(self.phases.valid):
                    with m.If(p.v):
                        with m.If(p.own):
                            m.d.comb += self.phases.ready.eq(1)
                        with m.Else():
                            m.d.sync += storing.eq(1)
                            m.next = "Data"
                    with m.Elif(~busy.bit_select(p.half, 1)):
                        m.d.sync += [busy.bit_select(p.half, 1).eq(1), scaling.eq(~p.own)]
                        m.next = "K-Scales"
                        with m.If(p.own):
                            m.next = "Own-Scales"
            with m.State("Own-Scales"):
                m.d.comb += self.own_scale_en.eq(1)
                m.d.sync += value.eq(~value)
                with m.If(value):
                    m.d.sync += lane.eq(lane + 1)
                    with m.If(lane == p.lane_hi):
                        m.next = "Own-Last"
            with m.State("Own-Last"):
                # The last scale is on its way; p must stay until it is written.
                m.d.comb += [complete.eq(1 << p.half), self.phases.ready.eq(1)]
                m.next = "Idle"
            for i, name in enumerate(("K-Scales", "V-Scales")):
                with m.State(name):
                    with m.If(self.beats.valid):
                        m.d.sync += [
                            to_scales.eq(1 << i),
                            row.eq(Cat(beat[: clog2(c.scale_beats)], p.half)),
                            beat.eq(beat + 1),
                        ]
                        with m.If(beat == last_scale):
                            m.d.sync += beat.eq(0)
                            m.next = "V-Scales"
                            with m.If(self.head_mode | (i == 1)):
                                m.d.comb += complete.eq(1 << p.half)
                                m.d.sync += [scaling.eq(0), storing.eq(1)]
                                m.next = "Data"
            with m.State("Data"):
                with m.If(incoming & self.beats.valid):
                    m.d.comb += accept.eq(1)
                    m.d.sync += beat.eq(beat + 1)
                    with m.If(beat == p.last_beat):
                        m.d.sync += [beat.eq(0), cell.eq(cell + 1)]
                        with m.If(cell == last_cell):
                            m.d.comb += self.phases.ready.eq(1)
                            m.d.sync += storing.eq(0)
                            m.next = "Idle"
        m.d.comb += self.waiting.eq(incoming & ~self.beats.valid)
        return m


class Player(wiring.Component):
    """Plays the runs: reads a beat a cycle from the tile store or the own K/V RAM, and tells every part what it is.

    Phases, cells, sets and beats without a gap. A run waits for its query operands (K), for the unit's weights (first
    phase of a V part), for the beats, and for a free half of the results of weighted sums. A dot run takes at least
    SCORE_SPACING cycles, a weighted sum whole groups of `Sizes.depth` beats, of which none comes late.

    Interface attributes
    --------------------
    tag : what is issued, one cycle before the data of store, own RAM and weight RAM.
    weights_ready : pulse, the weights of the next unit are complete. scored : pulse, the softmax has read a K phase.
    stored, free, free_beats : see Loader.
    dumped : pulse, a half of the weighted sums is free. queries_ready : operands wait; `swap` takes them.
    """

    def __init__(self, sizes: Sizes, depth: int):
        self.sizes = sizes
        self.depth = depth
        c = sizes.config
        self.own_beats = KvGeometry(c).own_beats
        super().__init__(
            {
                "start": In(1),
                "cells": In(16),
                "kv_heads": In(8),
                "phases": In(stream.Signature(sizes.phase)),
                "stored": In(pointer_bits(depth)),
                "free": Out(1),
                "free_beats": Out(sizes.beat_bits),
                "store_address": Out(log2(depth)),
                "own_addr": Out(own_bits(sizes)),
                "own_en": Out(1),
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
        z = self.sizes
        c = z.config
        depth = z.depth
        group_bits = log2(depth)
        active = Signal()
        p = Signal(z.phase)
        cell = Signal(16)
        run_set = Signal(z.set_bits)
        o = Signal(z.beat_bits)
        last_o = Signal(z.beat_bits)
        word = Signal(z.word_bits)
        row = Signal(16)
        half = Signal()
        v_rows = Signal(16)
        final_cell = Signal(16)
        m.d.sync += [v_rows.eq(self.kv_heads * self.cells), final_cell.eq(self.cells - 1)]

        scores_out = Signal(2)
        weights = Signal(2)
        credits = Signal(2, init=2)
        use_scores, use_weights, use_credit = Signal(), Signal(), Signal()
        m.d.sync += [
            scores_out.eq(scores_out + use_scores - self.scored),
            weights.eq(weights + self.weights_ready - use_weights),
            credits.eq(credits - use_credit + self.dumped),
        ]

        # ---- where the run is: flags that move with o ----------------------------------------------
        run_start = Signal()
        part_start = Signal()
        first_cell = Signal()
        last_beat = Signal()
        real = Signal()  # o < p.beats
        group_start = Signal()
        last_group = Signal()
        # A run takes SCORE_SPACING cycles or more, so what does not change in a run may come a cycle late.
        before_last = Signal(z.beat_bits)
        before_last_group = Signal(z.beat_bits - group_bits)
        one_group = Signal()
        last_set = Signal()
        last_cell = Signal()
        assert SCORE_SPACING >= 4 and depth >= 4
        m.d.sync += [
            before_last.eq(last_o - 1),
            before_last_group.eq(last_o[group_bits:] - 1),
            one_group.eq(last_o[group_bits:] == 0),
            last_set.eq(run_set == p.sets),
            last_cell.eq(cell == final_cell),
        ]

        # ---- where its beats are: pointers into all beats ever, modulo four rings -------------------
        bits = pointer_bits(self.depth)
        oldest = Signal(bits)
        at = Signal(bits)  # oldest + o
        following = Signal(bits)  # behind the cell's beats; a cycle late
        fresh = Signal()  # first cycle of a cell: following is not known yet
        own_beat = Signal(z.beat_bits)
        own_first = wire(m, p.lane_lo >> log2(c.keys_per_beat), "own_first")
        m.d.sync += following.eq(oldest + Mux(p.own, 0, p.beats))
        # Of a weighted sum: the beats of a group are there, and those of the first group behind the cell. Both a cycle
        # late, so they ask for a beat more than is needed, or for all of the cell.
        ahead = Signal(bits)
        beyond = Signal(bits)
        group_ready = Signal()
        next_ready = Signal()
        m.d.comb += [ahead.eq(self.stored + ~at), beyond.eq(self.stored - following)]
        m.d.sync += [
            group_ready.eq((~ahead[-1] & ahead[group_bits:-1].any()) | (~fresh & ~beyond[-1])),
            next_ready.eq(~fresh & ~beyond[-1] & beyond[group_bits:-1].any()),
        ]

        enough = Signal()
        clear = Signal()
        weighted = Signal()
        go = Signal()
        m.d.comb += weighted.eq(~(part_start & p.first) | (weights != 0))
        with m.If(p.v):
            m.d.comb += [
                enough.eq(p.own | ~group_start | group_ready),
                clear.eq(weighted & (~(group_start & last_group) | (credits != 0))),
            ]
        with m.Else():
            m.d.comb += [
                enough.eq(p.own | ~real | (self.stored[:-1] != at[:-1])),
                clear.eq(~run_start | (self.queries_ready & (~part_start | (scores_out != 2)))),
            ]
        m.d.comb += [
            go.eq(active & enough & clear),
            use_scores.eq(go & part_start & ~p.v),
            use_weights.eq(go & part_start & p.v & p.first),
            use_credit.eq(go & p.v & group_start & last_group),
            self.swap.eq(go & run_start & ~p.v),
            self.stall_memory.eq(active & clear & ~enough),
            self.stall_softmax.eq(active & ~clear),
        ]

        t = self.tag
        m.d.comb += [
            self.store_address.eq(at),
            # Own beats are a power of two, and no own key lies beyond them.
            self.own_addr.eq(Cat(own_beat[: log2(self.own_beats)], row)),
            # Also while the run waits for a moment: who shares the RAM should not have to wait for `go`.
            self.own_en.eq(active & p.own & real & Mux(p.v, weighted, ~run_start | self.queries_ready)),
            self.weight_address.eq(word + o),
            t.own.eq(p.own),
            t.dot.eq(go & ~p.v & real),
            t.swap.eq(self.swap),
            t.sum.eq(go & p.v),
            t.real.eq(real),
            t.address.eq(Cat(o[: log2(c.key_tile)], run_set)),
            t.half.eq(Mux(p.v, half, p.half)),
            t.first.eq(Mux(p.v, o[group_bits:] == 0, first_cell)),
            t.last.eq(Mux(p.v, last_group, last_beat & last_set & last_cell)),
            t.end.eq(go & ~p.v & last_beat & last_set & last_cell),
            t.step.eq(o),
        ]

        n = self.phases.payload
        load = Signal()
        m.d.sync += [self.free.eq(0), self.free_beats.eq(p.beats), fresh.eq(0)]
        with m.If(go):
            m.d.sync += [
                o.eq(o + 1),
                at.eq(at + 1),
                own_beat.eq(own_beat + 1),
                run_start.eq(0),
                part_start.eq(0),
                last_beat.eq(o == before_last),
                group_start.eq(o[:group_bits].all()),
            ]
            with m.If(o == p.last_beat):
                m.d.sync += real.eq(0)
            with m.If(o[:group_bits].all()):
                m.d.sync += last_group.eq(o[group_bits:] == before_last_group)
            with m.If(last_beat):
                m.d.sync += [
                    o.eq(0),
                    at.eq(oldest),
                    own_beat.eq(own_first),
                    run_start.eq(1),
                    last_beat.eq(0),
                    real.eq(1),
                    group_start.eq(1),
                    group_ready.eq(1),
                    last_group.eq(one_group),
                    run_set.eq(run_set + 1),
                    word.eq(word + p.unit_words),
                    half.eq(half ^ p.v),
                ]
                with m.If(last_set):
                    m.d.sync += [
                        self.free.eq(~p.own),
                        oldest.eq(following),
                        at.eq(following),
                        fresh.eq(1),
                        group_ready.eq(next_ready),
                        run_set.eq(0),
                        cell.eq(cell + 1),
                        first_cell.eq(0),
                        row.eq(row + 1),
                        word.eq(Cat(p.base, p.parity)),
                    ]
                    with m.If(last_cell):
                        m.d.comb += load.eq(1)
        with m.If(~active):
            m.d.comb += load.eq(1)
        m.d.comb += self.phases.ready.eq(load)
        with m.If(load):
            m.d.sync += [
                active.eq(self.phases.valid),
                p.eq(n),
                cell.eq(0),
                run_set.eq(0),
                o.eq(0),
                at.eq(Mux(active, following, oldest)),
                fresh.eq(1),
                own_beat.eq(n.lane_lo >> log2(c.keys_per_beat)),
                run_start.eq(1),
                part_start.eq(1),
                first_cell.eq(1),
                last_beat.eq(0),
                real.eq(1),
                group_start.eq(1),
                group_ready.eq(active & next_ready),
                last_group.eq(n.last_beat[group_bits:] == 0),
                # Whole groups of values; of keys at least SCORE_SPACING cycles.
                last_o.eq(
                    Mux(
                        n.v,
                        n.last_beat | (depth - 1),
                        Mux(n.last_beat < SCORE_SPACING - 1, SCORE_SPACING - 1, n.last_beat),
                    )
                ),
                word.eq(Cat(n.base, n.parity)),
                row.eq(n.kv_cell + Mux(n.v, v_rows, 0)),
            ]
        return m


def pointer_bits(depth: int) -> int:
    """Of a count of beats into a ring of `depth`: differences from -depth to depth are told apart."""
    return log2(depth) + 2


def own_bits(z: Sizes) -> int:
    """Address bits of the own K/V RAM."""
    c = z.config
    return clog2(KvGeometry(c).own_depth)


def tag_layout(z: Sizes) -> data.StructLayout:
    """What the player issues in a cycle.

    own: the beat comes from the own RAM. dot: a beat of a dot run. swap: the first of one. sum: a step of a weighted
    sum.
    real: the beat is one (not the rest of a group). address: {set, beat} of the dot accumulators. half: of these, or of
    the weighted sums. first: cell of a phase, group of a weighted sum. last: group of a weighted sum. end: last
    cycle of
    a K phase. step: beat of the run, modulo the group.
    """
    return data.StructLayout(
        {
            "own": 1,
            "dot": 1,
            "swap": 1,
            "sum": 1,
            "real": 1,
            "address": clog2(z.tile_words),
            "half": 1,
            "first": 1,
            "last": 1,
            "end": 1,
            "step": log2(z.depth),
        }
    )
