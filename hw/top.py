"""The accelerator: every block, connected. The picture of it is docs/images/architecture.svg."""

from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, ResetInserter
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import KvGeometry
from tellme.golden.program import Opcode
from tellme.golden.registers import ADDRESS_BITS, IDENTITY, VERSION, build_hash, geometry
from tellme.hw.attention.unit import AttentionUnit
from tellme.hw.control.counters import Counters
from tellme.hw.control.descriptor import ProgramMemory
from tellme.hw.control.execute import Executor
from tellme.hw.control.fetch import Fetcher
from tellme.hw.control.lanes import LaneCheck
from tellme.hw.control.parameters import PassRegisters
from tellme.hw.control.registers import ControlRegisters
from tellme.hw.control.route import BeatRouter, Route, StreamChoice, StreamSwitch
from tellme.hw.control.sequence import PhaseSequencer
from tellme.hw.control.supervise import Supervisor
from tellme.hw.elementwise.elementwise import Elementwise
from tellme.hw.head.unit import ScreenedHead
from tellme.hw.interfaces import join, phase_layout, take
from tellme.hw.memory.axi import Axi, AxiLite
from tellme.hw.memory.kv_writer import KvWriter
from tellme.hw.memory.logit_writer import LogitWriter
from tellme.hw.memory.reader import StreamReader
from tellme.hw.memory.share import Int8Sharing, OwnSharing
from tellme.hw.memory.writer import BeatWriter, write_layout
from tellme.hw.tlmm.accumulate import row_layout
from tellme.hw.tlmm.engine import TlmmEngine


class Blocks:
    """The components of an accelerator, by the names of its submodules."""

    LASTING = {"supervisor", "registers", "pass_registers", "counters", "reader", "writer"}
    """Those that outlive a pass that was stopped: the AXI masters first finish what they owe."""

    def __init__(self, config: AcceleratorConfig) -> None:
        self.supervisor = Supervisor()
        self.registers = ControlRegisters(config)
        self.pass_registers = PassRegisters(config)
        self.counters = Counters(config.ports)
        self.lane_check = LaneCheck(config)
        # The stream.
        self.reader = StreamReader(config)
        self.router = BeatRouter(config)
        # The program.
        self.program = ProgramMemory(config)
        self.fetcher = Fetcher(config)
        self.executor = Executor(config)
        # The engines.
        self.tlmm = TlmmEngine(config)
        self.elementwise = Elementwise(config)
        self.attention = AttentionUnit(config)
        self.screened_head = ScreenedHead(config)
        self.row_switch = StreamSwitch(row_layout(config))
        self.sequencer = PhaseSequencer(config)
        self.phase_choice = StreamChoice(phase_layout(config))
        self.int8_sharing = Int8Sharing(config)
        self.own_sharing = OwnSharing(config)
        # What is written.
        self.kv_writer = KvWriter(config)
        self.logit_writer = LogitWriter(config)
        self.write_choice = StreamChoice(write_layout(config))
        self.writer = BeatWriter(config)


class Accelerator(wiring.Component):
    """A ternary-LLM accelerator.

    Interface attributes
    --------------------
    s_axi : AXI4-Lite registers (`golden.registers`).
    m_axi : AXI4 masters to memory, one a port.
    irq : high while a pass is done and interrupts are enabled.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        super().__init__(
            {
                "s_axi": In(AxiLite(address_width=ADDRESS_BITS)),
                "m_axi": Out(Axi(data_bytes=config.port_bytes)).array(config.ports),
                "irq": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        b = Blocks(self.config)
        # Everything that computes is reset when a pass stops with an error.
        reset = ResetInserter(b.supervisor.reset)
        for name, block in vars(b).items():
            m.submodules[name] = block if name in b.LASTING else reset(block)

        self._registers(m, b)
        self._memory(m, b)
        self._pass(m, b)
        self._program(m, b)
        self._jobs(m, b)
        self._starts(m, b)
        self._beats(m, b)
        self._results(m, b)
        self._writes(m, b)
        self._supervision(m, b)
        self._counters(m, b)
        return m

    def _registers(self, m: Module, b: Blocks) -> None:
        registers, supervisor = b.registers, b.supervisor
        connect(m, flipped(self.s_axi), registers.bus)
        m.d.comb += [
            registers.identity.eq(IDENTITY),
            registers.version.eq(VERSION),
            registers.build.eq(Const(build_hash(self.config), 32)),
            registers.geometry.eq(geometry(self.config)),
            self.irq.eq(supervisor.finished & registers.irq_enable.done),
        ]
        for field, source in (("busy", "busy"), ("done", "finished"), ("stopped", "reset"), ("error", "error")):
            m.d.comb += registers.status[field].eq(getattr(supervisor, source))
        join(m, supervisor, registers, "error_address", busy="locked")
        join(m, b.counters, registers, "cycles beats writes stall busy port_beats port_stalls")
        join(m, b.attention, registers, "best_index best_value")
        join(m, b.screened_head, registers, "bound")

    def _memory(self, m: Module, b: Blocks) -> None:
        """The ports: their read channels are the reader's, their write channels the writer's."""
        registers, reader, writer = b.registers, b.reader, b.writer
        for i in range(self.config.ports):
            base = Cat(registers.base_low[i], registers.base_high[i])
            owed = registers.owed[i]
            m.d.comb += [owed.reads.eq(reader.owed[i]), owed.writes.eq(writer.owed[i])]
            m.d.comb += [unit.base[i].eq(base) for unit in (reader, writer)]
            join(m, reader.m_axi[i], flipped(self.m_axi[i]))
            join(m, writer.m_axi[i], flipped(self.m_axi[i]))
        take(m, registers.port_lead, reader, "free")
        for unit in (reader, writer):
            join(m, registers, unit, "window_beats timeout")
            join(m, b.supervisor, unit, "clear")

    def _pass(self, m: Module, b: Blocks) -> None:
        """Lanes of the pass."""
        join(m, b.registers, b.pass_registers, "lanes position slot program_length context slots candidates")
        join(m, b.registers, b.lane_check, "lanes head_lanes context slots position slot")
        parameters = b.pass_registers.parameters
        for unit in (b.fetcher, b.sequencer, b.kv_writer):
            connect(m, parameters, unit.parameters)
        for unit in (b.tlmm, b.elementwise.job):
            join(m, parameters, unit, "lanes")

    def _program(self, m: Module, b: Blocks) -> None:
        program, fetcher, executor = b.program, b.fetcher, b.executor
        join(m, b.supervisor, program, start="restart")
        join(m, b.supervisor, fetcher, "start")
        join(m, b.supervisor, executor, "start")
        join(m, b.registers, fetcher, "program_address")
        join(m, b.pass_registers, fetcher, length="program_length")
        join(m, b.pass_registers, executor, length="program_length", max_context="context", max_slots="slots")
        join(m, program, fetcher, "descriptor", fetch_request="request", fetch_index="index", fetch_valid="valid")
        join(
            m,
            program,
            executor,
            execute_request="request",
            execute_index="read_index",
            execute_valid="valid",
            descriptor="read_descriptor",
        )
        join(m, executor, fetcher, "program_ready")
        connect(m, fetcher.segments, b.reader.segments)
        connect(m, b.screened_head.chosen, fetcher.chosen)

    def _jobs(self, m: Module, b: Blocks) -> None:
        """Job parameters: fields of the descriptor in execution."""
        c = self.config
        registers, fetcher, executor, sequencer = b.registers, b.fetcher, b.executor, b.sequencer
        tlmm, logits = b.tlmm, b.logit_writer
        elementwise, attention, kv_writer = b.elementwise.job, b.attention.job, b.kv_writer.job
        d = executor.descriptor
        shared_fields = "kind norm_in gain_out gain_beats inputs inv_n eps head_dim heads kv_heads k_narrow v_narrow"
        take(m, d.shared, elementwise, shared_fields)
        take(m, d.linear, elementwise, "tiles rows scale0 scale1 scale2 q_scale")
        # Whole K tiles are quantised; the head has no tiles field, and one tile too many is harmless.
        with m.If(d.shared.opcode == Opcode.HEAD):
            take(m, d.head, elementwise, "tiles")
        take(m, d.load, elementwise, "x_beats rope_beats")
        if c.packing.group:  # the head's multipliers know no exponents
            m.d.comb += elementwise.grouped.eq(d.shared.opcode == Opcode.LINEAR)
        if c.hadamard:
            take(m, d.linear, elementwise, "hadamard")
        screen = b.screened_head
        screened = d.shared.opcode == Opcode.SCREEN
        take(m, d.linear, tlmm, "tiles")
        m.d.comb += [
            tlmm.rows.eq(Mux(screened, screen.matrix_rows, d.linear.rows)),
            tlmm.block_rows.eq(Mux(screened, c.block_rows, d.linear.block_rows)),
        ]
        take(m, d.screen, screen, "tiles planes inputs bound_unit", rows="vocabulary")
        if c.ternary_head:
            take(m, d.screen, screen, "exact")
        take(m, registers.write_logits, screen, every="write")
        take(m, registers.head_lanes, screen, first="head_first", count="head_count")
        for unit in (executor, fetcher, screen):
            join(m, b.pass_registers, unit, wanted="candidates")
        take(m, d.attention, kv_writer, "kv_address slot_stride head_stride")
        take(m, d.head, attention, rows="vocabulary")
        take(m, d.head, logits, logits_address="address", logits_stride="stride")
        take(m, registers.write_logits, attention, every="write_logits")
        take(m, registers.head_lanes, fetcher, count="head_count")
        take(m, registers.head_lanes, executor, first="head_first", count="head_count")
        for unit in (sequencer, kv_writer, attention):
            take(m, d.shared, unit, "kv_heads")
        take(m, d.attention, sequencer, v_narrow="split")
        for unit in (kv_writer, attention):
            take(m, d.attention, unit, "k_narrow v_narrow")
        kv = KvGeometry(c)
        cells = kv.cells(d.shared.head_dim)
        m.d.comb += [
            kv_writer.cells.eq(cells),
            attention.cells.eq(Mux(executor.head_mode, kv.cells(d.head.inputs), cells)),
            attention.group.eq(Mux(executor.head_mode, 1, d.attention.group)),
        ]
        join(m, executor, attention, "head_mode", sweep_first="head_first", sweep_count="head_count")

    def _starts(self, m: Module, b: Blocks) -> None:
        """The executor starts the units and waits for them."""
        executor = b.executor
        join(
            m,
            executor,
            b.elementwise,
            "start_gain start_x start_rope start_quantise start_epilogue "
            "gain_busy x_busy rope_busy quantise_busy epilogue_busy",
            start_collect="start_attention",
            collect_busy="attention_busy",
        )
        join(m, executor, b.tlmm, start_tlmm="start", tlmm_busy="busy")
        join(m, executor, b.attention, start_attention="start")
        join(m, executor, b.screened_head, start_screen="start")
        join(m, executor, b.sequencer, start_sequence="start")
        join(m, executor, b.kv_writer, start_kv_writer="start", kv_writer_busy="busy")
        m.d.comb += [
            executor.attention_busy.eq(b.attention.busy | b.logit_writer.busy),
            executor.screen_busy.eq(b.screened_head.busy | b.logit_writer.busy),
            executor.writer_busy.eq(~b.writer.idle),
            # Bursts of logits grow over the blocks of the head.
            b.writer.more.eq(b.kv_writer.busy | b.logit_writer.busy | (b.attention.busy & executor.head_mode)),
        ]

    def _beats(self, m: Module, b: Blocks) -> None:
        """The stream, to the unit whose turn it is."""
        router = b.router
        join(m, b.executor, router, "route loading", beat_taken="program_write")
        connect(m, b.reader.beats, router.beats)
        connect(m, router.load, b.elementwise.load)
        connect(m, router.tlmm, b.tlmm.beats)
        connect(m, router.attention, b.attention.beats)
        connect(m, router.screen, b.screened_head.beats)
        join(m, b.screened_head, router, "weights")
        join(m, router, b.screened_head, "taken")
        join(m, router, b.program, program="beat", program_write="write")

    def _results(self, m: Module, b: Blocks) -> None:
        """What the engines give each other, and the buffers that they share."""
        elementwise, attention = b.elementwise, b.attention
        join(m, elementwise, b.tlmm, "quantised")
        screen, rows = b.screened_head, b.row_switch
        join(m, b.executor, rows, screening="second")
        connect(m, b.tlmm.rows_out, rows.source)
        connect(m, rows.takers[0], elementwise.rows_in)
        connect(m, rows.takers[1], screen.rows)
        connect(m, attention.chunks, elementwise.chunks)
        join(m, screen, attention.screened, best="valid", best_lane="lane", best_row="row", best_value="value")

        int8, own = b.int8_sharing, b.own_sharing
        join(m, attention, int8, busy="attending")
        connect(m, b.tlmm.int8, int8.tables)
        connect(m, attention.int8, int8.attention)
        connect(m, screen.int8, int8.rows)
        connect(m, screen.query_scales, int8.rows_scales)
        connect(m, attention.query_scales, int8.attention_scales)
        connect(m, int8.scales, elementwise.query_scales)
        join(m, screen, int8, "scoring")
        if self.config.ternary_head:
            join(m, screen, int8, busy="scaling")
        connect(m, int8.buffer, elementwise.int8)
        connect(m, attention.own, own.attention)
        connect(m, attention.own_scales, own.attention_scales)
        connect(m, b.kv_writer.own, own.writer)
        connect(m, b.kv_writer.own_scales, own.writer_scales)
        connect(m, own.buffer, elementwise.own)
        connect(m, own.buffer_scales, elementwise.own_scales)

        phases = b.phase_choice
        join(m, b.executor, phases, head_mode="second")
        connect(m, b.sequencer.phases, phases.sources[0])
        connect(m, b.executor.head_phases, phases.sources[1])
        connect(m, phases.out, attention.blocks)

    def _writes(self, m: Module, b: Blocks) -> None:
        """Logits, or keys and values, to memory."""
        writes = b.write_choice
        connect(m, b.attention.logits, b.logit_writer.logits)
        connect(m, b.screened_head.written, b.logit_writer.candidates)
        join(m, b.logit_writer, writes, holding="second")
        connect(m, b.kv_writer.writes, writes.sources[0])
        connect(m, b.logit_writer.writes, writes.sources[1])
        connect(m, writes.out, b.writer.writes)

    def _supervision(self, m: Module, b: Blocks) -> None:
        supervisor, executor, reader, writer = b.supervisor, b.executor, b.reader, b.writer
        join(m, b.registers, supervisor, "timeout", start="start_request", soft_reset="reset_request")
        join(m, supervisor, b.lane_check, check="start", checking="busy", bad_lanes="bad")
        join(m, b.pass_registers, supervisor, "bad_program")
        join(m, executor, supervisor, "done bad_descriptor")
        join(m, b.tlmm, supervisor, "bad_weight")
        join(m, reader, supervisor, error="read_error", error_address="read_error_address")
        join(m, writer, supervisor, error="write_error", error_address="write_error_address")
        m.d.comb += [
            supervisor.descriptor_index.eq(executor.index),
            supervisor.quiet.eq(reader.quiet & writer.quiet),
            supervisor.progress.eq(b.router.taken | writer.writes_count),
        ]

    def _counters(self, m: Module, b: Blocks) -> None:
        """Where the cycles of a pass went."""
        counters, reader, tlmm, elementwise, executor = b.counters, b.reader, b.tlmm, b.elementwise, b.executor
        join(m, b.supervisor, counters, check="restart", busy="running")
        join(m, b.router, counters, taken="beat", waiting="memory")
        join(m, b.writer, counters, writes_count="write")
        join(m, tlmm, counters, stall_rows="epilogue")
        join(m, executor, counters, draining="drain")
        join(m, reader, counters, "port_beat port_stall")
        m.d.comb += [
            counters.elementwise.eq(tlmm.stall_tables | executor.waiting_elementwise | elementwise.x_busy),
            counters.attention.eq((executor.route == Route.ATTENTION) | (executor.route == Route.SCREEN)),
            counters.unit_busy.eq(
                Cat(
                    reader.level != 0,
                    tlmm.busy,
                    elementwise.epilogue_busy,
                    elementwise.quantise_busy,
                    b.attention.busy,
                    ~b.writer.idle,
                )
            ),
        ]
