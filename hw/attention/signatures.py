"""What the parts of the attention unit hand each other. Each is seen from who asks or gives; the other takes it as `In`."""

from __future__ import annotations

from amaranth import signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out, Signature
from amaranth.utils import exact_log2

from tellme.golden.config import clog2
from tellme.hw.attention.block import Sizes, pointer_bits, statistic_layout


class OperandPort(Signature):
    """Write port of the array's query operands: a word of dims of one attention lane, with `en`.

    both : of the lane and of the one in the upper half of the lanes.
    """

    def __init__(self, sizes: Sizes):
        config = sizes.config
        super().__init__(
            {
                "en": Out(1),
                "lane": Out(clog2(config.attention_lanes)),
                "both": Out(1),
                "word": Out(range(max(2, sizes.cell_words))),
                "data": Out(8 * config.word),
            }
        )


class StorePort(Signature):
    """The tile store, seen from who plays it.

    address : of a beat, counted from the oldest beat ever (modulo the depth); the store answers a cycle later.
    stored : beats stored ever, modulo four rings.
    free : pulse with `free_beats`: these, the oldest, are used.
    """

    def __init__(self, sizes: Sizes, depth: int):
        super().__init__(
            {
                "address": Out(exact_log2(depth)),
                "stored": In(pointer_bits(depth)),
                "free": Out(1),
                "free_beats": Out(sizes.beat_bits),
            }
        )


class ScalePort(Signature):
    """K and V scales (binary32) of keys_per_beat keys. address : {half, beat of the tile}, one cycle of latency."""

    def __init__(self, sizes: Sizes):
        config = sizes.config
        scales = data.ArrayLayout(32, config.keys_per_beat)
        super().__init__({"address": Out(1 + exact_log2(config.key_tile)), "k": In(scales), "v": In(scales)})


class DotPort(Signature):
    """Dot products of a phase: [query][key] at {set, beat} of a half, one cycle of latency."""

    def __init__(self, sizes: Sizes):
        count = sizes.config.attention_lanes * sizes.config.keys_per_beat
        super().__init__(
            {
                "half": Out(1),
                "address": Out(clog2(sizes.tile_words)),
                "data": In(data.ArrayLayout(signed(sizes.dot_bits), count)),
            }
        )


class StatisticPort(Signature):
    """Maxima of `pipes` queries. address : {parity, batch of queries}, one cycle of latency."""

    def __init__(self, sizes: Sizes):
        super().__init__(
            {
                "address": Out(1 + sizes.batch_bits),
                "maxima": In(statistic_layout(sizes)),
            }
        )


class SumPort(Signature):
    """Weighted sums of a run: [query * 4 + dim], dims 4 * step .. + 3 of the queries of a pair (`Sizes.pair`), of a
    half, one cycle of latency."""

    def __init__(self, sizes: Sizes):
        super().__init__(
            {
                "half": Out(1),
                "pair": Out(clog2(sizes.config.attention_lanes // sizes.pair)),
                "step": Out(exact_log2(sizes.depth)),
                "data": In(data.ArrayLayout(signed(sizes.run_bits), 4 * sizes.pair)),
            }
        )


class FactorPort(Signature):
    """Factors of a unit's results (binary32). address : {parity, query}, one cycle of latency."""

    def __init__(self, sizes: Sizes):
        super().__init__({"address": Out(1 + sizes.query_bits), "data": In(32)})


class LogitPort(Signature):
    """Logits of keys_per_beat rows, in the order of rows; lanes and blocks of rows as they come.

    valid, lane, block, beat, values : logits, of the rows of a beat of a block.
    new : first beat of a (lane, block). first : first block of the job. end : pulse, behind the job's last.
    spend, credit : a beat of logits is begun in a cycle with `spend`; it may be in one with `credit`.
    """

    def __init__(self, sizes: Sizes):
        config = sizes.config
        super().__init__(
            {
                "valid": Out(1),
                "lane": Out(clog2(config.lanes)),
                "block": Out(16),
                "beat": Out(exact_log2(config.key_tile)),
                "new": Out(1),
                "first": Out(1),
                "end": Out(1),
                "values": Out(data.ArrayLayout(32, config.keys_per_beat)),
                "spend": Out(1),
                "credit": In(1),
            }
        )
