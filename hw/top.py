"""The accelerator: every block, connected."""

from __future__ import annotations

from amaranth import Cat, Const, Module, Mux, ResetInserter, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig, clog2
from tellme.golden.program import Opcode
from tellme.golden.registers import ADDRESS_BITS, IDENTITY, VERSION, build_hash, geometry
from tellme.hw import emit
from tellme.hw.attention.unit import AttentionUnit
from tellme.hw.control.counters import Counters
from tellme.hw.control.descriptor import ProgramMemory, field
from tellme.hw.control.execute import Executor, Route
from tellme.hw.control.fetch import Fetcher
from tellme.hw.control.lanes import LaneCheck
from tellme.hw.control.registers import ControlRegisters
from tellme.hw.control.sequence import PhaseSequencer
from tellme.hw.control.supervise import Supervisor
from tellme.hw.elementwise.elementwise import Elementwise
from tellme.hw.memory.axi import Axi, AxiLite
from tellme.hw.memory.kv_writer import KvWriter
from tellme.hw.memory.logit_writer import LogitWriter
from tellme.hw.memory.reader import StreamReader
from tellme.hw.memory.writer import BeatWriter
from tellme.hw.platforms import platform_of
from tellme.hw.primitives import Inferred
from tellme.hw.tlmm.engine import TlmmEngine


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
        c = self.config

        # Everything that computes is reset when a pass stops with an error; the AXI masters first finish what they owe.
        supervisor = m.submodules.supervisor = Supervisor()
        reset = ResetInserter(supervisor.reset)
        registers = m.submodules.registers = ControlRegisters(c)
        reader = m.submodules.reader = StreamReader(c)
        writer = m.submodules.writer = BeatWriter(c)
        units = {
            "program": ProgramMemory(c),
            "fetcher": Fetcher(c),
            "executor": Executor(c),
            "sequencer": PhaseSequencer(c),
            "lane_check": LaneCheck(c),
            "tlmm": TlmmEngine(c),
            "elementwise": Elementwise(c),
            "attention": AttentionUnit(c),
            "kv_writer": KvWriter(c),
            "logit_writer": LogitWriter(c),
        }
        for name, unit in units.items():
            m.submodules[name] = reset(unit)
        program, fetcher, executor, sequencer = (units[n] for n in ("program", "fetcher", "executor", "sequencer"))
        lane_check = units["lane_check"]
        tlmm, elementwise, attention, kv_writer = (units[n] for n in ("tlmm", "elementwise", "attention", "kv_writer"))
        counters = m.submodules.counters = Counters(c.ports)

        self._registers(m, registers, supervisor, counters, attention)
        self._memory(m, registers, supervisor, reader, writer)

        # ---- pass parameters ---------------------------------------------------------------------
        position = Signal(data.ArrayLayout(16, c.lanes))
        slot = Signal(data.ArrayLayout(8, c.lanes))
        same_slot = Signal(c.lanes)
        lanes = Signal(clog2(c.lanes) + 1)
        head_count = Signal(clog2(c.lanes) + 1)
        m.d.comb += [
            lanes.eq(registers.lanes),
            head_count.eq(registers.head_lanes[8:16]),
        ]
        for i in range(c.lanes):
            m.d.comb += [position[i].eq(registers.position[i]), slot[i].eq(registers.slot[i])]
        for i in range(c.lanes - 1):
            m.d.sync += same_slot[i].eq(registers.slot[i][:8] == registers.slot[i + 1][:8])
        for unit in (fetcher, sequencer, kv_writer):
            m.d.comb += [unit.lanes.eq(lanes), unit.position.eq(position)]
        for unit in (fetcher, kv_writer):
            m.d.comb += [unit.slot[i].eq(slot[i]) for i in range(c.lanes)]
        for unit in (fetcher, sequencer):
            m.d.comb += unit.same_slot.eq(same_slot)
        for unit in (tlmm, elementwise, attention):
            m.d.comb += unit.lanes.eq(lanes)

        # ---- program -----------------------------------------------------------------------------
        m.d.comb += [
            fetcher.start.eq(supervisor.start),
            fetcher.program_address.eq(registers.program_address),
            fetcher.program_length.eq(registers.program_length),
            fetcher.program_ready.eq(executor.program_ready),
            fetcher.head_count.eq(head_count),
            executor.start.eq(supervisor.start),
            executor.program_length.eq(registers.program_length),
            executor.context.eq(registers.context),
            executor.slots.eq(registers.slots),
            executor.head_first.eq(registers.head_lanes[:8]),
            executor.head_count.eq(head_count),
            program.restart.eq(supervisor.start),
            program.fetch_request.eq(fetcher.request),
            program.fetch_index.eq(fetcher.index),
            fetcher.valid.eq(program.fetch_valid),
            fetcher.descriptor.eq(program.descriptor),
            program.execute_request.eq(executor.request),
            program.execute_index.eq(executor.read_index),
            executor.valid.eq(program.execute_valid),
            executor.read_descriptor.eq(program.descriptor),
        ]
        wiring.connect(m, fetcher.segments, reader.segments)

        # ---- job parameters and starts -----------------------------------------------------------
        d = executor.descriptor
        for name in (
            "kind norm_in gain_out gain_beats inputs tiles rows inv_n eps scale0 scale1 scale2 q_scale "
            "head_dim heads kv_heads"
        ).split():
            m.d.comb += getattr(elementwise, name).eq(field(d, Opcode.LINEAR, name))
        # Whole K tiles are quantised; the head has no tiles field, and one tile too many is harmless.
        head_dim = field(d, Opcode.LINEAR, "head_dim")
        cells = head_dim >> (c.cell.bit_length() - 1)
        kv_heads = field(d, Opcode.LINEAR, "kv_heads")
        head_op = field(d, Opcode.LINEAR, "opcode") == Opcode.HEAD
        with m.If(head_op):
            m.d.comb += elementwise.tiles.eq(field(d, Opcode.HEAD, "tiles"))
        m.d.comb += [
            elementwise.x_beats.eq(field(d, Opcode.LOAD, "x_beats")),
            elementwise.rope_beats.eq(field(d, Opcode.LOAD, "rope_beats")),
            tlmm.tiles.eq(field(d, Opcode.LINEAR, "tiles")),
            tlmm.rows.eq(field(d, Opcode.LINEAR, "rows")),
            tlmm.block_rows.eq(field(d, Opcode.LINEAR, "block_rows")),
            tlmm.quantised.eq(elementwise.quantised),
            sequencer.kv_heads.eq(kv_heads),
            kv_writer.cells.eq(cells),
            kv_writer.kv_heads.eq(kv_heads),
            kv_writer.kv_address.eq(field(d, Opcode.ATTENTION, "kv_address")),
            kv_writer.slot_stride.eq(field(d, Opcode.ATTENTION, "slot_stride")),
            kv_writer.head_stride.eq(field(d, Opcode.ATTENTION, "head_stride")),
            attention.head_mode.eq(executor.head_mode),
            attention.cells.eq(
                Mux(executor.head_mode, field(d, Opcode.HEAD, "inputs") >> (c.cell.bit_length() - 1), cells)
            ),
            attention.group.eq(Mux(executor.head_mode, 1, field(d, Opcode.ATTENTION, "group"))),
            attention.kv_heads.eq(kv_heads),
            attention.head_first.eq(executor.sweep_first),
            attention.head_count.eq(executor.sweep_count),
            attention.vocabulary.eq(field(d, Opcode.HEAD, "rows")),
            attention.write_logits.eq(registers.write_logits[0]),
        ]
        m.d.comb += [
            elementwise.start_gain.eq(executor.start_gain),
            elementwise.start_x.eq(executor.start_x),
            elementwise.start_rope.eq(executor.start_rope),
            elementwise.start_quantise.eq(executor.start_quantise),
            elementwise.start_epilogue.eq(executor.start_epilogue),
            elementwise.start_attention.eq(executor.start_collect),
            tlmm.start.eq(executor.start_tlmm),
            attention.start.eq(executor.start_attention),
            sequencer.start.eq(executor.start_sequence),
            kv_writer.start.eq(executor.start_kv_writer),
            executor.gain_busy.eq(elementwise.gain_busy),
            executor.x_busy.eq(elementwise.x_busy),
            executor.rope_busy.eq(elementwise.rope_busy),
            executor.quantise_busy.eq(elementwise.quantise_busy),
            executor.epilogue_busy.eq(elementwise.epilogue_busy),
            executor.collect_busy.eq(elementwise.attention_busy),
            executor.tlmm_busy.eq(tlmm.busy),
            executor.kv_writer_busy.eq(kv_writer.busy),
        ]

        # ---- beats -------------------------------------------------------------------------------
        beats = reader.beats
        ready = Signal()
        taken = Signal()
        of_program = Signal()
        sinks = {Route.LOAD: elementwise.load, Route.TLMM: tlmm.beats, Route.ATTENTION: attention.beats}
        for route, sink in sinks.items():
            m.d.comb += [
                sink.payload.eq(beats.payload),
                sink.valid.eq(beats.valid & (executor.route == route)),
            ]
            with m.If(executor.route == route):
                m.d.comb += ready.eq(sink.ready)
        m.d.comb += of_program.eq(executor.loading)
        with m.If(of_program):
            m.d.comb += ready.eq(1)
        m.d.comb += [
            beats.ready.eq(ready),
            taken.eq(beats.valid & ready),
            executor.beat_taken.eq(beats.valid & of_program),
            program.write.eq(beats.valid & of_program),
            program.beat.eq(beats.payload),
        ]

        # ---- results of the units ----------------------------------------------------------------
        wiring.connect(m, tlmm.rows_out, elementwise.rows_in)
        m.d.comb += [
            elementwise.att_valid.eq(attention.att_valid),
            elementwise.att_lane.eq(attention.att_lane),
            elementwise.att_chunk.eq(attention.att_chunk),
            elementwise.att_data.eq(attention.att_data),
            # One read port of the int8 buffer: tables and attention never run together.
            elementwise.q_lane.eq(Mux(attention.busy, attention.q_lane, tlmm.q_lane)),
            elementwise.q_word.eq(Mux(attention.busy, attention.q_word, tlmm.q_word)),
            elementwise.q_en.eq(attention.q_en | tlmm.q_en),
            attention.q_data.eq(elementwise.q_data),
            tlmm.q_data.eq(elementwise.q_data),
            elementwise.qscale_lane.eq(attention.qscale_lane),
            elementwise.qscale_head.eq(attention.qscale_head),
            attention.qscale_data.eq(elementwise.qscale_data),
            # Own K and V: attention goes first, the cache writer takes the free cycles.
            elementwise.own_addr.eq(Mux(attention.own_en, attention.own_addr, kv_writer.own_addr)),
            kv_writer.own_grant.eq(~attention.own_en),
            attention.own_data.eq(elementwise.own_data),
            kv_writer.own_data.eq(elementwise.own_data),
            kv_writer.own_scale_grant.eq(~attention.own_scale_en),
            attention.own_scale_data.eq(elementwise.own_scale_data),
            kv_writer.own_scale_data.eq(elementwise.own_scale_data),
        ]
        for name in ("own_scale_v", "own_scale_head", "own_scale_lane"):
            m.d.comb += getattr(elementwise, name).eq(
                Mux(attention.own_scale_en, getattr(attention, name), getattr(kv_writer, name))
            )

        # ---- phases ------------------------------------------------------------------------------
        sink = attention.blocks
        for source, active in ((sequencer.phases, ~executor.head_mode), (executor.head_phases, executor.head_mode)):
            with m.If(active):
                p, q = source.payload, sink.payload
                m.d.comb += [
                    sink.valid.eq(source.valid),
                    source.ready.eq(sink.ready),
                    q.phase.eq(p.v),
                    q.index.eq(p.block),
                ]
                for name in ("own first last final kv_head lane_lo lane_hi keys base unit_words parity").split():
                    m.d.comb += getattr(q, name).eq(getattr(p, name))

        # ---- writes ------------------------------------------------------------------------------
        out, logits = writer.writes, units["logit_writer"]
        wiring.connect(m, attention.logits, logits.logits)
        m.d.comb += [
            logits.address.eq(field(d, Opcode.HEAD, "logits_address")),
            logits.stride.eq(field(d, Opcode.HEAD, "logits_stride")),
            executor.attention_busy.eq(attention.busy | logits.busy),
            executor.writer_busy.eq(~writer.idle),
            # Bursts of logits grow over the blocks of the head.
            writer.more.eq(kv_writer.busy | logits.busy | (attention.busy & executor.head_mode)),
        ]
        sources = ((logits.writes, logits.busy), (kv_writer.writes, ~logits.busy))
        for source, active in sources:
            with m.If(active):
                m.d.comb += [
                    out.valid.eq(source.valid),
                    out.payload.eq(source.payload),
                    source.ready.eq(out.ready),
                ]

        # ---- supervision and counters ------------------------------------------------------------
        bad_weight = Signal()
        # Checked ahead: two writes to registers are at least two cycles apart, and the start comes last.
        m.d.sync += supervisor.bad_program.eq(
            (registers.program_length == 0) | (registers.program_length > c.max_descriptors)
        )
        for name in ("lanes", "head_lanes", "context", "slots", "position", "slot"):
            m.d.comb += getattr(lane_check, name).eq(getattr(registers, name))
        m.d.comb += [
            lane_check.start.eq(supervisor.check),
            supervisor.checking.eq(lane_check.busy),
            supervisor.bad_lanes.eq(lane_check.bad),
            registers.locked.eq(supervisor.busy),
            bad_weight.eq(tlmm.bad_weight),
            supervisor.start_request.eq(registers.start),
            supervisor.reset_request.eq(registers.soft_reset),
            supervisor.done.eq(executor.done),
            supervisor.quiet.eq(reader.quiet & writer.quiet),
            supervisor.bad_weight.eq(bad_weight),
            supervisor.bad_descriptor.eq(executor.bad_descriptor),
            supervisor.descriptor_index.eq(executor.index),
            supervisor.read_error.eq(reader.error),
            supervisor.read_error_address.eq(reader.error_address),
            supervisor.write_error.eq(writer.error),
            supervisor.write_error_address.eq(writer.error_address),
            supervisor.progress.eq(taken | writer.writes_count),
            supervisor.timeout.eq(registers.timeout),
            reader.clear.eq(supervisor.clear),
            writer.clear.eq(supervisor.clear),
            self.irq.eq(supervisor.finished & registers.irq_enable[0]),
        ]
        attending = executor.route == Route.ATTENTION
        m.d.comb += [
            counters.restart.eq(supervisor.check),
            counters.running.eq(supervisor.busy),
            counters.beat.eq(taken),
            counters.write.eq(writer.writes_count),
            counters.memory.eq(ready & ~beats.valid),
            counters.epilogue.eq(tlmm.stall_rows),
            counters.elementwise.eq(tlmm.stall_tables | executor.waiting_elementwise | elementwise.x_busy),
            counters.attention.eq(attending),
            counters.drain.eq(executor.draining),
            counters.port_beat.eq(reader.port_beat),
            counters.port_stall.eq(reader.port_stall),
            counters.unit_busy.eq(
                Cat(
                    reader.level != 0,
                    tlmm.busy,
                    elementwise.epilogue_busy,
                    elementwise.quantise_busy,
                    attention.busy,
                    ~writer.idle,
                )
            ),
        ]
        return m

    def _registers(self, m, registers, supervisor, counters, attention) -> None:
        c = self.config
        wiring.connect(m, wiring.flipped(self.s_axi), registers.bus)
        m.d.comb += [
            registers.identity.eq(IDENTITY),
            registers.version.eq(VERSION),
            registers.build.eq(Const(build_hash(c), 32)),
            registers.geometry.eq(geometry(c)),
            registers.status.eq(
                Cat(supervisor.busy, supervisor.finished, supervisor.reset, Const(0, 5), supervisor.error)
            ),
            registers.error_address.eq(supervisor.error_address),
            registers.cycles.eq(counters.cycles),
            registers.beats.eq(counters.beats),
            registers.writes.eq(counters.writes),
            registers.stall.eq(counters.stall),
            registers.busy.eq(counters.busy),
            registers.port_beats.eq(counters.port_beats),
            registers.port_stalls.eq(counters.port_stalls),
        ]
        for i in range(c.lanes):
            m.d.comb += [
                registers.best_index[i].eq(attention.best_index[i]),
                registers.best_value[i].eq(attention.best_value[i]),
            ]

    def _memory(self, m, registers, supervisor, reader, writer) -> None:
        for i in range(self.config.ports):
            m.d.comb += registers.owed[i].eq(Cat(reader.owed[i], writer.owed[i]))
            base = Cat(registers.base_low[i], registers.base_high[i])
            m.d.comb += [reader.base[i].eq(base), writer.base[i].eq(base)]
            for source in (reader.m_axi[i], writer.m_axi[i]):
                for name, member in source.signature.members.items():
                    port = getattr(self.m_axi[i], name)
                    inner = getattr(source, name)
                    m.d.comb += port.eq(inner) if member.flow is Out else inner.eq(port)
        for unit in (reader, writer):
            m.d.comb += [unit.window_beats.eq(registers.window_beats), unit.timeout.eq(registers.timeout)]


_STYLE = ("CASEINCOMPLETE", "CASEOVERLAP", "WIDTHEXPAND", "WIDTHTRUNC")
"""Lint classes that Amaranth's Verilog trips without an error in function: it extends and cuts as its own rules say."""


def to_verilog(config: AcceleratorConfig, name: str = "tellme", *, primitives: bool = False) -> str:
    """Verilog of the accelerator `name`; ports `s_axi_*`, `m_axi_<port>_*`, `irq`, `clk`, `rst`.

    Parameters
    ----------
    primitives : instantiate vendor primitives (DSP48E2, RAM32M16) where the preset's board has them, for its vendor's
        tools: smaller and faster. Otherwise plain logic and inferred memory, which every tool reads.
    """
    board = platform_of(config)
    platform = board if primitives else Inferred(ultra_ram=board is None or board.ultra_ram)
    quiet = "".join(f"/* verilator lint_off {name} */\n" for name in _STYLE)
    return quiet + emit.to_verilog(Accelerator(config), name, platform, separator="_")
