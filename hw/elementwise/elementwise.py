"""The element-wise pipeline: everything between the matrices. Golden: `golden.elementwise`."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped
from amaranth.utils import bits_for, exact_log2

from tellme.golden.check import max_kv_heads
from tellme.golden.config import CHUNK, AcceleratorConfig, clog2
from tellme.golden.kv import KvGeometry
from tellme.golden.program import Kind
from tellme.hw.elementwise.buffers import BankedBuffer, BeatTable, ScaleRam
from tellme.hw.elementwise.common import (
    CHUNK_LAYOUT,
    chunk_bits,
    head_pitch,
    lane_address,
    lane_bits,
)
from tellme.hw.elementwise.epilogue import HEADS_AHEAD, Epilogue
from tellme.hw.elementwise.groups import GroupMaxima
from tellme.hw.elementwise.load import Loader
from tellme.hw.elementwise.quantiser import Quantiser, quantiser_delay
from tellme.hw.elementwise.scales import PLACES, ScaleUnit, Target
from tellme.hw.elementwise.statistics import Statistics, chunk_info
from tellme.hw.elementwise.transpose import OCTET
from tellme.hw.interfaces import (
    EXPONENT_BITS,
    AttentionChunks,
    ElementwiseJob,
    Int8ReadPort,
    OwnReadPort,
    OwnScalePort,
    QueryScalePort,
)


class Elementwise(wiring.Component):
    """Epilogues, statistics, quantisers, and the buffers that they share.

    The word E is a beat of float32 (beat_bytes / 4 features): what the quantiser takes a cycle.

    Parameters
    ----------
    config : the accelerator.

    Interface attributes
    --------------------
    job : In. Fields of the descriptor and lanes of the pass; stable while anything is busy.
    load : In, stream of beats: gain, input features, rotary table.
    start_gain : In, pulse. Takes gain_beats beats; the next outputs use the gain.
    start_x : In, pulse. Takes x_beats beats of each lane: the residual stream, its statistics, its product
        with the gain.
    start_rope : In, pulse. Takes rope_beats beats of each lane.
    start_quantise : In, pulse. Ends the statistics, then quantises tiles * 20 words of each lane (tile, lane, word).
    start_epilogue : In, pulse. Takes `rows` rows; QKV heads are quantised too. May come together with start_quantise,
        whose statistics are those before.
    start_attention : In, pulse. Expects heads * head_dim features of each lane from attention.
    gain_busy, x_busy, rope_busy, quantise_busy, epilogue_busy, attention_busy : Out, from the cycle behind the start.
    quantised : Out. Words written since start_quantise; they may be read.
    rows_in : In, stream of rows of TLMM.
    chunks : In. Attention's output.
    int8, query_scales, own, own_scales : In. Read ports of the buffers (`hw.interfaces`); every read is granted.
    """

    def __init__(self, config: AcceleratorConfig):
        self.config = config
        self._kv_heads = max_kv_heads(config)
        super().__init__(
            {
                "job": In(ElementwiseJob(config)),
                "load": In(stream.Signature(8 * config.beat_bytes)),
                "start_gain": In(1),
                "start_x": In(1),
                "start_rope": In(1),
                "start_quantise": In(1),
                "start_epilogue": In(1),
                "start_attention": In(1),
                "gain_busy": Out(1),
                "x_busy": Out(1),
                "rope_busy": Out(1),
                "quantise_busy": Out(1),
                "epilogue_busy": Out(1),
                "attention_busy": Out(1),
                "quantised": Out(32),
                "rows_in": In(stream.Signature(data.ArrayLayout(signed(config.row_width), config.lanes))),
                "chunks": In(AttentionChunks(config)),
                "int8": In(Int8ReadPort(config)),
                "query_scales": In(QueryScalePort(config)),
                "own": In(OwnReadPort(config)),
                "own_scales": In(OwnScalePort(config)),
            }
        )

    # ---- cycles

    @staticmethod
    def expected_quantise_cycles(config: AcceleratorConfig, *, tiles: int, lanes: int) -> int:
        """Cycles of quantise_busy."""
        return Quantiser.expected_cycles(config, tiles=tiles, lanes=lanes)

    @staticmethod
    def expected_epilogue_cycles(
        config: AcceleratorConfig, *, kind: Kind, rows: int, lanes: int, head_dim: int = 32, head_norm: bool = False
    ) -> int:
        """Cycles of epilogue_busy when rows are always ready and the quantiser is idle.

        head_dim and head_norm (queries and keys are normalised) count for QKV only. Followed octet by octet: a head may
        begin when the last but one is read, or with head_norm the last, and is quantised while the next ones come.
        """
        tail = Epilogue.delay(kind) + 1  # from the issue of a chunk to where it enters the statistics
        settle = tail + Statistics.settle_delay
        ahead = 1 if head_norm else HEADS_AHEAD
        per_head = head_dim // OCTET
        filled = 0  # an octet is collected
        end = [0, 0]  # the two latest octets are issued
        captured, free = [0], [0] * PLACES  # heads whose maxima are read, whose factors are used
        done = 0
        for g in range(rows // OCTET):
            filled = max(filled, end[-2]) + OCTET
            begin = max(filled, end[-1])
            h = g // per_head
            if kind == Kind.QKV and g % per_head == 0 and h >= ahead:
                begin = max(begin, captured[h - ahead + 1])
            end = [end[-1], begin + 2 * lanes]
            if kind == Kind.QKV and g % per_head == per_head - 1:
                read = max(end[-1] + settle, captured[-1], free[-PLACES])
                captured.append(read + 2 * lanes)
                done = max(read + 3 + ScaleUnit.delay, done) + lanes * head_dim // config.word
                free.append(done)
        return done + quantiser_delay(config) if kind == Kind.QKV else end[-1] + tail + Statistics.settle_delay

    # ---- structure

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.loader = loader = Loader(config)
        m.submodules.epilogue = epilogue = Epilogue(config)
        m.submodules.statistics = statistics = Statistics(config)
        m.submodules.scales = scales = ScaleUnit(config)
        m.submodules.quantiser = quantiser = Quantiser(config)
        for unit, names in (
            (loader, "gain_beats x_beats rope_beats inputs lanes"),
            (epilogue, "kind rows lanes scale0 scale1 scale2 gain_out head_dim heads kv_heads"),
            (scales, "lanes norm_in inv_n eps q_scale head_dim heads kv_heads k_narrow v_narrow"),
            (quantiser, "lanes tiles head_dim heads kv_heads"),
        ):
            m.d.comb += [getattr(unit, name).eq(getattr(self.job, name)) for name in names.split()]
        m.d.comb += [
            loader.start_gain.eq(self.start_gain),
            loader.start_x.eq(self.start_x),
            loader.start_rope.eq(self.start_rope),
        ]
        connect(m, flipped(self.load), loader.load)
        connect(m, flipped(self.rows_in), epilogue.rows_in)

        start_heads = self.start_epilogue & (self.job.kind == Kind.QKV)
        m.d.comb += [
            epilogue.start.eq(self.start_epilogue),
            scales.head_norm.eq(self.job.gain_out),
            scales.start_inputs.eq(self.start_quantise),
            scales.start_heads.eq(start_heads),
            quantiser.start_inputs.eq(self.start_quantise),
            quantiser.start_heads.eq(start_heads),
            # The old statistics and the u buffer must have served before the new ones come.
            epilogue.go.eq(~self.quantise_busy & ~self.gain_busy),
            epilogue.captured.eq(scales.captured),
            scales.head_settled.eq(statistics.head_settled),
            scales.head_quantised.eq(quantiser.head_quantised),
            quantiser.done.eq(scales.done),
            quantiser.tag.eq(scales.tag),
            quantiser.inv.eq(scales.inv),
            *([quantiser.largest.eq(scales.largest)] if config.packing.group else []),
            self.quantised.eq(quantiser.quantised),
        ]
        self._sources(m, loader, epilogue, statistics)
        self._finalise(m, statistics, scales)
        self._buffers(m, loader, epilogue, statistics, quantiser)
        self._scale_rams(m, epilogue, scales)
        self._busy(m, loader, statistics, quantiser, start_heads)
        return m

    def _sources(self, m: Module, loader: Loader, epilogue: Epilogue, statistics: Statistics) -> None:
        """Chunks of the one source at work go to the statistics, those of the residual stream to its buffer too."""
        config = self.config
        pitch = config.max_hidden // CHUNK
        m.submodules.residual = residual = BankedBuffer(
            depth=config.lanes * pitch, parts=1, part_width=32 * CHUNK, deep=True, output_register=True
        )
        info = Signal(chunk_info(config), reset_less=True)
        gain_chunk = Signal(chunk_bits(config), reset_less=True)
        v = Signal(CHUNK_LAYOUT, reset_less=True)
        keep = Signal()
        state = Signal(3)

        # Attention's last chunk: the last of the last lane to finish.
        chunks = Signal(chunk_bits(config) + 1)
        last_chunk = Signal(chunk_bits(config))
        lanes_left = Signal(lane_bits(config))  # besides the next one to finish
        dims32 = self.job.head_dim[5 : 5 + bits_for(config.max_head_dim // 32)]
        final = Signal()
        m.d.sync += [chunks.eq(self.job.heads * dims32 * (32 // CHUNK)), last_chunk.eq(chunks - 1)]
        m.d.comb += final.eq(self.chunks.valid & (self.chunks.chunk == last_chunk))
        with m.If(self.start_attention):
            m.d.sync += lanes_left.eq(self.job.lanes - 1)
        with m.Elif(final):
            m.d.sync += lanes_left.eq(lanes_left - 1)

        with m.If(epilogue.valid):
            m.d.sync += [
                info.eq(epilogue.info),
                gain_chunk.eq(epilogue.gain_chunk),
                v.eq(epilogue.v),
                keep.eq(epilogue.keep),
            ]
        with m.Elif(loader.x_valid):
            m.d.sync += [
                info.lane.eq(loader.x_lane),
                info.chunk.eq(loader.x_chunk),
                gain_chunk.eq(loader.x_chunk),
                info.first.eq(loader.x_chunk < 8),
                v.eq(loader.x),
                keep.eq(1),
            ]
        with m.Else():
            m.d.sync += [
                info.lane.eq(self.chunks.lane),
                info.chunk.eq(self.chunks.chunk),
                gain_chunk.eq(self.chunks.chunk),
                info.first.eq(self.chunks.chunk < 8),
                v.eq(self.chunks.data),
                keep.eq(0),
            ]
        with m.If(~epilogue.valid):
            m.d.sync += [info.parity.eq(0), info.gain.eq(self.job.gain_out), info.turn.eq(0)]
        m.d.sync += state.eq(
            Cat(
                epilogue.valid | loader.x_valid | self.chunks.valid,
                epilogue.last | (loader.x_valid & loader.x_last) | (final & (lanes_left == 0)),
                epilogue.head_last,
            )
        )
        m.d.comb += [
            Cat(statistics.valid, statistics.last, statistics.head_last).eq(state),
            statistics.info.eq(info),
            statistics.gain_chunk.eq(gain_chunk),
            statistics.v.eq(v),
            epilogue.gained.eq(statistics.gained),
            statistics.turned.eq(epilogue.turned),
            statistics.gain_write.eq(loader.gain_write),
            statistics.gain_addr.eq(loader.gain_addr),
            statistics.gain_data.eq(loader.beat),
            residual.write.eq(state[0] & keep),
            residual.write_addr.eq(lane_address(m, info.lane, pitch, info.chunk, "residual_write")),
            residual.write_data.eq(v),
            residual.read.eq(1),
            residual.read_addr.eq(lane_address(m, epilogue.x_lane, pitch, epilogue.x_chunk, "residual_read")),
            epilogue.x.eq(residual.read_data),
        ]

    def _finalise(self, m: Module, statistics: Statistics, scales: ScaleUnit) -> None:
        m.d.comb += [
            statistics.read.eq(scales.read),
            statistics.read_half.eq(scales.read_half),
            statistics.read_lane.eq(scales.read_lane),
            statistics.read_parity.eq(scales.read_parity),
            scales.ss.eq(statistics.ss),
            scales.amax.eq(statistics.amax),
        ]
        # Fewer than 32 inputs leave partials of an earlier token; a head has at least 32 dimensions.
        present = Signal(len(statistics.present))
        m.d.sync += [present[k].eq(self.job.inputs[2:] > k) for k in range(len(present))]
        m.d.comb += statistics.present.eq(Mux(scales.read_inputs, present, ~0))

    def _buffers(
        self, m: Module, loader: Loader, epilogue: Epilogue, statistics: Statistics, quantiser: Quantiser
    ) -> None:
        config = self.config
        words = config.max_features // config.word
        parts = config.word // CHUNK
        low = exact_log2(parts)
        m.submodules.u = u = BankedBuffer(
            depth=config.lanes * words, parts=parts, part_width=32 * CHUNK, deep=True, output_register=True
        )
        exponent = EXPONENT_BITS if config.packing.group else 0
        m.submodules.int8 = int8 = BankedBuffer(
            depth=config.lanes * words, parts=1, part_width=8 * config.word + exponent, deep=True
        )
        m.submodules.own = own = BankedBuffer(
            depth=KvGeometry(config).own_depth, parts=config.beat_bytes // config.word, part_width=8 * config.word
        )
        rope_beats = config.lanes * head_pitch(config) // parts
        m.submodules.rope = rope = BeatTable(beats=rope_beats, word=config.word)
        m.d.comb += [
            u.write.eq(statistics.u_write),
            u.write_addr.eq(Cat(statistics.u_chunk[low:], statistics.u_lane)),
            u.write_part.eq(statistics.u_chunk[:low]),
            u.write_data.eq(statistics.u),
            u.read.eq(quantiser.u_read),
            u.read_addr.eq(Cat(quantiser.u_word, quantiser.u_lane)),
            quantiser.u_data.eq(u.read_data),
            int8.write.eq(quantiser.write),
            int8.write_addr.eq(Cat(quantiser.write_word, quantiser.write_lane)),
            int8.write_data.eq(
                Cat(quantiser.write_data, quantiser.write_exponent) if exponent else quantiser.write_data
            ),
            int8.read.eq(self.int8.en),
            int8.read_addr.eq(Cat(self.int8.word, self.int8.lane)),
            self.int8.data.eq(int8.read_data[: 8 * config.word]),
            own.write.eq(quantiser.own_write),
            own.write_addr.eq(quantiser.own_addr),
            own.write_part.eq(quantiser.own_part),
            own.write_data.eq(quantiser.write_data),
            own.read.eq(1),
            self.own.grant.eq(1),
            own.read_addr.eq(self.own.address),
            self.own.data.eq(own.read_data),
            rope.write.eq(loader.rope_write),
            rope.write_addr.eq(loader.rope_addr),
            rope.write_data.eq(loader.beat),
            rope.read_addr.eq(Cat(epilogue.rope_chunk, epilogue.rope_lane)),
            epilogue.rope.eq(rope.read_data),
        ]

        if exponent:
            m.submodules.groups = groups = GroupMaxima(config)
            m.d.comb += [
                groups.write.eq(statistics.u_write),
                groups.lane.eq(statistics.u_lane),
                groups.chunk.eq(statistics.u_chunk),
                groups.u.eq(statistics.u),
                groups.read.eq(quantiser.u_read),
                groups.read_lane.eq(quantiser.u_lane),
                groups.read_word.eq(quantiser.u_word),
                quantiser.grouped.eq(self.job.grouped),
                quantiser.group_largest.eq(groups.largest),
                self.int8.exponent.eq(int8.read_data[8 * config.word :]),
            ]

    def _scale_rams(self, m: Module, epilogue: Epilogue, scales: ScaleUnit) -> None:
        config = self.config
        tag = scales.tag
        m.submodules.act_scales = act = memory.Memory(shape=unsigned(32), depth=max(2, config.lanes), init=[])
        m.submodules.query_scales = query = ScaleRam(depth=config.lanes * config.max_heads)
        m.submodules.own_scales = own = ScaleRam(depth=2 * self._kv_heads * config.lanes)
        write, read = act.write_port(), act.read_port(domain="comb")
        inputs = Signal()
        head_bits = clog2(self._kv_heads)
        port = self.own_scales
        m.d.comb += [
            inputs.eq(tag.target == Target.INPUTS),
            write.addr.eq(tag.lane),
            write.data.eq(scales.scale),
            write.en.eq(scales.done & inputs),
            read.addr.eq(epilogue.act_lane),
            epilogue.act_scale.eq(read.data),
            query.write.eq(scales.done & (inputs | (tag.target == Target.QUERY))),
            query.write_addr.eq(Cat(tag.head[: clog2(config.max_heads)], tag.lane)),
            query.write_data.eq(Mux(inputs, scales.scale, scales.query_scale)),
            query.read_addr.eq(Cat(self.query_scales.head[: clog2(config.max_heads)], self.query_scales.lane)),
            self.query_scales.data.eq(query.read_data),
            own.write.eq(scales.done & ((tag.target == Target.KEY) | (tag.target == Target.VALUE))),
            own.write_addr.eq(Cat(tag.lane[: self._own_lane_bits], tag.target == Target.VALUE, tag.head[:head_bits])),
            own.write_data.eq(scales.scale),
            own.read_addr.eq(
                Cat(port.lane[: self._own_lane_bits], port.v, port.head[:head_bits]),
            ),
            port.data.eq(own.read_data),
            port.grant.eq(1),
        ]

    @property
    def _own_lane_bits(self) -> int:
        return exact_log2(self.config.lanes)

    def _busy(
        self, m: Module, loader: Loader, statistics: Statistics, quantiser: Quantiser, start_heads: Value
    ) -> None:
        features, heads = Signal(), Signal()
        m.d.comb += [
            self.gain_busy.eq(loader.gain_busy),
            self.rope_busy.eq(loader.rope_busy),
            self.epilogue_busy.eq(features | heads),
        ]
        x = Signal()  # features to come or to settle
        m.d.comb += self.x_busy.eq(loader.x_busy | x)
        with m.If(quantiser.inputs_done):
            m.d.sync += self.quantise_busy.eq(0)
        with m.If(quantiser.heads_done):
            m.d.sync += heads.eq(0)
        with m.If(statistics.settled):
            m.d.sync += [x.eq(0), features.eq(0), self.attention_busy.eq(0)]
        with m.If(self.start_quantise):
            m.d.sync += self.quantise_busy.eq(1)
        with m.If(self.start_epilogue):
            m.d.sync += [features.eq(1), heads.eq(start_heads)]
        with m.If(self.start_x):
            m.d.sync += x.eq((self.job.x_beats != 0) & (self.job.inputs[2:] != 0))
        with m.If(self.start_attention):
            m.d.sync += self.attention_busy.eq(1)
