"""The fetcher: turns a program into stream segments, ahead of compute."""

from __future__ import annotations

from amaranth import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.kv import KvGeometry
from tellme.golden.program import DESCRIPTOR_BYTES, Opcode
from tellme.hw.control.descriptor import field
from tellme.hw.control.sequence import PhaseSequencer
from tellme.hw.fp.dsp import CASCADE_SHIFT, multiply_add, positive
from tellme.hw.interfaces import PassParameters, count_bits
from tellme.hw.pipeline import register

SEGMENT = data.StructLayout({"address": 32, "beats": 32})
"""Payload of a stream segment: `beats` consecutive beats from `address`."""


class Fetcher(wiring.Component):
    """Emits the segments of a pass in order: the program, then what each descriptor reads.

    Golden: `golden.schedule.segments`. It waits for nothing but its output: how far it runs ahead is the reader's FIFO to decide.

    Interface attributes
    --------------------
    start : pulse; the parameters of the pass stay stable until the pass ends.
    program_ready : the program memory is filled.
    request, index, valid, descriptor : a reader's port of `ProgramMemory`.
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
                "request": Out(1),
                "index": Out(clog2(config.max_descriptors)),
                "valid": In(1),
                "descriptor": In(8 * DESCRIPTOR_BYTES),
                "segments": Out(stream.Signature(SEGMENT)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        c = self.config
        kv = KvGeometry(c)
        cell_bits = c.cell.bit_length() - 1
        tile_bits = c.key_tile.bit_length() - 1
        m.submodules.sequencer = sequencer = PhaseSequencer(c)

        d = Signal(8 * DESCRIPTOR_BYTES)
        opcode = field(d, Opcode.LOAD, "opcode")
        lane = Signal(clog2(c.lanes) + 1)
        m.d.comb += sequencer.kv_heads.eq(field(d, Opcode.ATTENTION, "kv_heads"))
        wiring.connect(m, wiring.flipped(self.parameters), sequencer.parameters)

        # One multiplier, four cycles: its operands are set in one state and its product taken in a later one.
        a, b = Signal(32), Signal(16)
        b_bits = len(b)
        low, cascade = multiply_add(
            m, platform, "low", positive(b), positive(a[:CASCADE_SHIFT]), registers=0, width=b_bits + CASCADE_SHIFT + 1
        )
        high, _ = multiply_add(
            m, platform, "high", positive(b), positive(a[CASCADE_SHIFT:]), cascade=cascade, width=48 - CASCADE_SHIFT
        )
        product = Cat(register(m, low[:CASCADE_SHIFT], "product_low"), high)
        wait = Signal(2)

        address = Signal(32)
        beats = Signal(32)
        # Added to the address a cycle after it is known, so that the adder is not behind the choice.
        addend = Signal(32)
        adding = Signal()
        m.d.sync += adding.eq(0)
        with m.If(adding):
            m.d.sync += address.eq(address + addend)
        m.d.comb += [self.segments.payload.address.eq(address), self.segments.payload.beats.eq(beats)]

        def multiply(x: object, y: object, then: str) -> None:
            m.d.sync += [a.eq(x), b.eq(y), wait.eq(2)]
            m.next = f"Wait-{then}"

        def advance(x: object) -> None:
            m.d.sync += [addend.eq(x), adding.eq(1)]

        def waiting(then: str) -> None:
            with m.State(f"Wait-{then}"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.next = then

        def emit(then: str) -> None:
            """A state that sends (address, beats) and goes on; nothing is sent for 0 beats."""
            with m.State(f"Emit-{then}"):
                m.d.comb += self.segments.valid.eq(~adding & (beats != 0))
                with m.If(~adding & (self.segments.ready | (beats == 0))):
                    m.next = then

        phase = Signal.like(sequencer.phases.payload)
        cells = Signal(16)
        cell = Signal(16)
        tile_beats = Signal(16)
        scale_beats = Signal(16)
        sweeps = Signal(range(-(-c.lanes // c.attention_lanes) + 1))
        m.d.comb += [
            cells.eq(kv.cells(field(d, Opcode.ATTENTION, "head_dim"))),
            tile_beats.eq(kv.cell_reads(phase.keys)),
            scale_beats.eq(kv.scale_reads(phase.keys)),
        ]
        k_beats, block_beats = Signal(16), Signal(16)  # of a block's K record, and all of it
        m.d.sync += [k_beats.eq(kv.v_data(cells)), block_beats.eq(kv.block_stride(cells))]

        with m.FSM() as fsm:
            with m.State("Idle"):
                with m.If(self.start):
                    descriptor_beats = (self.program_length * DESCRIPTOR_BYTES) >> (c.beat_bytes.bit_length() - 1)
                    m.d.sync += [address.eq(self.program_address), beats.eq(descriptor_beats), self.index.eq(0)]
                    m.next = "Emit-Program"
            emit("Program")
            with m.State("Program"):
                with m.If(self.program_ready):
                    m.next = "Read"
            with m.State("Read"):
                m.d.comb += self.request.eq(1)
                with m.If(self.valid):
                    m.d.sync += [d.eq(self.descriptor), self.index.eq(self.index + 1)]
                    m.next = "Decode"
            with m.State("Decode"):
                gain = field(d, Opcode.LOAD, "gain_beats")
                m.d.sync += [address.eq(field(d, Opcode.LOAD, "address")), beats.eq(gain), lane.eq(0)]
                with m.Switch(opcode):
                    with m.Case(Opcode.LOAD):
                        m.next = "Emit-X"
                    with m.Case(Opcode.LINEAR):
                        m.next = "Emit-Matrix"
                    with m.Case(Opcode.ATTENTION):
                        m.d.comb += sequencer.start.eq(1)
                        m.next = "Emit-Phase"
                    with m.Case(Opcode.HEAD):
                        m.d.sync += sweeps.eq(
                            (self.head_count + (c.attention_lanes - 1)) >> (c.attention_lanes.bit_length() - 1)
                        )
                        m.next = "Head"
                    with m.Default():
                        m.next = "Idle"
            # LOAD: inputs of all lanes lie together; rotary rows are gathered by position.
            emit("X")
            with m.State("X"):
                m.d.sync += address.eq(field(d, Opcode.LOAD, "x_address"))
                multiply(self.parameters.lanes, field(d, Opcode.LOAD, "x_beats"), "X-Length")
            waiting("X-Length")
            with m.State("X-Length"):
                m.d.sync += beats.eq(product)
                m.next = "Emit-Rope"
            emit("Rope")
            with m.State("Rope"):
                m.next = "Read"
                with m.If(lane != self.parameters.lanes):
                    multiply(
                        field(d, Opcode.LOAD, "rope_beats"),
                        self.parameters.position[lane[: clog2(c.lanes)]],
                        "Rope-Address",
                    )
            waiting("Rope-Address")
            with m.State("Rope-Address"):
                advance(product)
                m.d.sync += [
                    address.eq(field(d, Opcode.LOAD, "rope_address")),
                    beats.eq(field(d, Opcode.LOAD, "rope_beats")),
                    lane.eq(lane + 1),
                ]
                m.next = "Emit-Rope"
            # LINEAR: tiles * rows beats behind the gain.
            emit("Matrix")
            with m.State("Matrix"):
                advance(beats)
                multiply(field(d, Opcode.LINEAR, "tiles"), field(d, Opcode.LINEAR, "rows"), "Matrix-Length")
            waiting("Matrix-Length")
            with m.State("Matrix-Length"):
                m.d.sync += beats.eq(product)
                m.next = "Emit-Read"
            emit("Read")
            # HEAD: the whole head once a sweep of attention_lanes lanes.
            with m.State("Head"):
                with m.If(sweeps == 0):
                    m.next = "Read"
                with m.Else():
                    inputs = field(d, Opcode.HEAD, "inputs")
                    length = ((inputs >> cell_bits) << tile_bits) + c.scale_beats
                    multiply(length, field(d, Opcode.HEAD, "blocks"), "Head-Length")
            waiting("Head-Length")
            with m.State("Head-Length"):
                m.d.sync += [beats.eq(product), sweeps.eq(sweeps - 1)]
                m.next = "Emit-Head"
            emit("Head")
            # ATTENTION: K and V cells of every cache block.
            emit("Phase")
            with m.State("Phase"):
                with m.If(sequencer.phases.valid):
                    m.d.comb += sequencer.phases.ready.eq(1)
                    m.d.sync += phase.eq(sequencer.phases.payload)
                    m.next = "Slot"
                with m.Elif(~sequencer.busy):
                    m.next = "Read"
            with m.State("Slot"):
                m.d.sync += [address.eq(field(d, Opcode.ATTENTION, "kv_address")), cell.eq(0)]
                m.next = "Phase"
                with m.If(~phase.own):
                    multiply(
                        field(d, Opcode.ATTENTION, "slot_stride"), self.parameters.slot[phase.lane_lo], "Head-Address"
                    )
            waiting("Head-Address")
            with m.State("Head-Address"):
                advance(product)
                multiply(field(d, Opcode.ATTENTION, "head_stride"), phase.kv_head, "Block-Address")
            waiting("Block-Address")
            with m.State("Block-Address"):
                advance(product)
                multiply(block_beats, phase.block, "Data-Address")
            waiting("Data-Address")
            with m.State("Data-Address"):
                advance(product)
                m.d.sync += beats.eq(scale_beats)
                m.next = "Emit-V-Scales"
                with m.If(phase.v):
                    m.next = "V-Address"
            with m.State("V-Address"):
                advance(k_beats)
                m.d.sync += beats.eq(tile_beats)
                m.next = "Emit-Cell"
            emit("V-Scales")
            with m.State("V-Scales"):
                advance(kv.v_scales - kv.k_scales)
                m.next = "Emit-Data"
            emit("Data")
            with m.State("Data"):
                advance(kv.k_data - kv.v_scales)
                m.d.sync += beats.eq(tile_beats)
                m.next = "Emit-Cell"
            emit("Cell")
            with m.State("Cell"):
                advance(c.key_tile)
                m.d.sync += cell.eq(cell + 1)
                m.next = "Emit-Cell"
                with m.If(cell + 1 == cells):
                    m.next = "Phase"
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
        return m
