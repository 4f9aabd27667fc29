"""The attention unit: prefill and decode attention, and the output head on its dot engine."""

from __future__ import annotations

from typing import Any

from amaranth import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from tellme.golden.config import AcceleratorConfig
from tellme.hw.attention.array import MultiplierArray
from tellme.hw.attention.block import PIPES, Sizes, score_layout, value_scale_layout
from tellme.hw.attention.head import LogitSink, logit_layout
from tellme.hw.attention.loader import TileLoader
from tellme.hw.attention.merge import SumAccumulator
from tellme.hw.attention.phases import PhaseQueue
from tellme.hw.attention.player import Player
from tellme.hw.attention.queries import QueryLoader
from tellme.hw.attention.score_pass import ScorePass
from tellme.hw.attention.scores import DotAccumulator
from tellme.hw.attention.weight_pass import WeightPass
from tellme.hw.interfaces import (
    AttentionChunks,
    AttentionJob,
    Int8ReadPort,
    OwnReadPort,
    OwnScalePort,
    QueryScalePort,
    ScreenedBest,
    phase_layout,
)
from tellme.hw.memory.columns import ColumnMemory
from tellme.hw.pipeline import delay_line
from tellme.hw.primitives import deep_ram


class AttentionUnit(wiring.Component):
    """Attention of all lanes over their caches and their own keys, or the output head's logits.

    Takes a beat a cycle in both K and V phases. Where values are narrow it is *split*: a query has two attention lanes, for
    the keys in the lower and in the upper half of a narrow beat; of a beat of bytes, one of the two takes every other. Golden: `golden.attention`, `golden.head`.
    Cycles: `hw.attention.cycles.expected_cycles`.

    Parameters
    ----------
    config : the accelerator.
    pipes : queries that the softmax takes at a time; divides attention_lanes, half of them with a narrow cache. Default:
    2 if that can be, else 1.

    Interface attributes
    --------------------
    job : parameters, stable while busy.
    start, busy, done : a job.
    blocks : phases (`phase_layout`); in head mode one for each block of rows, with block, keys = key_block, first,
    final.
    beats : the stream.
    int8, query_scales, own, own_scales : read ports of the element-wise buffers. It never waits for a grant.
    chunks : results.
    logits, screened, best_index, best_value : see LogitSink.
    stall_memory : a run waits for a beat.
    stall_softmax : it waits for anything else (operands, weights, buffers).
    """

    issue_delay = 2
    """From the player's issue to the array's operands: memories are read, and registered."""
    done_delay = 1
    """From the last part's `finished` to `done`."""

    def __init__(self, config: AcceleratorConfig, *, pipes: int | None = None):
        self.config = config
        pipes = min(PIPES, config.attention_lanes >> config.narrow_cache) if pipes is None else pipes
        self.sizes = sizes = Sizes(config, pipes)
        self.phases = PhaseQueue(sizes)
        self.loader = TileLoader(sizes)
        self.player = Player(sizes, self.loader.depth)
        self.queries = QueryLoader(sizes)
        self.array = MultiplierArray(sizes)
        self.dots = DotAccumulator(sizes, self.array)
        self.score = ScorePass(sizes)
        self.weight = WeightPass(sizes)
        self.sums = SumAccumulator(sizes)
        self.head = LogitSink(sizes)
        super().__init__(
            {
                "job": In(AttentionJob(config)),
                "start": In(1),
                "busy": Out(1),
                "done": Out(1),
                "blocks": In(stream.Signature(phase_layout(config))),
                "beats": In(stream.Signature(8 * config.beat_bytes)),
                "int8": Out(Int8ReadPort(config)),
                "query_scales": Out(QueryScalePort(config)),
                "own": Out(OwnReadPort(config)),
                "own_scales": Out(OwnScalePort(config)),
                "chunks": Out(AttentionChunks(config)),
                "logits": Out(stream.Signature(logit_layout(config))),
                "screened": In(ScreenedBest(config)),
                "best_index": Out(data.ArrayLayout(32, config.lanes)),
                "best_value": Out(data.ArrayLayout(32, config.lanes)),
                "stall_memory": Out(1),
                "stall_softmax": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name in ("phases", "loader", "player", "queries", "array", "dots", "score", "weight", "sums", "head"):
            m.submodules[name] = getattr(self, name)
        self._job(m)
        self._outside(m)
        self._operands(m)
        self._softmax(m, platform)
        self._results(m)
        return m

    def _job(self, m: Module) -> None:
        """Parameters and phases to the parts; begin and end."""
        phases, loader, player, queries = self.phases, self.loader, self.player, self.queries
        score, sums, head = self.score, self.sums, self.head
        finished = Signal()
        m.d.comb += finished.eq(sums.finished | head.finished)
        with m.If(self.start):
            m.d.sync += self.busy.eq(1)
        with m.Elif(finished):
            m.d.sync += self.busy.eq(0)
        m.d.sync += self.done.eq(finished)
        parts: dict[str, tuple[Any, ...]] = {
            "head_mode": (phases, loader, queries, score),
            "cells": (phases, loader, player, queries, sums),
            "group": (phases, queries, score, sums),
            "kv_heads": (player,),
            "k_narrow": (phases,),
            "head_first": (phases,),
            "head_count": (phases,),
            "vocabulary": (head,),
            "write_logits": (score, head),
        }
        for name, takers in parts.items():
            m.d.comb += [getattr(part, name).eq(getattr(self.job, name)) for part in takers]
        split = Signal()
        m.d.sync += split.eq(self.job.v_narrow & ~self.job.head_mode if self.config.narrow_cache else 0)
        m.d.comb += [part.split.eq(split) for part in (phases, player, queries, score, self.weight, sums)]
        wiring.connect(m, wiring.flipped(self.blocks), phases.blocks)
        consumers: dict[str, Any] = {"load": loader, "play": player, "query": queries, "score": score, "dump": sums}
        for name, part in consumers.items():
            wiring.connect(m, getattr(phases, name), part.phases)

    def _outside(self, m: Module) -> None:
        """The stream, the element-wise buffers, and what is given out."""
        inside: dict[str, Any] = {
            "beats": self.loader.beats,
            "int8": self.queries.int8,
            "query_scales": self.score.query_scales,
            "own": self.player.own,
            "own_scales": self.loader.own_scales,
            "chunks": self.sums.chunks,
            "logits": self.head.logits,
            "screened": self.head.screened,
        }
        for name, port in inside.items():
            wiring.connect(m, wiring.flipped(getattr(self, name)), port)
        m.d.comb += [
            self.best_index.eq(self.head.best_index),
            self.best_value.eq(self.head.best_value),
            self.stall_memory.eq(self.player.stall_memory),
            self.stall_softmax.eq(self.player.stall_softmax),
        ]

    def _operands(self, m: Module) -> None:
        """What the player issues: beats of the store or the own RAM, and weights, to the array; queries ahead of it."""
        config = self.config
        loader, player, queries, array, dots = self.loader, self.player, self.queries, self.array, self.dots
        weights = data.ArrayLayout(16, config.attention_lanes * config.keys_per_beat)
        read_weights = Signal(weights)
        m.submodules.weights = memory = ColumnMemory(
            depth=2 * config.score_words, columns=config.attention_lanes, width=16 * config.keys_per_beat
        )
        m.d.comb += [
            memory.write_addr.eq(self.weight.weight_address),
            memory.write_data.eq(self.weight.weight_data),
            memory.write_en.eq(self.weight.weight_en),
            memory.read_addr.eq(player.weight_address),
            read_weights.eq(memory.read_data),
        ]
        tag_read = delay_line(m, player.tag, self.issue_delay - 1, "tag_read", reset_less=False)
        tag = delay_line(m, tag_read, 1, "tag", reset_less=False)
        beat = Signal(8 * config.beat_bytes, reset_less=True)
        operand = Signal(weights, reset_less=True)
        stored = loader.store_data
        if config.narrow_cache:
            # An element of the lower and one of the upper half of the beat in a byte: those of two attention lanes.
            count = config.beat_bytes
            pairs = Cat(Cat(stored.word_select(e, 4), stored.word_select(count + e, 4)) for e in range(count))
            stored = Mux(tag_read.narrow, pairs, stored)
        m.d.sync += beat.eq(Mux(tag_read.own, self.own.data, stored))
        size = 16 * config.keys_per_beat
        for a in range(config.attention_lanes):
            real = tag_read.real[2 * a >= max(2, config.attention_lanes)]
            m.d.sync += (
                operand.as_value().word_select(a, size).eq(Mux(real, read_weights.as_value().word_select(a, size), 0))
            )
        m.d.comb += [
            array.tag.eq(tag),
            array.beat.eq(beat),
            array.weights.eq(operand),
            dots.tag.eq(tag),
            dots.dots.eq(array.dots),
            queries.swap.eq(player.swap),
            player.queries_ready.eq(queries.ready),
        ]
        wiring.connect(m, player.store, loader.store)
        wiring.connect(m, queries.load, array.load)

    def _softmax(self, m: Module, platform: object) -> None:
        """Dot products and scales to the first pass, scores and V scales to the second."""
        config, sizes = self.config, self.sizes
        loader, player, dots, score, weight = self.loader, self.player, self.dots, self.score, self.weight
        # A column for the queries that are written together.
        columns = config.attention_lanes // sizes.pipes
        m.submodules.scores = scores = ColumnMemory(
            depth=2 * config.score_words,
            columns=columns,
            width=data.ArrayLayout(score_layout(sizes), sizes.pipes).size,
        )
        m.submodules.value_scales = value_scales = Memory(
            shape=value_scale_layout(sizes),
            depth=1 << sizes.row_bits,
            init=[],
            attrs=deep_ram(platform),
        )
        put, get = value_scales.write_port(), value_scales.read_port()
        m.d.comb += [
            scores.write_addr.eq(score.score_address),
            scores.write_data.eq(score.score_data),
            scores.write_en.eq(score.score_en),
            scores.read_addr.eq(weight.score_address),
            weight.scores.eq(scores.read_data),
            put.addr.eq(score.value_scale_address),
            put.data.eq(score.value_scale_data),
            put.en.eq(score.value_scale_en),
            get.addr.eq(weight.value_address),
            weight.value_scales.eq(get.data),
            score.phase_end.eq(dots.phase_end),
            score.scales_ready.eq(loader.scales_ready),
            loader.scale_free.eq(score.scale_free),
            player.scored.eq(score.scored),
            player.weights_ready.eq(weight.ready_units),
        ]
        wiring.connect(m, score.dots, dots.read)
        wiring.connect(m, score.scales, loader.scales)
        wiring.connect(m, weight.statistics, score.statistics)
        wiring.connect(m, score.unit, weight.unit)

    def _results(self, m: Module) -> None:
        """Sums and factors to the results, logits to the arg-max."""
        weight, sums = self.weight, self.sums
        # Factors of two units: the next but one unit's softmax waits until the results are out.
        in_use = Signal(2)
        m.d.sync += in_use.eq(in_use + weight.begun - sums.emitted)
        m.d.comb += [
            weight.hold.eq(in_use == 2),
            sums.summed.eq(self.array.summed),
            self.player.dumped.eq(sums.dumped),
        ]
        wiring.connect(m, sums.sums, self.array.sums)
        wiring.connect(m, sums.factor, weight.factor)
        wiring.connect(m, self.score.logits, self.head.given)
