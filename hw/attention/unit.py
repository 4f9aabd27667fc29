"""The attention unit: prefill and decode attention, and the output head on its dot engine."""

from __future__ import annotations

from amaranth import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig
from tellme.hw.attention.array import MultiplierArray
from tellme.hw.attention.block import PIPES, Sizes
from tellme.hw.attention.head import LogitSink, logit_layout
from tellme.hw.attention.merge import SumAccumulator
from tellme.hw.attention.queries import QueryLoader
from tellme.hw.attention.runs import Loader, PhaseQueue, Player
from tellme.hw.attention.scores import DotAccumulator
from tellme.hw.attention.softmax import ScorePass, WeightPass, score_layout
from tellme.hw.interfaces import (
    AttentionChunks,
    AttentionJob,
    Int8ReadPort,
    OwnReadPort,
    OwnScalePort,
    QueryScalePort,
    join,
    phase_layout,
)
from tellme.hw.memory.columns import ColumnMemory
from tellme.hw.pipeline import delay_line
from tellme.hw.primitives import deep_ram


class AttentionUnit(wiring.Component):
    """Attention of all lanes over their caches and their own keys, or the output head's logits.

    Takes a beat a cycle in both K and V phases. Golden: `golden.attention`, `golden.head`.
    Cycles: `hw.attention.cycles.expected_cycles`.

    Parameters
    ----------
    config : the accelerator.
    pipes : queries that the softmax takes at a time; divides attention_lanes. Default: 2, or 1 for one attention lane.

    Interface attributes
    --------------------
    start, busy, done : a job; `job`, its parameters, is stable while busy.
    blocks : phases (`phase_layout`); in head mode one for each block of rows, with block, keys = key_block, first,
    final.
    beats : the stream. int8, query_scales, own, own_scales : read ports of the element-wise buffers. It never waits
    for a grant.
    chunks : results. logits, best_index, best_value : see LogitSink.
    stall_memory : a run waits for a beat. stall_softmax : it waits for anything else (operands, weights, buffers).
    """

    def __init__(self, config: AcceleratorConfig, *, pipes: int | None = None):
        self.config = c = config
        self.sizes = Sizes(config, min(PIPES, config.attention_lanes) if pipes is None else pipes)
        super().__init__(
            {
                "job": In(AttentionJob(c)),
                "start": In(1),
                "busy": Out(1),
                "done": Out(1),
                "blocks": In(stream.Signature(phase_layout(c))),
                "beats": In(stream.Signature(8 * c.beat_bytes)),
                "int8": Out(Int8ReadPort(c)),
                "query_scales": Out(QueryScalePort(c)),
                "own": Out(OwnReadPort(c)),
                "own_scales": Out(OwnScalePort(c)),
                "chunks": Out(AttentionChunks(c)),
                "logits": Out(stream.Signature(logit_layout(c))),
                "best_index": Out(data.ArrayLayout(32, c.lanes)),
                "best_value": Out(data.ArrayLayout(32, c.lanes)),
                "stall_memory": Out(1),
                "stall_softmax": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        z = self.sizes
        c = self.config
        m.submodules.phases = phases = PhaseQueue(z)
        m.submodules.loader = loader = Loader(z)
        m.submodules.player = player = Player(z, loader.depth)
        m.submodules.queries = queries = QueryLoader(z)
        m.submodules.array = array = MultiplierArray(z)
        m.submodules.dots = dots = DotAccumulator(z, array)
        m.submodules.score = score = ScorePass(z, dots)
        m.submodules.weight = weight = WeightPass(z)
        m.submodules.sums = sums = SumAccumulator(z)
        m.submodules.head = head = LogitSink(z)

        # ---- job -----------------------------------------------------------------------------------
        finished = Signal()
        m.d.comb += finished.eq(sums.finished | head.finished)
        with m.If(self.start):
            m.d.sync += self.busy.eq(1)
        with m.Elif(finished):
            m.d.sync += self.busy.eq(0)
        m.d.sync += self.done.eq(finished)
        for part in (phases, loader, queries, score):
            m.d.comb += part.head_mode.eq(self.job.head_mode)
        for part in (phases, loader, player, queries, sums):
            m.d.comb += part.cells.eq(self.job.cells)
        for part in (phases, queries, score, sums):
            m.d.comb += part.group.eq(self.job.group)
        for part in (score, head):
            m.d.comb += part.write_logits.eq(self.job.write_logits)
        m.d.comb += [
            phases.head_first.eq(self.job.head_first),
            phases.head_count.eq(self.job.head_count),
            player.kv_heads.eq(self.job.kv_heads),
            head.vocabulary.eq(self.job.vocabulary),
        ]
        wiring.connect(m, wiring.flipped(self.blocks), phases.blocks)
        wiring.connect(m, wiring.flipped(self.beats), loader.beats)
        wiring.connect(m, wiring.flipped(self.logits), head.logits)
        for name, part in (("load", loader), ("play", player), ("query", queries), ("score", score), ("dump", sums)):
            wiring.connect(m, getattr(phases, name), part.phases)

        # ---- buffers outside -----------------------------------------------------------------------
        m.d.comb += [
            self.int8.lane.eq(queries.q_lane),
            self.int8.word.eq(queries.q_word),
            self.int8.en.eq(queries.q_en),
            queries.q_data.eq(self.int8.data),
            self.query_scales.lane.eq(score.qscale_lane),
            self.query_scales.head.eq(score.qscale_head),
            score.qscale_data.eq(self.query_scales.data),
            self.own.address.eq(player.own_addr),
            self.own.en.eq(player.own_en),
            loader.own_scale_data.eq(self.own_scales.data),
            self.best_index.eq(head.best_index),
            self.best_value.eq(head.best_value),
            self.stall_memory.eq(player.stall_memory),
            self.stall_softmax.eq(player.stall_softmax),
        ]
        join(
            m,
            loader,
            wiring.flipped(self.own_scales),
            own_scale_v="v",
            own_scale_head="head",
            own_scale_lane="lane",
            own_scale_en="en",
        )
        join(
            m,
            sums,
            wiring.flipped(self.chunks),
            att_valid="valid",
            att_lane="lane",
            att_chunk="chunk",
            att_data="data",
        )

        # ---- store, own RAM and weight RAM to the array --------------------------------------------
        m.d.comb += [
            loader.read_address.eq(player.store_address),
            player.stored.eq(loader.stored),
            loader.free.eq(player.free),
            loader.free_beats.eq(player.free_beats),
        ]
        weights = data.ArrayLayout(16, c.attention_lanes * c.keys_per_beat)
        read_weights = Signal(weights)
        m.submodules.weights = memory = ColumnMemory(
            depth=2 * c.score_words, columns=c.attention_lanes, width=16 * c.keys_per_beat
        )
        m.d.comb += [
            memory.write_addr.eq(weight.weight_address),
            memory.write_data.eq(weight.weight_data),
            memory.write_en.eq(weight.weight_en),
            memory.read_addr.eq(player.weight_address),
            read_weights.eq(memory.read_data),
        ]
        tag_1 = delay_line(m, player.tag, 1, "tag", reset_less=False)
        tag = delay_line(m, tag_1, 1, "tag_in", reset_less=False)
        beat = Signal(8 * c.beat_bytes, reset_less=True)
        operand = Signal(weights, reset_less=True)
        m.d.sync += [beat.eq(Mux(tag_1.own, self.own.data, loader.read_data)), operand.eq(read_weights)]
        m.d.comb += [
            array.tag.eq(tag),
            array.beat.eq(beat),
            array.weights.eq(operand),
            dots.tag.eq(tag),
            dots.dots.eq(array.dots),
            queries.swap.eq(player.swap),
            player.queries_ready.eq(queries.ready),
        ]
        for name in ("load_en", "load_lane", "load_word", "load_data"):
            m.d.comb += getattr(array, name).eq(getattr(queries, name))

        # ---- scores --------------------------------------------------------------------------------
        # A column for the queries that are written together.
        columns = c.attention_lanes // z.pipes
        m.submodules.scores = memory = ColumnMemory(
            depth=2 * c.score_words, columns=columns, width=data.ArrayLayout(score_layout(z), z.pipes).size
        )
        m.d.comb += [
            memory.write_addr.eq(score.score_address),
            memory.write_data.eq(score.score_data),
            memory.write_en.eq(score.score_en),
            memory.read_addr.eq(weight.score_address),
            weight.scores.eq(memory.read_data),
        ]
        m.submodules.value_scales = memory = Memory(
            shape=data.ArrayLayout(32, c.keys_per_beat),
            depth=2 * c.score_words,
            init=[],
            attrs=deep_ram(platform),
        )
        put, get = memory.write_port(), memory.read_port()
        m.d.comb += [
            put.addr.eq(score.value_scale_address),
            put.data.eq(score.value_scale_data),
            put.en.eq(score.value_scale_en),
            get.addr.eq(weight.value_address),
            weight.value_scales.eq(get.data),
            score.phase_end.eq(dots.phase_end),
            dots.read_half.eq(score.read_half),
            dots.read_address.eq(score.read_address),
            score.read_data.eq(dots.read_data),
            score.scales_ready.eq(loader.scales_ready),
            loader.scale_free.eq(score.scale_free),
            loader.scale_address.eq(score.scale_address),
            score.k_scales.eq(loader.k_scales),
            score.v_scales.eq(loader.v_scales),
            player.scored.eq(score.scored),
            score.statistic_address.eq(weight.statistic_address),
            weight.statistic.eq(score.statistic),
            weight.inverse.eq(score.inverse),
            player.weights_ready.eq(weight.ready_units),
        ]
        wiring.connect(m, score.unit, weight.unit)
        # Factors of two units: the next but one unit's softmax waits until the results are out.
        in_use = Signal(2)
        m.d.sync += in_use.eq(in_use + weight.begun - sums.emitted)
        m.d.comb += weight.hold.eq(in_use == 2)

        # ---- sums ----------------------------------------------------------------------------------
        m.d.comb += [
            sums.summed.eq(array.summed),
            player.dumped.eq(sums.dumped),
            array.sum_half.eq(sums.sum_half),
            array.sum_pair.eq(sums.sum_pair),
            array.sum_step.eq(sums.sum_step),
            sums.sums.eq(array.sums),
            weight.factor_address.eq(sums.factor_address),
            sums.factor.eq(weight.factor),
        ]

        # ---- logits --------------------------------------------------------------------------------
        m.d.comb += [
            head.valid.eq(score.logit_valid),
            head.lane.eq(score.logit_lane),
            head.block.eq(score.logit_block),
            head.beat.eq(score.logit_beat),
            head.new.eq(score.logit_new),
            head.first.eq(score.logit_first),
            head.end.eq(score.logit_end),
            head.values.eq(score.logits),
            score.credit.eq(head.credit),
            head.spend.eq(score.spend),
        ]
        return m
