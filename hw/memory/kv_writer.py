"""Appends the pass's own keys and values to the cache."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Const, Elaboratable, Module, Mux, ResetInserter, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.kv import KvGeometry
from tellme.hw.interfaces import CacheJob, OwnReadPort, OwnScalePort, PassParameters
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


class _Walk:
    """Where the writer is: what its states work on.

    first, last : lanes of the run. probe : the lane that may go on with it.
    key : the lane's, in its block. address : being built: of the run's block; then of the cache head.
    offset : of the cell's keys from the head's base. value : V, not K. k_narrow, v_narrow, narrow : 4 bits an element, of K,
    of V, of which it is. scale : the item is a scale, not a cell.
    scales_whole : the lane's scale completes a beat of them. fresh : what is collected next begins a beat.
    full, out : the write that is offered.
    """

    def __init__(self, config: AcceleratorConfig) -> None:
        self.kv = KvGeometry(config)
        self.key_bits = exact_log2(config.key_block)
        self.part_bits = exact_log2(config.keys_per_beat)
        self.float_bits = exact_log2(config.word)
        # Taken with the start: other descriptors run while the cache is written.
        self.job = CacheJob().create(path=("taken",))
        self.lane = Signal(clog2(config.lanes))
        self.first = Signal(clog2(config.lanes))
        self.last = Signal(clog2(config.lanes))
        self.probe = Signal(range(config.lanes + 1))
        self.probe_position = Signal(LANE_NUMBER_BITS)
        self.probe_slot = Signal(LANE_NUMBER_BITS)
        self.following = Signal(LANE_NUMBER_BITS)  # position behind the run
        self.run_slot = Signal(LANE_NUMBER_BITS)
        self.key = Signal(self.key_bits)
        self.address = Signal(32)
        self.block_base = Signal(32)
        self.stride = Signal(32)
        self.factor = Signal(LANE_NUMBER_BITS)
        self.block = Signal(LANE_NUMBER_BITS)
        self.second = Signal()  # the second product
        self.value = Signal()
        self.narrow = Signal()
        self.k_narrow, self.v_narrow = self.job.k_narrow, self.job.v_narrow
        if not config.narrow_cache:
            self.k_narrow = self.v_narrow = Const(0)
        self.head = Signal(8)
        self.last_head = Signal()
        self.cell = Signal(16)
        self.last_cell = Signal()
        self.scale = Signal()
        self.scales_whole = Signal()
        self.fresh = Signal()
        self.row = Signal(16)
        self.offset = Signal(32)
        self.full = Signal()
        self.out = Signal(write_layout(config))


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
    start : pulse; `job` is taken with it.
    parameters : lanes of the pass, their positions and slots.
    job : what is written, and where.
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
                "job": In(CacheJob()),
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
        m = Module()
        walk = _Walk(self._config)
        self._connect(m, walk)
        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
            with m.State("Idle"):
                m.d.sync += walk.lane.eq(0)
                with m.If(self.start):
                    m.d.sync += [getattr(walk.job, name).eq(getattr(self.job, name)) for name in CacheJob().members]
                    m.next = "Lane"
            self._find_block(m, walk)
            self._find_run(m, walk)
            self._read(m, walk)
            with m.State("Take"):
                self._offer(m, walk)
                m.next = "Read"
                self._go_on(m, walk)
            with m.State("Finish"):
                with m.If(~walk.full):
                    m.d.comb += self.done.eq(1)
                    m.next = "Idle"
        return ResetInserter(self.clear)(m)

    def _connect(self, m: Module, walk: _Walk) -> None:
        """What is read, and the register of the write."""
        m.d.comb += [
            self.writes.valid.eq(walk.full),
            self.writes.payload.eq(walk.out),
            walk.narrow.eq(Mux(walk.value, walk.v_narrow, walk.k_narrow)),
            walk.last_cell.eq(walk.cell + 1 == walk.job.cells),
            walk.last_head.eq(walk.head + 1 == walk.job.kv_heads),
            walk.scales_whole.eq((walk.lane == walk.last) | walk.key[: walk.float_bits].all()),
            self.own.address.eq(walk.kv.own_address(walk.row, walk.lane >> walk.part_bits)),
            self.own_scales.v.eq(walk.value),
            self.own_scales.head.eq(walk.head),
            self.own_scales.lane.eq(walk.lane),
        ]
        with m.If(self.writes.ready):
            m.d.sync += walk.full.eq(0)

    def _find_block(self, m: Module, walk: _Walk) -> None:
        """address = kv_address + slot * slot_stride + block * block_stride, a bit of a factor a cycle."""
        position, slot = self.parameters.position[walk.lane], self.parameters.slot[walk.lane]
        with m.State("Lane"):
            m.d.sync += [
                walk.first.eq(walk.lane),
                walk.last.eq(walk.lane),
                walk.probe.eq(walk.lane + 1),
                walk.following.eq(position + 1),
                walk.run_slot.eq(slot),
                walk.factor.eq(slot),
                walk.block.eq(position >> walk.key_bits),
                walk.stride.eq(walk.job.slot_stride),
                walk.second.eq(0),
                walk.address.eq(walk.job.kv_address),
            ]
            m.next = "Multiply"
        with m.State("Multiply"):
            with m.If(walk.factor != 0):
                m.d.sync += [walk.factor.eq(walk.factor >> 1), walk.stride.eq(walk.stride << 1)]
                with m.If(walk.factor[0]):
                    m.d.sync += walk.address.eq(walk.address + walk.stride)
            with m.Elif(~walk.second):
                m.d.sync += [
                    walk.second.eq(1),
                    walk.factor.eq(walk.block),
                    walk.stride.eq(walk.kv.block_stride(walk.job.cells, walk.k_narrow, walk.v_narrow)),
                ]
            with m.Else():
                m.d.sync += [
                    walk.block_base.eq(walk.address),
                    walk.value.eq(0),
                    walk.head.eq(0),
                    walk.cell.eq(0),
                    walk.row.eq(0),
                    walk.scale.eq(0),
                    walk.offset.eq(walk.kv.k_data),
                ]
                m.next = "Probe"

    def _find_run(self, m: Module, walk: _Walk) -> None:
        """The lanes whose keys follow one another: two cycles each."""
        goes_on = (
            (walk.probe != self.parameters.lanes)
            & (walk.probe_slot == walk.run_slot)
            & (walk.probe_position == walk.following)
            & walk.probe_position[: walk.key_bits].any()
        )
        with m.State("Probe"):
            m.d.sync += [
                walk.probe_position.eq(self.parameters.position[walk.probe]),
                walk.probe_slot.eq(self.parameters.slot[walk.probe]),
            ]
            m.next = "Judge"
        with m.State("Judge"):
            m.next = "Read"
            with m.If(goes_on):
                m.d.sync += [
                    walk.last.eq(walk.probe),
                    walk.probe.eq(walk.probe + 1),
                    walk.following.eq(walk.following + 1),
                ]
                m.next = "Probe"

    def _read(self, m: Module, walk: _Walk) -> None:
        """Only with room for the result: the RAM's output is not held.

        (`~full | writes.ready` would save a cycle that nothing waits for, and be a path through the writer, the RAM's
        grant and the states here.)
        """
        with m.State("Read"):
            m.d.sync += walk.key.eq(self.parameters.position[walk.lane][: walk.key_bits])
            m.d.comb += [
                self.own.en.eq(~walk.full & ~walk.scale),
                self.own_scales.en.eq(~walk.full & walk.scale),
            ]
            with m.If((self.own.en & self.own.grant) | (self.own_scales.en & self.own_scales.grant)):
                m.next = "Take"

    def _offer(self, m: Module, walk: _Walk) -> None:
        """The write of what was read: a cell, at its key's place in the beat; or a beat of scales, once it is whole.

        Of a narrow beat a key has half as many bytes: two of its elements in each, so that strobes can tell keys apart.
        """
        c, kv, key, parts, out = self._config, walk.kv, walk.key, self._config.keys_per_beat, walk.out
        part = self.own.data
        strobes = Const(1).replicate(c.cell)
        if parts > 1:
            part = part.word_select(walk.lane[: walk.part_bits], 8 * c.cell)
            strobes = Cat((key[: walk.part_bits] == k).replicate(c.cell) for k in range(parts))
        if c.narrow_cache:
            nibbles = Cat(part.word_select(d, 8)[:4] for d in range(c.cell))
            part = Mux(walk.narrow, nibbles.replicate(2), part)
            of_half = Cat((key[: walk.part_bits + 1] == k).replicate(c.cell // 2) for k in range(2 * parts))
            strobes = Mux(walk.narrow, of_half, strobes)
        place = key[: walk.float_bits]
        scales = Mux(walk.value, kv.v_scales, kv.k_scales)
        m.d.sync += [walk.full.eq(~walk.scale | walk.scales_whole), walk.fresh.eq(~walk.scale | walk.scales_whole)]
        with m.If(walk.scale):
            collected = out.strobe & (~walk.fresh).replicate(c.beat_bytes)
            m.d.sync += [
                out.address.eq(walk.address + scales + key[walk.float_bits :]),
                out.data.word_select(place, 32).eq(self.own_scales.data),
                out.strobe.eq(collected | (Const(0xF, 4) << (place << 2))),
            ]
        with m.Else():
            m.d.sync += [
                out.address.eq(walk.address + (walk.offset + (key[walk.part_bits :] >> walk.narrow))),
                out.data.eq(Cat(part for _ in range(parts))),
                out.strobe.eq(strobes),
            ]

    def _go_on(self, m: Module, walk: _Walk) -> None:
        """To the run's next lane; from the last one to the next cell, to the head's scales, to the next head, to V, on to
        the next run."""
        v_data = walk.kv.v_data(walk.job.cells, walk.k_narrow)
        with m.If(walk.lane != walk.last):
            m.d.sync += walk.lane.eq(walk.lane + 1)
        with m.Elif(~walk.scale):
            m.d.sync += [
                walk.lane.eq(walk.first),
                walk.row.eq(walk.row + 1),
                walk.cell.eq(walk.cell + 1),
                walk.offset.eq(walk.offset + walk.kv.cell_beats(walk.narrow)),
            ]
            with m.If(walk.last_cell):
                m.d.sync += walk.scale.eq(1)
        with m.Else():
            m.d.sync += [
                walk.lane.eq(walk.first),
                walk.scale.eq(0),
                walk.cell.eq(0),
                walk.head.eq(walk.head + 1),
                walk.address.eq(walk.address + walk.job.head_stride),
                # back to the first cell of K, or of V
                walk.offset.eq(Mux(walk.value, v_data, walk.kv.k_data)),
            ]
            with m.If(walk.last_head):
                m.d.sync += [
                    walk.value.eq(1),
                    walk.head.eq(0),
                    walk.address.eq(walk.block_base),
                    walk.offset.eq(v_data),
                ]
                with m.If(walk.value):
                    m.d.sync += walk.lane.eq(walk.last + 1)
                    m.next = "Lane"
                    with m.If(walk.probe == self.parameters.lanes):
                        m.next = "Finish"
