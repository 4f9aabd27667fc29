"""The fetcher: turns a program into stream segments, ahead of compute."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.kv import KvGeometry
from tellme.golden.program import DESCRIPTOR_BYTES, Opcode
from tellme.hw.control.descriptor import DESCRIPTOR
from tellme.hw.control.sequence import PhaseSequencer
from tellme.hw.fp.dsp import CASCADE_SHIFT, multiply_add, positive
from tellme.hw.head.heap import CANDIDATE_BITS, CHOSEN
from tellme.hw.head.select import matrix_rows
from tellme.hw.interfaces import PassParameters, count_bits
from tellme.hw.pipeline import register

SEGMENT = data.StructLayout({"address": 32, "beats": 32})
"""Payload of a stream segment: `beats` consecutive beats from `address`."""


class _Walk:
    """What the states of the fetcher work on: an address, a length and a product; and how they go on.

    One multiplier, four cycles: its factors are set in one state and its product taken in a later one. An addend goes to
    the address a cycle after it is known, so that the adder is not behind the choice.
    """

    def __init__(self, m: Module, platform: object, segments: Any):
        self._m, self._segments = m, segments
        self._long, self._short = Signal(32), Signal(16)
        self._wait = Signal(2)
        self.address, self.beats = Signal(32), Signal(32)
        self._addend, self._adding = Signal(32), Signal()
        self.product = self._multiplier(platform)
        m.d.sync += self._adding.eq(0)
        with m.If(self._adding):
            m.d.sync += self.address.eq(self.address + self._addend)
        m.d.comb += [segments.payload.address.eq(self.address), segments.payload.beats.eq(self.beats)]

    def _multiplier(self, platform: object) -> Value:
        m, long, short = self._m, self._long, self._short
        low, cascade = multiply_add(
            m,
            platform,
            "low",
            positive(short),
            positive(long[:CASCADE_SHIFT]),
            registers=0,
            width=len(short) + CASCADE_SHIFT + 1,
        )
        high, _ = multiply_add(
            m,
            platform,
            "high",
            positive(short),
            positive(long[CASCADE_SHIFT:]),
            cascade=cascade,
            width=48 - CASCADE_SHIFT,
        )
        return Cat(register(m, low[:CASCADE_SHIFT], "product_low"), high)

    def multiply(self, long: object, short: object, then: str) -> None:
        """On to the state `then`, which finds the product of 32 and 16 bits."""
        self._m.d.sync += [self._long.eq(long), self._short.eq(short), self._wait.eq(2)]
        self._m.next = f"Wait-{then}"

    def waiting(self, then: str) -> None:
        """A state that waits for the product."""
        m = self._m
        with m.State(f"Wait-{then}"):
            m.d.sync += self._wait.eq(self._wait - 1)
            with m.If(self._wait == 0):
                m.next = then

    def advance(self, by: object) -> None:
        """Adds to the address."""
        self._m.d.sync += [self._addend.eq(by), self._adding.eq(1)]

    def emit(self, then: str) -> None:
        """A state that sends (address, beats) and goes on; nothing is sent for 0 beats."""
        m, segments = self._m, self._segments
        with m.State(f"Emit-{then}"):
            m.d.comb += segments.valid.eq(~self._adding & (self.beats != 0))
            with m.If(~self._adding & (segments.ready | (self.beats == 0))):
                m.next = then


class Fetcher(wiring.Component):
    """Emits the segments of a pass in order: the program, then what each descriptor reads.

    Golden: `golden.schedule.segments`. It waits for nothing but its output: how far it runs ahead is the reader's FIFO to decide.

    Interface attributes
    --------------------
    start : pulse; the parameters of the pass stay stable until the pass ends. `busy` : segments are to come.
    program_address, program_length, head_count, candidates : the registers. `parameters` : lanes of the pass.
    program_ready : the program memory is filled.
    request, index, valid, descriptor : a reader's port of `ProgramMemory`.
    chosen : rows of a screened head to read, once they are known.
    segments : stream of `SEGMENT`.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "start": In(1),
                "busy": Out(1),
                "program_address": In(32),
                "program_length": In(16),
                "program_ready": In(1),
                "parameters": In(PassParameters(config)),
                "head_count": In(count_bits(config)),
                "candidates": In(CANDIDATE_BITS),
                "chosen": In(stream.Signature(CHOSEN)),
                "request": Out(1),
                "index": Out(clog2(config.max_descriptors)),
                "valid": In(1),
                "descriptor": In(DESCRIPTOR),
                "segments": Out(stream.Signature(SEGMENT)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.sequencer = sequencer = PhaseSequencer(self.config)
        d = Signal(DESCRIPTOR)
        walk = _Walk(m, platform, self.segments)
        lane = Signal(clog2(self.config.lanes) + 1)
        sweeps = Signal(range(ceil_div(self.config.lanes, self.config.attention_lanes) + 1))
        m.d.comb += [
            sequencer.kv_heads.eq(d.attention.kv_heads),
        ]
        wiring.connect(m, wiring.flipped(self.parameters), sequencer.parameters)
        with m.FSM() as fsm:
            self._read_program(m, walk)
            self._read_descriptor(m, walk, d, lane, sweeps, sequencer)
            self._fetch_load(m, walk, d, lane)
            self._fetch_linear(m, walk, d)
            self._fetch_head(m, walk, d, sweeps)
            self._fetch_screen(m, walk, d)
            self._fetch_attention(m, walk, d, sequencer)
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
        return m

    def _read_program(self, m: Module, walk: _Walk) -> None:
        with m.State("Idle"):
            with m.If(self.start):
                descriptor_beats = (self.program_length * DESCRIPTOR_BYTES) >> exact_log2(self.config.beat_bytes)
                m.d.sync += [walk.address.eq(self.program_address), walk.beats.eq(descriptor_beats), self.index.eq(0)]
                m.next = "Emit-Program"
        walk.emit("Program")
        with m.State("Program"):
            with m.If(self.program_ready):
                m.next = "Read"

    def _read_descriptor(self, m: Module, walk: _Walk, d: Any, lane: Signal, sweeps: Signal, sequencer: Any) -> None:
        """Sends a descriptor's gain, and goes on to what its opcode reads."""
        attention_lanes = self.config.attention_lanes
        screened = Signal()
        m.d.sync += screened.eq(self.candidates != 0)
        with m.State("Read"):
            m.d.comb += self.request.eq(1)
            with m.If(self.valid):
                m.d.sync += [d.eq(self.descriptor), self.index.eq(self.index + 1)]
                m.next = "Decode"
        with m.State("Decode"):
            m.d.sync += [walk.address.eq(d.shared.address), walk.beats.eq(d.shared.gain_beats), lane.eq(0)]
            with m.Switch(d.shared.opcode):
                with m.Case(Opcode.LOAD):
                    m.next = "Emit-Inputs"
                with m.Case(Opcode.LINEAR):
                    m.next = "Emit-Matrix"
                with m.Case(Opcode.ATTENTION):
                    m.d.comb += sequencer.start.eq(1)
                    m.next = "Emit-Phase"
                with m.Case(Opcode.HEAD):
                    m.d.sync += sweeps.eq((self.head_count + (attention_lanes - 1)) >> exact_log2(attention_lanes))
                    m.next = "Head"
                    with m.If(screened):
                        m.next = "Read"
                with m.Case(Opcode.SCREEN):
                    m.next = "Read"
                    exact = d.screen.exact if self.config.ternary_head else 0
                    with m.If((screened | exact) & (self.head_count != 0)):
                        m.next = "Screen"
                with m.Default():
                    m.next = "Idle"

    def _fetch_load(self, m: Module, walk: _Walk, d: Any, lane: Signal) -> None:
        """Inputs of all lanes lie together; rotary rows are gathered by position."""
        walk.emit("Inputs")
        with m.State("Inputs"):
            m.d.sync += walk.address.eq(d.load.x_address)
            walk.multiply(self.parameters.lanes, d.load.x_beats, "Inputs-Length")
        walk.waiting("Inputs-Length")
        with m.State("Inputs-Length"):
            m.d.sync += walk.beats.eq(walk.product)
            m.next = "Emit-Rope"
        walk.emit("Rope")
        with m.State("Rope"):
            m.next = "Read"
            with m.If(lane != self.parameters.lanes):
                walk.multiply(
                    d.load.rope_beats, self.parameters.position[lane[: clog2(self.config.lanes)]], "Rope-Address"
                )
        walk.waiting("Rope-Address")
        with m.State("Rope-Address"):
            walk.advance(walk.product)
            m.d.sync += [
                walk.address.eq(d.load.rope_address),
                walk.beats.eq(d.load.rope_beats),
                lane.eq(lane + 1),
            ]
            m.next = "Emit-Rope"

    def _fetch_linear(self, m: Module, walk: _Walk, d: Any) -> None:
        """tiles * rows beats behind the gain."""
        walk.emit("Matrix")
        with m.State("Matrix"):
            walk.advance(walk.beats)
            walk.multiply(d.linear.tiles, d.linear.rows, "Matrix-Length")
        walk.waiting("Matrix-Length")
        with m.State("Matrix-Length"):
            m.d.sync += walk.beats.eq(walk.product)
            m.next = "Emit-Read"
        walk.emit("Read")

    def _fetch_head(self, m: Module, walk: _Walk, d: Any, sweeps: Signal) -> None:
        """The whole output head, once a sweep of attention_lanes lanes."""
        kv = KvGeometry(self.config)
        with m.State("Head"):
            with m.If(sweeps == 0):
                m.next = "Read"
            with m.Else():
                walk.multiply(kv.head_block(kv.cells(d.head.inputs)), d.head.blocks, "Output-Head-Length")
        walk.waiting("Output-Head-Length")
        with m.State("Output-Head-Length"):
            m.d.sync += [walk.beats.eq(walk.product), sweeps.eq(sweeps - 1)]
            m.next = "Emit-Head"
        walk.emit("Head")

    def _fetch_screen(self, m: Module, walk: _Walk, d: Any) -> None:
        """The ternary matrix with its scales; then the rows that are chosen, as they are named."""
        c = self.config
        block_bits, beat_bits = exact_log2(c.block_rows), exact_log2(c.beat_bytes)
        rows = matrix_rows(m, d.screen.planes, d.screen.rows)
        scale_beats, row_beats = Signal(32), Signal(16)
        m.d.sync += [
            scale_beats.eq((rows + (c.block_rows - 1)) >> block_bits << (block_bits + 1 - beat_bits)),
            row_beats.eq(((d.screen.inputs + (c.beat_bytes - 1)) >> beat_bits) + 1),
        ]
        last = Signal()
        with m.State("Screen"):
            m.next = "Screen-Rows"
        with m.State("Screen-Rows"):
            m.next = "Screen-Matrix"
        with m.State("Screen-Matrix"):
            walk.multiply(rows, d.screen.tiles, "Screen-Length")
        walk.waiting("Screen-Length")
        with m.State("Screen-Length"):
            m.d.sync += walk.beats.eq(walk.product + scale_beats)
            m.next = "Emit-Chosen"
            if c.ternary_head:  # which has no rows
                with m.If(d.screen.exact):
                    m.next = "Emit-Read"
        walk.emit("Chosen")
        with m.State("Chosen"):
            m.d.comb += self.chosen.ready.eq(1)
            m.d.sync += [last.eq(self.chosen.payload.last), walk.address.eq(d.screen.row_address)]
            with m.If(self.chosen.valid):
                walk.multiply(self.chosen.payload.row, row_beats, "Chosen-Address")
        walk.waiting("Chosen-Address")
        with m.State("Chosen-Address"):
            walk.advance(walk.product)
            m.d.sync += walk.beats.eq(row_beats)
            m.next = "Emit-Chosen"
            with m.If(last):
                m.next = "Emit-Read"

    def _fetch_attention(self, m: Module, walk: _Walk, d: Any, sequencer: Any) -> None:
        """K scales, V scales and K cells, then V cells, of every cache block."""
        kv = KvGeometry(self.config)
        phase = Signal.like(sequencer.phases.payload)
        cells, cell = Signal(16), Signal(16)
        tile_beats, scale_beats = Signal(16), Signal(16)  # of the phase's keys
        k_beats, block_beats = Signal(16), Signal(16)  # of a block's K record, and all of it
        k_narrow, v_narrow = d.attention.k_narrow, d.attention.v_narrow
        if not self.config.narrow_cache:
            k_narrow = v_narrow = Const(0)
        narrow = Signal()
        m.d.comb += [
            sequencer.split.eq(v_narrow),
            cells.eq(kv.cells(d.attention.head_dim)),
            scale_beats.eq(kv.scale_reads(phase.keys)),
        ]
        m.d.sync += [
            # Of the phase: it stands while the address of its block is made.
            narrow.eq(Mux(phase.v, v_narrow, k_narrow)),
            tile_beats.eq(Mux(narrow, kv.cell_reads(phase.keys, 1), kv.cell_reads(phase.keys, 0))),
            k_beats.eq(kv.v_data(cells, k_narrow)),
            block_beats.eq(kv.block_stride(cells, k_narrow, v_narrow)),
        ]
        walk.emit("Phase")
        with m.State("Phase"):
            with m.If(sequencer.phases.valid):
                m.d.comb += sequencer.phases.ready.eq(1)
                m.d.sync += phase.eq(sequencer.phases.payload)
                m.next = "Slot"
            with m.Elif(~sequencer.busy):
                m.next = "Read"
        with m.State("Slot"):
            m.d.sync += [walk.address.eq(d.attention.kv_address), cell.eq(0)]
            m.next = "Phase"
            with m.If(~phase.own):
                walk.multiply(d.attention.slot_stride, self.parameters.slot[phase.lane_lo], "Kv-Head-Address")
        walk.waiting("Kv-Head-Address")
        with m.State("Kv-Head-Address"):
            walk.advance(walk.product)
            walk.multiply(d.attention.head_stride, phase.kv_head, "Block-Address")
        walk.waiting("Block-Address")
        with m.State("Block-Address"):
            walk.advance(walk.product)
            walk.multiply(block_beats, phase.block, "Record-Address")
        walk.waiting("Record-Address")
        with m.State("Record-Address"):
            walk.advance(walk.product)
            m.d.sync += walk.beats.eq(scale_beats)
            m.next = "Emit-V-Scales"
            with m.If(phase.v):
                m.next = "V-Address"
        with m.State("V-Address"):
            walk.advance(k_beats)
            m.d.sync += walk.beats.eq(tile_beats)
            m.next = "Emit-Cell"
        walk.emit("V-Scales")
        with m.State("V-Scales"):
            walk.advance(kv.v_scales - kv.k_scales)
            m.next = "Emit-K-Cells"
        walk.emit("K-Cells")
        with m.State("K-Cells"):
            walk.advance(kv.k_data - kv.v_scales)
            m.d.sync += walk.beats.eq(tile_beats)
            m.next = "Emit-Cell"
        walk.emit("Cell")
        with m.State("Cell"):
            walk.advance(kv.cell_beats(narrow))
            m.d.sync += cell.eq(cell + 1)
            m.next = "Emit-Cell"
            with m.If(cell + 1 == cells):
                m.next = "Phase"
