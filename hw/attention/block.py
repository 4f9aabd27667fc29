"""Shapes of the attention unit: sizes derived from the configuration, and what its queues and memories carry."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from amaranth import signed
from amaranth.lib import data
from amaranth.utils import exact_log2

from tellme.golden.arith import ceil_div
from tellme.golden.attention import VALUE_FRAC
from tellme.golden.config import MAX_GROUP as MAX_GROUP
from tellme.golden.config import AcceleratorConfig, clog2

PIPES = 2
"""Queries that the softmax takes at a time, unless the unit is told otherwise (keys_per_beat keys of each, every
cycle)."""

SCORE_SPACING = 4
"""Least cycles from the start of a dot run to that of the next: the score accumulator reads what was written 3
cycles before."""

SCORE_BITS = 24
"""Of a score T."""

EXPONENT_BITS = 15
"""Of e of a query."""

LEVEL_BITS = 20
"""Of a level, signed: a score's whole part, a V scale's biased exponent, and 2^14 behind an infinite one, with
LEVEL_FRAC."""


@dataclass(frozen=True)
class Sizes:
    """Widths and depths of the unit. See docs/formats.md for the short names.

    Raises
    ------
    ValueError : pipes does not divide attention_lanes.
    """

    config: AcceleratorConfig
    pipes: int

    def __post_init__(self) -> None:
        c = self.config
        if self.pipes < 1 or c.attention_lanes % self.pipes:
            raise ValueError(f"pipes must divide attention_lanes ({c.attention_lanes}), not {self.pipes}")
        if c.narrow_cache and self.pipes > self.set_queries:
            raise ValueError(
                f"pipes must be at most half of attention_lanes ({c.attention_lanes}) with a narrow cache, not {self.pipes}"
            )

    @cached_property
    def depth(self) -> int:
        """Products in a chain of the multiplier array, and beats in a bundle of a weighted sum: a cell is 4 chains."""
        return self.config.cell // 4

    @cached_property
    def pair(self) -> int:
        """Queries whose weighted sums are read from the array together, and share a word of the sums."""
        return min(2, self.set_queries)

    @cached_property
    def set_queries(self) -> int:
        """Queries of the smallest set: when attention is split, a query has two attention lanes."""
        return self.config.attention_lanes >> self.config.narrow_cache

    @cached_property
    def max_queries(self) -> int:
        """Queries of a unit: (lane, head) pairs that share a KV head."""
        return self.config.lanes * MAX_GROUP

    @cached_property
    def max_sets(self) -> int:
        return ceil_div(self.max_queries, self.set_queries)

    @cached_property
    def cell_words(self) -> int:
        """int8 buffer words of a cell."""
        return self.config.cell // self.config.word

    @cached_property
    def dot_bits(self) -> int:
        """Of a dot product, signed."""
        return (max(self.config.max_hidden, self.config.max_head_dim) << 14).bit_length() + 1

    @cached_property
    def run_bits(self) -> int:
        """Of a weighted sum over one run, signed: key_block keys, weights to 65535."""
        return (self.config.key_block << 23).bit_length() + 1

    @cached_property
    def max_keys(self) -> int:
        return self.config.most_context + self.config.lanes

    @cached_property
    def sum_bits(self) -> int:
        """Of a weighted sum over all keys, signed: of as many values of 8 bits as there can be (4 bits: twice the keys, a 16th
        of the sum)."""
        return (self.config.max_context + self.config.lanes << 23).bit_length() + 1

    @cached_property
    def total_bits(self) -> int:
        """Of L, the sum of P, unsigned."""
        return (self.max_keys << 24).bit_length()

    @cached_property
    def chain_bits(self) -> int:
        """Of a chain's sum, signed."""
        return 24 + clog2(self.depth)

    @cached_property
    def beat_bits(self) -> int:
        """Counts to the beats of a tile, inclusive."""
        return clog2(self.config.key_tile + 1)

    @cached_property
    def query_bits(self) -> int:
        """Index of a query in its unit."""
        return clog2(self.max_queries)

    @cached_property
    def batch_bits(self) -> int:
        """Index of a batch of `pipes` queries in its unit."""
        return clog2(ceil_div(self.max_queries, self.pipes))

    @cached_property
    def set_bits(self) -> int:
        return clog2(self.max_sets)

    @cached_property
    def word_bits(self) -> int:
        """Index of a score word, both halves."""
        return clog2(self.config.score_words) + 1

    @cached_property
    def row_bits(self) -> int:
        """Index of the keys that share an 8-bit beat, both halves: two a score word when attention is split."""
        return self.word_bits + self.config.narrow_cache

    @cached_property
    def tile_words(self) -> int:
        """Dot product accumulators of a phase: a tile for each set of attention_lanes queries."""
        return ceil_div(self.max_queries, self.config.attention_lanes) * self.config.key_tile

    @cached_property
    def phase(self) -> data.StructLayout:
        """A descriptor with what every part needs of it worked out.

        narrow: beats of 4-bit elements. beats: of a run. queries: of the unit; last_beat, last_query: less one. sets: of
        attention_lanes queries (half as many when attention is split), less one. first_head: kv_head * group. head_cell: first_head * cells. kv_cell: kv_head * cells. half: K phases
        alternate, for the buffers between the array and the softmax.
        """
        c = self.config
        lane = clog2(c.lanes)
        return data.StructLayout(
            {
                "v": 1,
                "own": 1,
                "narrow": 1,
                "first": 1,
                "last": 1,
                "final": 1,
                "parity": 1,
                "half": 1,
                "lane_lo": lane,
                "lane_hi": lane,
                "keys": 16,
                "beats": self.beat_bits,
                "last_beat": self.beat_bits,
                "base": self.word_bits - 1,
                "unit_words": self.word_bits,
                "index": 16,
                "kv_head": 8,
                "queries": self.query_bits + 1,
                "last_query": self.query_bits,
                "sets": self.set_bits,
                "first_head": 8,
                "head_cell": 16,
                "kv_cell": 16,
            }
        )


def pointer_bits(depth: int) -> int:
    """Of a count of beats into a ring of `depth`: differences from -depth to depth are told apart."""
    return exact_log2(depth) + 2


def tag_layout(sizes: Sizes) -> data.StructLayout:
    """What the player issues in a cycle.

    own: the beat comes from the own RAM. narrow: of 4-bit elements. dot: a beat of a dot run, for each half of the
    attention lanes. swap: the first of one. sum: a step of a weighted sum. real: the beat is one (not the rest of a
    bundle), for each half. address: {set, beat} of the dot accumulators. half: of these,
    or of the weighted sums. first: cell of a phase, bundle of a weighted sum. last: bundle of a weighted sum. end: last
    cycle of a K phase. step: beat of the run, modulo the bundle.
    """
    return data.StructLayout(
        {
            "own": 1,
            "narrow": 1,
            "dot": 2,
            "swap": 1,
            "sum": 1,
            "real": 2,
            "address": clog2(sizes.tile_words),
            "half": 1,
            "first": 1,
            "last": 1,
            "end": 1,
            "step": exact_log2(sizes.depth),
        }
    )


def unit_layout(sizes: Sizes) -> data.StructLayout:
    """What the second pass of the softmax needs of a unit. batches: of `pipes` queries, less one. rows: of keys_per_beat
    keys, an even number when attention is split. last_row: rows, at least `pipes`, less one. words: score words of a set."""
    return data.StructLayout(
        {
            "parity": 1,
            "batches": sizes.batch_bits,
            "queries": sizes.query_bits + 1,
            "words": sizes.word_bits,
            "rows": sizes.row_bits,
            "last_row": sizes.row_bits,
        }
    )


def score_layout(sizes: Sizes) -> data.ArrayLayout:
    """A query's scores in a score word; a key that the query does not attend to is not valid."""
    return data.ArrayLayout(data.StructLayout({"score": signed(SCORE_BITS), "valid": 1}), sizes.config.keys_per_beat)


def statistic_layout(sizes: Sizes) -> data.ArrayLayout:
    """Largest score and largest level of `pipes` queries."""
    return data.ArrayLayout(data.StructLayout({"m": signed(SCORE_BITS), "level": signed(LEVEL_BITS)}), sizes.pipes)


def value_scale_layout(sizes: Sizes) -> data.ArrayLayout:
    """What the second pass of the softmax sees of the V scales of keys_per_beat keys: VALUE_FRAC bits of the fraction,
    and the biased exponent."""
    return data.ArrayLayout(data.StructLayout({"fraction": VALUE_FRAC, "exponent": 8}), sizes.config.keys_per_beat)
