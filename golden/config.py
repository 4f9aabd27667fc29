"""The configuration of an accelerator: the parameters, and every derived width, in one place."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cached_property

from tellme.golden.arith import ceil_div, ceil_log2
from tellme.golden.formats import FORMATS, WeightFormat
from tellme.golden.ternary import ACTIVATION

CHUNK = 4
"""Features that the element-wise pipeline takes a cycle; part of the numerics (order of sums)."""

PARTIALS = 8
"""Partial sums of squares of a token; part of the numerics (order of sums)."""

MAX_GROUP = 8
"""Query heads that may share a KV head (width of the attention unit's counters)."""

MAX_HEADS = 255
"""Query heads of a descriptor (8 bits, golden/program.py)."""

MAX_POSITIONS = 1 << 16
"""Positions that registers can name."""

CLOCK_HZ = (1_000_000, 1_000_000_000)
"""Clocks that a preset may name, Hz: no chip that this is for runs outside them."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


class ConfigError(ValueError):
    """A parameter is outside what the generator can build."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def clog2(n: int) -> int:
    """Bits that count to n-1, at least 1."""
    return max(1, ceil_log2(n))


@dataclass(frozen=True, kw_only=True)
class AcceleratorConfig:
    """Parameters of one accelerator. Immutable; construction validates.

    Parameters
    ----------
    name : preset or user name.
    ports : AXI4 masters to memory.
    port_bytes : bytes a port delivers a cycle (16: 128 bit, 8: 64 bit).
    lanes : token positions a pass carries (power of two).
    group_size : activations per lookup table, 2..5.
    block_rows : most matrix rows accumulated at a time, and depth of the row FIFO.
    attention_lanes : queries that share a K or V beat.
    key_tile : beats of a (key block, cell) run.
    max_hidden : features of the residual stream.
    max_features : inputs of any linear layer, and rows of the QKV matrix; power of two, >= 2 * max_hidden.
    max_kv_dim : KV heads times head dimension.
    max_heads : query heads.
    max_head_dim : head dimension.
    max_context : positions of a cache slot, a multiple of key_block.
    score_words : words of the score RAM for one unit of attention (attention_lanes x keys_per_beat scores each).
    fifo_beats : depth of the stream FIFO in beats.
    max_descriptors : descriptors of a program.
    screen_entries : candidates of the screened head that are kept, of all head lanes together.
    burst_beats : beats of a port's longest burst.
    outstanding : bursts in flight a direction and port.
    clock_hz : the clock the board preset aims at, Hz.
    weight_format : how matrices are packed, a name of `golden.formats`: 'ternary' (one scale a matrix) or 'grouped' (a scale for every
        64 weights, and an exponent for every 64 activations).
    narrow_cache : K and V of the cache may be of 4 bits; attention then takes half the queries and twice the keys at once.
    hadamard : queries and keys may be turned by a Hadamard matrix before they are quantised.
    ternary_head : a head may be ternary itself: its scores are its logits, no int8 rows are kept of it.

    Raises
    ------
    ConfigError : with the bad value and the limit.
    """

    name: str
    ports: int = 4
    port_bytes: int = 16
    lanes: int = 16
    group_size: int = 3
    block_rows: int = 512
    attention_lanes: int = 8
    key_tile: int = 64
    max_hidden: int = 2560
    max_features: int = 8192
    max_kv_dim: int = 1536
    max_heads: int = 32
    max_head_dim: int = 128
    max_context: int = 3968
    score_words: int = 2048
    fifo_beats: int = 8192
    max_descriptors: int = 512
    screen_entries: int = 8192
    burst_beats: int = 64
    outstanding: int = 8
    clock_hz: int = 250_000_000
    weight_format: str = "ternary"
    narrow_cache: bool = False
    hadamard: bool = False
    ternary_head: bool = False

    def __post_init__(self) -> None:
        _require(
            isinstance(self.name, str) and _NAME.fullmatch(self.name) is not None,
            f"name must be letters, digits, '_', '-' and '.', beginning with a letter or digit (it becomes part of file "
            f"names), not {self.name!r}",
        )

        def integer(field: str, low: int, high: int) -> None:
            v = getattr(self, field)
            _require(
                type(v) is int and low <= v <= high,
                f"{field} must be a whole number from {low:,} to {high:,}, not {v!r}",
            )

        def power_of_two(field: str, low: int, high: int) -> None:
            v = getattr(self, field)
            _require(
                type(v) is int and low <= v <= high and v & (v - 1) == 0,
                f"{field} must be a power of two from {low} to {high}, not {v!r}",
            )

        def dimensions(field: str, high: int) -> None:
            v = getattr(self, field)
            _require(
                type(v) is int and 0 < v <= high and v % 32 == 0,
                f"{field} must be a positive multiple of 32 up to {high:,}, not {v!r}",
            )

        _require(
            isinstance(self.weight_format, str) and self.weight_format in FORMATS,
            f"weight_format must be {' or '.join(map(repr, FORMATS))}, not {self.weight_format!r}",
        )
        power_of_two("ports", 1, 8)
        power_of_two("port_bytes", 8, 16)
        power_of_two("lanes", 1, 32)
        power_of_two("attention_lanes", 1, 32)
        power_of_two("key_tile", 16, 256)
        power_of_two("block_rows", 64, 4096)
        power_of_two("max_features", 256, 65536)
        power_of_two("score_words", 64, 65536)
        power_of_two("fifo_beats", 64, 65536)
        power_of_two("burst_beats", 2, 256)
        power_of_two("outstanding", 2, 64)
        power_of_two("max_descriptors", 16, 4096)
        power_of_two("screen_entries", 64, 65536)
        _require(self.beat_bytes in (16, 32, 64), f"ports * port_bytes must be 16, 32 or 64, not {self.beat_bytes}")
        integer("group_size", 2, 5)
        integer("max_heads", 1, MAX_HEADS)
        integer("max_context", 1, MAX_POSITIONS)
        integer("clock_hz", *CLOCK_HZ)
        _require(type(self.narrow_cache) is bool, f"narrow_cache must be true or false, not {self.narrow_cache!r}")
        _require(type(self.hadamard) is bool, f"hadamard must be true or false, not {self.hadamard!r}")
        _require(type(self.ternary_head) is bool, f"ternary_head must be true or false, not {self.ternary_head!r}")
        _require(
            not self.ternary_head or 16 * self.lanes <= self.screen_entries,
            f"ternary_head needs screen_entries of 16 a lane, {16 * self.lanes}, not {self.screen_entries}",
        )
        _require(
            not self.narrow_cache or self.attention_lanes >= 2,
            "narrow_cache needs attention_lanes of at least 2: half of them take the even beats' keys, half the odd ones'",
        )
        _require(
            self.port_bytes * self.burst_beats <= 4096,
            f"burst_beats * port_bytes must be at most 4096 (AXI4), not {self.port_bytes * self.burst_beats}",
        )
        _require(
            2 * self.burst_beats <= self.fifo_beats,
            f"fifo_beats must be at least two bursts ({2 * self.burst_beats}), not {self.fifo_beats}",
        )
        _require(
            self.lanes <= self.key_block,
            f"lanes ({self.lanes}) must be at most a block of the cache ({self.key_block} keys): use a larger key_tile",
        )
        _require(
            self.max_context % self.key_block == 0,
            f"max_context must be a multiple of {self.key_block} (key_block) up to 65536, not {self.max_context}",
        )
        _require(
            self.max_context + self.lanes <= self.score_words * self.keys_per_beat,
            f"score_words ({self.score_words}) must hold max_context + lanes keys of one set of queries, "
            f"{self.keys_per_beat} a word: at least {ceil_div(self.max_context + self.lanes, self.keys_per_beat)}",
        )
        dimensions("max_hidden", 65536)
        dimensions("max_kv_dim", 65536)
        dimensions("max_head_dim", 65536)
        _require(
            self.max_kv_dim >= self.max_head_dim,
            f"max_kv_dim ({self.max_kv_dim}) must hold one head: at least max_head_dim ({self.max_head_dim})",
        )
        _require(
            2 * self.max_hidden <= self.max_features,
            f"max_features ({self.max_features}) must be at least twice max_hidden ({self.max_hidden})",
        )

    # ---- derived sizes -------------------------------------------------------------------------

    @cached_property
    def beat_bytes(self) -> int:
        """Bytes of a beat, what all ports deliver in a cycle."""
        return self.ports * self.port_bytes

    @property
    def packing(self) -> WeightFormat:
        """The format of weights that `weight_format` names."""
        return FORMATS[self.weight_format]

    @cached_property
    def beat_weights(self) -> int:
        """Weights in a beat = activations in a K tile."""
        return self.packing.beat_weights(self.beat_bytes)

    @cached_property
    def groups(self) -> int:
        """Lookup tables of a tile and lane."""
        return self.packing.tables(self.beat_bytes, self.group_size)

    @cached_property
    def word(self) -> int:
        """Elements the quantiser takes a cycle: a beat of float32."""
        return self.beat_bytes // 4

    @cached_property
    def tile_words(self) -> int:
        """Quantiser words of a K tile: 20 for every beat size, of the format `grouped` 16."""
        return self.beat_weights // self.word

    @cached_property
    def cell(self) -> int:
        """Dimensions of a (key, cell) of K, V and the head: min(32, beat)."""
        return min(32, self.beat_bytes)

    @cached_property
    def keys_per_beat(self) -> int:
        """Keys (rows) whose cells share a beat."""
        return self.beat_bytes // self.cell

    @cached_property
    def key_block(self) -> int:
        """Keys of a cache block, rows of a head block."""
        return self.key_tile * self.keys_per_beat

    @cached_property
    def narrow_context(self) -> int:
        """Positions of a cache slot whose values are of 4 bits: twice `max_context`, which the score memory holds, as far as they can be numbered."""
        return min(2 * self.max_context, MAX_POSITIONS)

    def context_limit(self, v_narrow: bool = False) -> int:
        """Positions of a cache slot, with values of 8 or 4 bits."""
        return self.narrow_context if v_narrow else self.max_context

    @property
    def most_context(self) -> int:
        """Positions of any cache slot that there can be."""
        return self.context_limit(self.narrow_cache)

    @cached_property
    def scale_beats(self) -> int:
        """Beats that hold the float32 scales of a key block."""
        return self.key_block * 4 // self.beat_bytes

    @cached_property
    def query_offset(self) -> int:
        """Feature at which the quantised queries start in a lane's part of the int8 buffer."""
        return self.max_features // 2

    @cached_property
    def row_width(self) -> int:
        """Bits of an accumulator, signed: |acc| <= max_features times the largest activation and the largest weight."""
        largest = (ACTIVATION << self.packing.activation_bits) * self.packing.largest
        return clog2(self.max_features) + largest.bit_length() + 1

    @cached_property
    def screen_width(self) -> int:
        """Bits, signed, of a screened head's accumulators: of int8 activations and weights of -1, 0 and 1, whatever the format."""
        return clog2(self.max_features) + ACTIVATION.bit_length() + 1

    @cached_property
    def max_rows(self) -> int:
        """Rows a matrix may have (descriptor field)."""
        return 65528


KV260 = AcceleratorConfig(name="kv260", narrow_cache=True)
"""AMD Kria KV260: four 128-bit HP ports at 250 MHz. A port takes eight bursts a direction (UG1085, AFIFM), so they are long."""

TINY = AcceleratorConfig(
    name="tiny",
    ports=1,
    lanes=4,
    block_rows=128,
    attention_lanes=2,
    key_tile=32,
    max_hidden=256,
    max_features=1024,
    max_kv_dim=256,
    max_heads=16,
    max_head_dim=128,
    max_context=256,
    score_words=2048,
    fifo_beats=512,
    max_descriptors=128,
    screen_entries=512,
    burst_beats=16,
    narrow_cache=True,
    ternary_head=True,
    clock_hz=100_000_000,
)
"""A small machine for tests and the demo: one 128-bit port, four lanes."""

KR260 = replace(KV260, name="kr260")
"""AMD Kria KR260: the module of the KV260 on another carrier."""

ZCU104 = replace(KV260, name="zcu104")
"""AMD ZCU104: the memory of the KV260 in a chip of twice the size."""

RFSOC4X2 = replace(KV260, name="rfsoc4x2")
"""Real Digital RFSoC 4x2: the memory of the KV260 in a chip of four times the size."""

ULTRA96V2 = AcceleratorConfig(
    name="ultra96v2",
    ports=2,
    lanes=4,
    block_rows=256,
    attention_lanes=4,
    key_tile=64,
    max_context=1984,
    fifo_beats=512,
    screen_entries=2048,
    clock_hz=214_285_714,
)
"""Avnet Ultra96-V2: its 32-bit LPDDR4 feeds two 128-bit ports; no URAM."""

PYNQ_Z2 = AcceleratorConfig(
    name="pynq_z2",
    ports=2,
    port_bytes=8,
    lanes=4,
    block_rows=256,
    attention_lanes=2,
    key_tile=32,
    max_hidden=1536,
    max_context=992,
    fifo_beats=512,
    screen_entries=2048,
    burst_beats=16,
    clock_hz=100_000_000,
)
"""TUL PYNQ-Z2: its 16-bit DDR3 feeds two 64-bit ports, AXI3 with bursts of 16 beats at most; no URAM."""

PRESETS: dict[str, AcceleratorConfig] = {c.name: c for c in (KV260, KR260, ZCU104, RFSOC4X2, ULTRA96V2, PYNQ_Z2, TINY)}
