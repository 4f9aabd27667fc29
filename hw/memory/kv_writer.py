"""Appends the pass's own keys and values to the cache."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.kv import KvGeometry
from tellme.hw.interfaces import OwnReadPort, OwnScalePort, PassParameters
from tellme.hw.memory.writer import write_layout

LANE_NUMBER_BITS = 16
"""Bits of a position and of a slot number."""


def runs(config: AcceleratorConfig, positions: Sequence[int], slots: Sequence[int]) -> list[tuple[int, int]]:
    """(first, last) lane of every run: one slot, one key block, positions one after the other."""
    out: list[tuple[int, int]] = []
    for lane, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        if out and slot == slots[lane - 1] and position == positions[lane - 1] + 1 and position % config.key_block:
            out[-1] = (out[-1][0], lane)
        else:
            out.append((lane, lane))
    return out


class KvWriter(wiring.Component):
    """Copies K, V and their scales of every lane from on-chip storage into the lane's cache block.

    Order: run of lanes, K then V, KV head, cell, lane; behind a head's cells its scales. A run is neighbouring lanes of one slot
    whose positions follow one another in one key block: their keys of a cell follow one another in memory, so that they are
    one burst, and their scales are written by the beat. A cell's write every three cycles when nothing waits, a scale in two
    and its beat in one; before each run one cycle for every significant bit of its slot and block number, two for each lane,
    and two more.

    Parameters
    ----------
    config : AcceleratorConfig; L lanes, C cell bytes, KPB keys per beat, T key_tile, E floats of a beat.

    Interface attributes
    --------------------
    start : pulse; the other job inputs are taken with it.
    parameters : lanes of the pass, their positions and slots.
    cells : D / C, cells of a head.
    kv_heads : KV heads, at least 1.
    kv_address, slot_stride, head_stride : beats, of the layer's cache.
    busy, done : a job runs; pulse when the last write was taken (BeatWriter.idle tells when it is in memory).
    clear : soft reset, drops the job.
    own, own_scales : read ports of the own-K/V RAM and of its scales; it waits for their grants.
    writes : stream {address, data, strobe} for BeatWriter.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "parameters": In(PassParameters(config)),
                "cells": In(16),
                "kv_heads": In(8),
                "kv_address": In(32),
                "slot_stride": In(32),
                "head_stride": In(32),
                "busy": Out(1),
                "done": Out(1),
                "clear": In(1),
                "own": Out(OwnReadPort(config)),
                "own_scales": Out(OwnScalePort(config)),
                "writes": Out(stream.Signature(write_layout(config))),
            }
        )

    def expected_cycles(self, *, positions: list[int], slots: list[int], kv_heads: int, cells: int) -> int:
        """Cycles from `start` to `done` for these lanes, when no read and no write waits."""
        c = self._config
        cycles = 2
        for first, last in runs(c, positions, slots):
            count = last - first + 1
            beats = positions[last] // c.word - positions[first] // c.word + 1
            multiply = slots[first].bit_length() + (positions[first] // c.key_block).bit_length() + 2 + 2 * count
            cycles += multiply + 2 * kv_heads * (3 * cells * count + 2 * count + beats)
        return cycles

    def elaborate(self, platform: object) -> Elaboratable:
        cfg = self._config
        m = Module()
        kpb, floats = cfg.keys_per_beat, cfg.word
        key_bits = (cfg.key_block - 1).bit_length()
        part_bits = (kpb - 1).bit_length()
        float_bits = (floats - 1).bit_length()
        kv = KvGeometry(cfg)

        # Taken with `start`: other descriptors run while the cache is written.
        job = {
            n: Signal.like(getattr(self, n)) for n in ("cells", "kv_heads", "kv_address", "slot_stride", "head_stride")
        }
        lane, first, last = (Signal(clog2(cfg.lanes), name=n) for n in ("lane", "first", "last"))
        probe = Signal(range(cfg.lanes + 1))  # the lane that may go on with the run
        probe_position, following = Signal(LANE_NUMBER_BITS), Signal(LANE_NUMBER_BITS)
        probe_slot, run_slot = Signal(LANE_NUMBER_BITS), Signal(LANE_NUMBER_BITS)
        key = Signal(key_bits)
        fresh, scales_whole = Signal(), Signal()
        address = Signal(32)  # being built: the lane's block; then the cache head's
        factor, factor2 = Signal(LANE_NUMBER_BITS), Signal(LANE_NUMBER_BITS)
        stride = Signal(32)
        second = Signal()

        value, last_head, last_cell = Signal(), Signal(), Signal()
        head = Signal(8)
        cell, row = Signal(16), Signal(16)
        scale = Signal()  # the item is a scale
        block_base = Signal(32)
        offset = Signal(32)  # of the cell's run from the head's base

        full = Signal()
        out = Signal(write_layout(cfg))
        m.d.comb += [
            self.writes.valid.eq(full),
            self.writes.payload.eq(out),
            last_cell.eq(cell + 1 == job["cells"]),
            last_head.eq(head + 1 == job["kv_heads"]),
            scales_whole.eq((lane == last) | key[:float_bits].all()),
            self.own.address.eq(kv.own_address(row, lane >> part_bits)),
            self.own_scales.v.eq(value),
            self.own_scales.head.eq(head),
            self.own_scales.lane.eq(lane),
        ]
        with m.If(self.writes.ready):
            m.d.sync += full.eq(0)

        cell_bytes = cfg.cell
        part = self.own.data.word_select(lane[:part_bits], cell_bytes * 8) if kpb > 1 else self.own.data

        strobes = Cat((key[:part_bits] == k if kpb > 1 else Const(1)).replicate(cell_bytes) for k in range(kpb))

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
            with m.State("Idle"):
                m.d.sync += lane.eq(0)
                with m.If(self.start):
                    m.d.sync += [signal.eq(getattr(self, n)) for n, signal in job.items()]
                    m.next = "Lane"
            with m.State("Lane"):
                # address = kv_address + slot * slot_stride + block * block_stride, a bit of a factor a cycle
                m.d.sync += [
                    first.eq(lane),
                    last.eq(lane),
                    probe.eq(lane + 1),
                    following.eq(self.parameters.position[lane] + 1),
                    run_slot.eq(self.parameters.slot[lane]),
                    factor.eq(self.parameters.slot[lane]),
                    factor2.eq(self.parameters.position[lane] >> key_bits),
                    stride.eq(job["slot_stride"]),
                    second.eq(0),
                    address.eq(job["kv_address"]),
                ]
                m.next = "Multiply"
            with m.State("Multiply"):
                with m.If(factor != 0):
                    m.d.sync += [factor.eq(factor >> 1), stride.eq(stride << 1)]
                    with m.If(factor[0]):
                        m.d.sync += address.eq(address + stride)
                with m.Elif(~second):
                    m.d.sync += [
                        second.eq(1),
                        factor.eq(factor2),
                        stride.eq(kv.block_stride(job["cells"])),
                    ]
                with m.Else():
                    m.d.sync += [
                        block_base.eq(address),
                        value.eq(0),
                        head.eq(0),
                        cell.eq(0),
                        row.eq(0),
                        scale.eq(0),
                        offset.eq(kv.k_data),
                    ]
                    m.next = "Probe"
            with m.State("Probe"):
                m.d.sync += [
                    probe_position.eq(self.parameters.position[probe]),
                    probe_slot.eq(self.parameters.slot[probe]),
                ]
                m.next = "Judge"
            with m.State("Judge"):
                m.next = "Read"
                with m.If(
                    (probe != self.parameters.lanes)
                    & (probe_slot == run_slot)
                    & (probe_position == following)
                    & probe_position[:key_bits].any()
                ):
                    m.d.sync += [last.eq(probe), probe.eq(probe + 1), following.eq(following + 1)]
                    m.next = "Probe"
            with m.State("Read"):
                m.d.sync += key.eq(self.parameters.position[lane][:key_bits])
                # Only with room for the result: the RAM's output is not held. (`~full | writes.ready` would save a cycle
                # that nothing waits for, and be a path through the writer, the RAM's grant and the states here.)
                m.d.comb += [self.own.en.eq(~full & ~scale), self.own_scales.en.eq(~full & scale)]
                with m.If((self.own.en & self.own.grant) | (self.own_scales.en & self.own_scales.grant)):
                    m.next = "Take"
            with m.State("Take"):
                m.d.sync += [full.eq(~scale | scales_whole), fresh.eq(~scale | scales_whole)]
                with m.If(scale):
                    # The scales of a beat are collected.
                    m.d.sync += [
                        out.address.eq(address + Mux(value, kv.v_scales, kv.k_scales) + key[float_bits:]),
                        out.data.word_select(key[:float_bits], 32).eq(self.own_scales.data),
                        out.strobe.eq(
                            (out.strobe & (~fresh).replicate(cfg.beat_bytes))
                            | (Const(0xF, 4) << (key[:float_bits] << 2))
                        ),
                    ]
                with m.Else():
                    m.d.sync += [
                        out.address.eq(address + (offset + key[part_bits:])),
                        out.data.eq(Cat(part for _ in range(kpb))),
                        out.strobe.eq(strobes),
                    ]
                m.next = "Read"
                with m.If(lane != last):
                    m.d.sync += lane.eq(lane + 1)
                with m.Else():
                    m.d.sync += lane.eq(first)
                    with m.If(~scale):
                        m.d.sync += [row.eq(row + 1), cell.eq(cell + 1), offset.eq(offset + cfg.key_tile)]
                        with m.If(last_cell):
                            m.d.sync += scale.eq(1)
                    with m.Else():
                        m.d.sync += [
                            scale.eq(0),
                            cell.eq(0),
                            head.eq(head + 1),
                            address.eq(address + job["head_stride"]),
                            # back to the first cell of K, or of V
                            offset.eq(Mux(value, kv.v_data(job["cells"]), kv.k_data)),
                        ]
                        with m.If(last_head):
                            m.d.sync += [
                                value.eq(1),
                                head.eq(0),
                                address.eq(block_base),
                                offset.eq(kv.v_data(job["cells"])),
                            ]
                            with m.If(value):
                                m.d.sync += lane.eq(last + 1)
                                m.next = "Lane"
                                with m.If(probe == self.parameters.lanes):
                                    m.next = "Finish"
            with m.State("Finish"):
                with m.If(~full):
                    m.d.comb += self.done.eq(1)
                    m.next = "Idle"
        return ResetInserter(self.clear)(m)
