"""Appends the K and V of a pass's own positions to the cache."""

from __future__ import annotations

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from golden.config import AcceleratorConfig, clog2

QUEUE = 8
"""Cells and scales between the own-K/V memory and the writer."""


class KvWriter(wiring.Component):
    """Copies every lane's K and V cells and scales from the own-K/V memories to its cache block.

    One cell or scale a cycle while the reads are granted and the writer takes them; about ten cycles more a lane.
    Formats: docs/architecture.md section 1.

    Interface attributes
    --------------------
    start, busy, done : a job; its parameters are stable while busy. It is done when the last write has been handed over.
    cells : head_dim in cells. kv_address, slot_stride, head_stride : in beats.
    own_addr, own_en, own_grant, own_data : read port of the own-K/V memory; a read happens when both en and grant are
        high, its data come a cycle later.
    own_scale_* : the same for the scales.
    writes : stream to BeatWriter: a cell (config.cell bytes) or a scale (4 bytes) of a beat each.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = c = config
        lane = clog2(c.lanes)
        super().__init__(
            {
                "start": In(1),
                "busy": Out(1),
                "done": Out(1),
                "lanes": In(lane + 1),
                "cells": In(16),
                "kv_heads": In(8),
                "kv_address": In(32),
                "slot_stride": In(32),
                "head_stride": In(32),
                "position": In(data.ArrayLayout(16, c.lanes)),
                "slot": In(data.ArrayLayout(8, c.lanes)),
                "own_addr": Out(self.own_bits(c)),
                "own_en": Out(1),
                "own_grant": In(1),
                "own_data": In(8 * c.beat_bytes),
                "own_scale_v": Out(1),
                "own_scale_head": Out(8),
                "own_scale_lane": Out(lane),
                "own_scale_en": Out(1),
                "own_scale_grant": In(1),
                "own_scale_data": In(32),
                "writes": Out(
                    stream.Signature(
                        data.StructLayout({"address": 32, "data": 8 * c.beat_bytes, "strobe": c.beat_bytes})
                    )
                ),
            }
        )

    @staticmethod
    def own_bits(config: AcceleratorConfig) -> int:
        """Bits of an address of the own-K/V memory."""
        return clog2(2 * config.max_kv_dim // config.cell * (-(-config.lanes // config.keys_per_beat)))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        kpb = c.keys_per_beat
        kpb_bits = kpb.bit_length() - 1
        key_bits = c.key_block.bit_length() - 1
        scale_bits = (c.beat_bytes // 4).bit_length() - 1
        own_stride = -(-c.lanes // kpb)

        lane = Signal(clog2(c.lanes))
        head = Signal(8)
        v = Signal()
        cell = Signal(16)
        position = Signal(16)
        key = position[:key_bits]
        data_beats = Signal(16)
        block_stride = Signal(17)
        m.d.sync += [
            data_beats.eq(self.cells * c.key_tile),
            block_stride.eq(2 * data_beats + 2 * c.scale_beats),
        ]

        a, b, wait = Signal(32), Signal(16), Signal(2)
        raw, product = Signal(48), Signal(48)
        m.d.sync += [raw.eq(a * b), product.eq(raw)]

        record = Signal(32)  # of this lane and KV head
        cell_address = Signal(32)
        scale_address = Signal(32)
        own = Signal.like(self.own_addr)  # walks by own_stride through (v, head, cell)
        own_v = Signal.like(self.own_addr)  # of V, cell 0, this head
        own_v0 = Signal.like(self.own_addr)
        m.d.sync += own_v0.eq(self.kv_heads * self.cells * own_stride)

        # ---- queue ---------------------------------------------------------------------------------
        item = data.StructLayout({"address": 32, "data": 8 * c.cell, "place": scale_bits + 1, "scale": 1})
        m.submodules.queue = queue = SyncFIFOBuffered(width=item.size, depth=QUEUE)
        room = Signal()
        pending = Signal()
        is_scale = Signal()
        address, place = Signal(32), Signal(scale_bits + 1)
        pushed = Signal(item)
        half = lane[:kpb_bits] if kpb_bits else None
        own_cell = Signal(8 * c.cell)
        own_half = Signal(max(1, kpb_bits))
        m.d.comb += own_cell.eq(self.own_data.word_select(own_half, 8 * c.cell) if kpb_bits else self.own_data)
        m.d.comb += [
            room.eq(queue.level + pending < QUEUE - 1),
            pushed.address.eq(address),
            pushed.place.eq(place),
            pushed.scale.eq(is_scale),
            pushed.data.eq(Mux(is_scale, self.own_scale_data, own_cell)),
            queue.w_data.eq(pushed),
            queue.w_en.eq(pending),
        ]
        m.d.sync += pending.eq(0)

        out = Signal(item)
        strobe_cell = Signal(c.beat_bytes)
        strobe_scale = Signal(c.beat_bytes)
        p = self.writes.payload
        m.d.comb += [
            out.eq(queue.r_data),
            self.writes.valid.eq(queue.r_rdy),
            queue.r_en.eq(self.writes.ready),
            p.address.eq(out.address),
            p.data.eq(
                Mux(
                    out.scale,
                    Cat(out.data[:32] for _ in range(c.beat_bytes // 4)),
                    Cat(out.data for _ in range(kpb)),
                )
            ),
            strobe_scale.eq(0xF << (out.place << 2)),
            strobe_cell.eq(Cat((out.place[:kpb_bits] == i).replicate(c.cell) for i in range(kpb)) if kpb_bits else ~0),
            p.strobe.eq(Mux(out.scale, strobe_scale, strobe_cell)),
        ]

        # ---- walk ----------------------------------------------------------------------------------
        m.d.comb += [
            self.own_addr.eq(own),
            self.own_scale_v.eq(v),
            self.own_scale_head.eq(head),
            self.own_scale_lane.eq(lane),
        ]
        with m.FSM() as fsm:
            with m.State("Idle"):
                with m.If(self.start):
                    m.d.sync += lane.eq(0)
                    m.next = "Lane"
            with m.State("Lane"):
                m.d.sync += [
                    position.eq(self.position[lane]),
                    a.eq(self.slot_stride),
                    b.eq(self.slot[lane]),
                    wait.eq(2),
                    record.eq(self.kv_address),
                    head.eq(0),
                    v.eq(0),
                ]
                m.next = "Slot"
            with m.State("Slot"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.d.sync += [
                        record.eq(record + product),
                        a.eq(block_stride),
                        b.eq(position >> key_bits),
                        wait.eq(2),
                    ]
                    m.next = "Block"
            with m.State("Block"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.d.sync += [
                        record.eq(record + product),
                        own.eq(lane >> kpb_bits),
                        own_v.eq(own_v0 + (lane >> kpb_bits)),
                    ]
                    m.next = "Part"
            with m.State("Part"):
                offset = Mux(v, 2 * c.scale_beats + data_beats, 2 * c.scale_beats)
                m.d.sync += [
                    cell.eq(0),
                    cell_address.eq(record + offset + (key >> kpb_bits)),
                    scale_address.eq(record + Mux(v, c.scale_beats, 0) + (key >> scale_bits)),
                ]
                m.next = "Cell"
            with m.State("Cell"):
                m.d.comb += self.own_en.eq(room)
                with m.If(self.own_en & self.own_grant):
                    m.d.sync += [
                        pending.eq(1),
                        is_scale.eq(0),
                        address.eq(cell_address),
                        place.eq(key[:kpb_bits] if kpb_bits else 0),
                        own_half.eq(half if kpb_bits else 0),
                        cell_address.eq(cell_address + c.key_tile),
                        own.eq(own + own_stride),
                        cell.eq(cell + 1),
                    ]
                    with m.If(cell + 1 == self.cells):
                        m.next = "Scale"
            with m.State("Scale"):
                m.d.comb += self.own_scale_en.eq(room)
                with m.If(self.own_scale_en & self.own_scale_grant):
                    m.d.sync += [
                        pending.eq(1),
                        is_scale.eq(1),
                        address.eq(scale_address),
                        place.eq(key[:scale_bits]),
                        # K of this head is done: go on with its V, or after that with K of the next head.
                        own.eq(own_v),
                        own_v.eq(own),
                        v.eq(~v),
                    ]
                    m.next = "Part"
                    with m.If(v):
                        m.d.sync += [head.eq(head + 1), record.eq(record + self.head_stride)]
                        with m.If(head + 1 == self.kv_heads):
                            m.d.sync += lane.eq(lane + 1)
                            m.next = "Lane"
                            with m.If(lane + 1 == self.lanes):
                                m.next = "Drain"
            with m.State("Drain"):
                with m.If(~pending & (queue.level == 0)):
                    m.d.comb += self.done.eq(1)
                    m.next = "Idle"
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
        return m
