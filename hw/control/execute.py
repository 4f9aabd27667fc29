"""The executor: runs a program's descriptors in order on the compute units."""

from __future__ import annotations

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.program import DESCRIPTOR_BYTES, Kind, Opcode
from tellme.golden.registers import MAX_SLOTS
from tellme.hw.control.check import ProgramCheck
from tellme.hw.control.descriptor import DESCRIPTOR
from tellme.hw.control.route import Route
from tellme.hw.head.heap import CANDIDATE_BITS
from tellme.hw.interfaces import phase_layout


class Executor(wiring.Component):
    """Starts the units for each descriptor and waits until they are done; routes the stream's beats.

    A unit's `start_*` is a pulse; its `*_busy` is high from the cycle after it until its work has settled.
    Between two descriptors it spends about six cycles (read, decode). Before the first, it has all of them looked at
    (ProgramCheck).

    Interface attributes
    --------------------
    start : pulse; `done` is a pulse when END is reached and every write has arrived. `busy` : in between.
    program_length, context, slots, head_first, head_count, candidates : the registers, stable until the pass ends.
    loading : beats are those of the program. `beat_taken` : one has come.
    program_ready : the program has come and can run.
    request, read_index, valid, read_descriptor : a reader's port of `ProgramMemory`.
    index : the next descriptor to read.
    descriptor : the descriptor in execution; units take their job parameters from its fields.
    route, draining : for the beat router and the stall counters (`draining`: beats are through, units are not).
    waiting_elementwise : the stream waits for the quantiser.
    start_* : pulse, of each unit of `STARTS`.
    *_busy : of each unit of `UNITS`.
    head_mode : the output head runs.
    head_phases : stream of its phases. `sweep_first`, `sweep_count`: lanes of the current sweep.
    screening : a screened head runs: TLMM's rows are its own.
    bad_descriptor : level, the program cannot run because of the descriptor before `index`; nothing of it was executed.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        lane = clog2(config.lanes)
        super().__init__(
            {
                "start": In(1),
                "done": Out(1),
                "busy": Out(1),
                "bad_descriptor": Out(1),
                "program_length": In(16),
                "context": In(clog2(config.most_context + 1)),
                "slots": In(clog2(MAX_SLOTS + 1)),
                "head_first": In(lane),
                "head_count": In(lane + 1),
                "candidates": In(CANDIDATE_BITS),
                # program memory
                "beat_taken": In(1),
                "loading": Out(1),
                "program_ready": Out(1),
                "request": Out(1),
                "index": Out(range(config.max_descriptors + 2)),
                "read_index": Out(clog2(config.max_descriptors)),
                "valid": In(1),
                "read_descriptor": In(DESCRIPTOR),
                "descriptor": Out(DESCRIPTOR),
                # routing and accounting
                "route": Out(Route),
                "draining": Out(1),
                "waiting_elementwise": Out(1),
                # units
                **{f"start_{u}": Out(1) for u in STARTS},
                **{f"{u}_busy": In(1) for u in UNITS},
                "head_mode": Out(1),
                "screening": Out(1),
                "sweep_first": Out(lane),
                "sweep_count": Out(lane + 1),
                "head_phases": Out(stream.Signature(phase_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.check = check = ProgramCheck(self.config)
        m.d.comb += [
            check.length.eq(self.program_length),
            check.context.eq(self.context),
            check.slots.eq(self.slots),
            check.candidates.eq(self.candidates),
            check.head_count.eq(self.head_count),
            check.valid.eq(self.valid),
            check.descriptor.eq(self.read_descriptor),
            self.read_index.eq(Mux(check.busy, check.index, self.index)),
        ]
        has_gain = self.descriptor.shared.gain_beats != 0
        lanes_left = Signal(clog2(self.config.lanes) + 1)
        block, last_block = self._head_phase(m)
        with m.FSM() as fsm:
            self._take_program(m, check)
            self._read_descriptor(m, has_gain, lanes_left)
            self._run(m, "Load-Gain", "gain", "Load-X")
            self._run(m, "Load-X", "x", "Load-Rope")
            self._run(m, "Load-Rope", "rope", "Read")
            self._run_linear(m, has_gain)
            self._run_attention(m, has_gain)
            self._run_head(m, lanes_left, block, last_block)
            self._run_screen(m)
            with m.State("Finish"):
                m.d.comb += self.draining.eq(1)
                with m.If(~self.writer_busy):
                    m.d.comb += self.done.eq(1)
                    m.next = "Idle"
        m.d.comb += self.busy.eq(~fsm.ongoing("Idle"))
        return m

    def _head_phase(self, m: Module) -> tuple[Signal, Signal]:
        """The phase of a block of the output head. Returns (block, whether it is the last)."""
        phase = self.head_phases.payload
        block, final_block, last_block = Signal(16), Signal(16), Signal()
        m.d.sync += final_block.eq(self.descriptor.head.blocks - 1)
        m.d.comb += [
            last_block.eq(block == final_block),
            phase.block.eq(block),
            phase.keys.eq(self.config.key_block),
            phase.first.eq(block == 0),
            phase.last.eq(last_block),
            phase.final.eq(last_block),
        ]
        return block, last_block

    def _run(self, m: Module, name: str, unit: str, then: str) -> None:
        """States that start a unit and wait until it is done."""
        with m.State(name):
            m.d.comb += getattr(self, f"start_{unit}").eq(1)
            m.next = f"{name}-Started"
        with m.State(f"{name}-Started"):
            m.next = f"{name}-Wait"
        with m.State(f"{name}-Wait"):
            with m.If(~getattr(self, f"{unit}_busy")):
                m.next = then

    def _take_program(self, m: Module, check: ProgramCheck) -> None:
        """Waits for the program's beats, and has it looked at."""
        beat_bits = exact_log2(self.config.beat_bytes)
        remaining = Signal(24)
        with m.State("Idle"):
            with m.If(self.start):
                m.d.sync += [
                    self.index.eq(0),
                    self.program_ready.eq(0),
                    self.head_mode.eq(0),
                    self.screening.eq(0),
                    self.bad_descriptor.eq(0),
                    self.route.eq(Route.PROGRAM),
                    remaining.eq((self.program_length * DESCRIPTOR_BYTES) >> beat_bits),
                ]
                m.next = "Program"
        with m.State("Program"):
            m.d.comb += self.loading.eq(1)
            with m.If(remaining == 0):
                m.d.comb += check.start.eq(1)
                m.next = "Checking"
            with m.Elif(self.beat_taken):
                m.d.sync += remaining.eq(remaining - 1)
        with m.State("Checking"):
            m.d.comb += self.request.eq(check.request)
            with m.If(~check.busy):
                m.d.sync += self.program_ready.eq(~check.bad)
                m.next = "Read"
                with m.If(check.bad):
                    m.d.sync += [self.bad_descriptor.eq(1), self.index.eq(check.index + 1)]
                    m.next = "Idle"

    def _read_descriptor(self, m: Module, has_gain: Value, lanes_left: Signal) -> None:
        """Reads the next descriptor and begins it."""
        d = self.descriptor
        # The cache is written behind the matmuls that follow attention: they do not change own K and V.
        hold = Signal()
        in_the_way = (d.shared.opcode != Opcode.LINEAR) | (d.linear.kind == Kind.QKV)
        m.d.comb += hold.eq(self.kv_writer_busy & in_the_way)
        heads, screened = Signal(), Signal()
        m.d.sync += [heads.eq(self.head_count != 0), screened.eq(self.candidates != 0)]
        with m.State("Read"):
            m.d.sync += self.route.eq(Route.LOAD)
            m.d.comb += self.request.eq(1)
            with m.If(self.valid):
                m.d.sync += [d.eq(self.read_descriptor), self.index.eq(self.index + 1)]
                m.next = "Decode"
        with m.State("Decode"):
            with m.If(~hold), m.Switch(d.shared.opcode):
                with m.Case(Opcode.END):
                    m.next = "Finish"
                with m.Case(Opcode.LOAD):
                    m.next = "Load-X"
                    with m.If(has_gain):
                        m.next = "Load-Gain"
                with m.Case(Opcode.LINEAR):
                    m.next = "Linear"
                with m.Case(Opcode.ATTENTION):
                    m.next = "Attention"
                with m.Case(Opcode.HEAD):
                    m.d.sync += [self.sweep_first.eq(self.head_first), lanes_left.eq(self.head_count)]
                    m.next = "Read"
                    with m.If(heads & ~screened):
                        m.next = "Head-Quantise"
                with m.Case(Opcode.SCREEN):
                    m.next = "Read"
                    exact = d.screen.exact if self.config.ternary_head else 0
                    with m.If(heads & (screened | exact)):
                        m.next = "Screen"

    def _run_linear(self, m: Module, has_gain: Value) -> None:
        """The quantiser and the tables start while the gain is still on its way."""
        with m.State("Linear"):
            m.d.comb += [
                self.start_gain.eq(has_gain),
                self.start_quantise.eq(1),
                self.start_epilogue.eq(1),
                self.start_tlmm.eq(1),
            ]
            m.next = "Linear-Started"
        with m.State("Linear-Started"):
            m.next = "Linear-Gain"
        with m.State("Linear-Gain"):
            with m.If(~self.gain_busy):
                m.d.sync += self.route.eq(Route.TLMM)
                m.next = "Linear-Stream"
        with m.State("Linear-Stream"):
            m.d.comb += self.waiting_elementwise.eq(self.quantise_busy)
            with m.If(~self.tlmm_busy):
                m.next = "Linear-Drain"
        with m.State("Linear-Drain"):
            m.d.comb += self.draining.eq(1)
            with m.If(~self.epilogue_busy & ~self.quantise_busy):
                m.next = "Read"

    def _run_attention(self, m: Module, has_gain: Value) -> None:
        """The cache writer starts with attention, and may end behind it."""
        with m.State("Attention"):
            m.d.comb += [self.start_gain.eq(has_gain), self.start_kv_writer.eq(1), self.start_collect.eq(1)]
            m.next = "Attention-Started"
        with m.State("Attention-Started"):
            m.next = "Attention-Gain"
        with m.State("Attention-Gain"):
            with m.If(~self.gain_busy):
                m.d.comb += [self.start_attention.eq(1), self.start_sequence.eq(1)]
                m.d.sync += self.route.eq(Route.ATTENTION)
                m.next = "Attention-Stream"
        with m.State("Attention-Stream"):
            m.next = "Attention-Wait"
        with m.State("Attention-Wait"):
            with m.If(~self.attention_busy & ~self.collect_busy):
                m.next = "Read"

    def _run_screen(self, m: Module) -> None:
        """The ternary matrix as in a LINEAR, to the screened head, which then asks for the candidates' rows."""
        with m.State("Screen"):
            m.d.sync += [self.route.eq(Route.SCREEN), self.screening.eq(1)]
            m.next = "Screen-Start"
        with m.State("Screen-Start"):
            m.d.comb += [self.start_quantise.eq(1), self.start_tlmm.eq(1), self.start_screen.eq(1)]
            m.next = "Screen-Started"
        with m.State("Screen-Started"):
            m.next = "Screen-Wait"
        with m.State("Screen-Wait"):
            m.d.comb += self.waiting_elementwise.eq(self.quantise_busy)
            with m.If(~self.tlmm_busy & ~self.quantise_busy & ~self.screen_busy):
                m.d.sync += self.screening.eq(0)
                m.next = "Read"

    def _run_head(self, m: Module, lanes_left: Signal, block: Signal, last_block: Signal) -> None:
        """The whole head once a sweep of attention_lanes lanes."""
        most = self.config.attention_lanes
        with m.State("Head-Quantise"):
            m.d.comb += self.start_quantise.eq(1)
            m.next = "Head-Quantising"
        with m.State("Head-Quantising"):
            m.next = "Head-Quantise-Wait"
        with m.State("Head-Quantise-Wait"):
            m.d.comb += self.waiting_elementwise.eq(1)
            with m.If(~self.quantise_busy):
                m.d.sync += [self.route.eq(Route.ATTENTION), self.head_mode.eq(1)]
                m.next = "Head-Sweep"
        with m.State("Head-Sweep"):
            m.d.sync += self.sweep_count.eq(Mux(lanes_left > most, most, lanes_left))
            m.next = "Head"
        with m.State("Head"):
            m.d.comb += self.start_attention.eq(1)
            m.d.sync += block.eq(0)
            m.next = "Head-Blocks"
        with m.State("Head-Blocks"):
            m.d.comb += self.head_phases.valid.eq(1)
            with m.If(self.head_phases.ready):
                m.d.sync += block.eq(block + 1)
                with m.If(last_block):
                    m.next = "Head-Wait"
        with m.State("Head-Wait"):
            with m.If(~self.attention_busy):
                m.d.sync += [
                    self.sweep_first.eq(self.sweep_first + self.sweep_count),
                    lanes_left.eq(lanes_left - self.sweep_count),
                ]
                m.next = "Head-Sweep"
                with m.If(lanes_left == self.sweep_count):
                    m.d.sync += self.head_mode.eq(0)
                    m.next = "Read"


STARTS = (
    "gain",
    "x",
    "rope",
    "quantise",
    "epilogue",
    "collect",
    "tlmm",
    "attention",
    "sequence",
    "kv_writer",
    "screen",
)
"""Units that the executor starts. collect: the statistics of attention results; sequence: the phase sequencer."""
UNITS = ("gain", "x", "rope", "quantise", "epilogue", "collect", "tlmm", "attention", "kv_writer", "writer", "screen")
"""Units it waits for."""
