"""Where keys and values lie: within a block of the cache, and in the RAM of the pass's own K and V; and the head's rows.

Described once, for layout, schedule, driver and hardware. Numbers of cells, rows and lanes may be ints or values of the
hardware, from which the functions make expressions: they add, and multiply by constants.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tellme.golden.arith import ceil_div, exact_log2
from tellme.golden.config import AcceleratorConfig


@dataclass(frozen=True)
class CacheFormat:
    """Elements of K and V in the cache: 8 bits, or with `k_narrow`, `v_narrow` 4 bits. Keys are narrow only where values are.

    hadamard : keys, and the queries that meet them, are turned (`golden.hadamard`).
    """

    name: str
    k_narrow: bool = False
    v_narrow: bool = False
    hadamard: bool = False

    @property
    def fields(self) -> dict[str, bool]:
        """As the descriptors hold it."""
        return {"k_narrow": self.k_narrow, "v_narrow": self.v_narrow}

    @property
    def options(self) -> str:
        """As commands are given it, behind `--kv`; and the cache's name in a file of prompts, so it must not change."""
        return f"{self.name}{' --hadamard' if self.hadamard else ''}"

    @property
    def element_bits(self) -> tuple[int, int]:
        """Of K and of V."""
        return 4 if self.k_narrow else 8, 4 if self.v_narrow else 8

    def problem(self, config: AcceleratorConfig) -> str | None:
        """Why an accelerator cannot keep its cache so; None if it can."""
        if self.v_narrow and not config.narrow_cache:
            return (
                f"accelerator {config.name!r} is built without a cache below 8 bits (narrow_cache), so K and V "
                f"cannot be kept as {self.name!r}"
            )
        if self.hadamard and not config.hadamard:
            return f"accelerator {config.name!r} is built without the Hadamard transform of queries and keys"
        return None


EIGHT = CacheFormat("8")
CACHE_FORMATS: dict[str, CacheFormat] = {
    c.name: c for c in (EIGHT, CacheFormat("8-4", v_narrow=True), CacheFormat("4", k_narrow=True, v_narrow=True))
}
"""By the names that commands know: bits of K and V, or of K, then of V."""

LARGEST, NARROW_LARGEST = 127, 7
"""Largest magnitude of an element of 8 and of 4 bits."""


def largest(narrow: bool) -> int:
    """Magnitude that the largest feature of a head becomes."""
    return NARROW_LARGEST if narrow else LARGEST


@dataclass(frozen=True)
class KvGeometry:
    """A block holds `key_block` keys of one slot and KV head: K scales, V scales, K data, V data. Data are cells of
    `config.cell` dimensions: for each cell `key_tile` beats of `keys_per_beat` keys; if narrow, half the beats of twice the
    keys. What is read as one is the K record (all before the V data) and the V record.

    All in beats.
    """

    config: AcceleratorConfig

    def cells(self, dimensions: Any) -> Any:
        """Cells of a KV head, or of the inputs of the output head."""
        return dimensions >> exact_log2(self.config.cell)

    # ---- a block of the cache, from its first beat ------------------------------------------------------------------

    k_scales = 0
    """First beat of the K scales."""

    @property
    def v_scales(self) -> int:
        """First beat of the V scales."""
        return self.k_scales + self.config.scale_beats

    @property
    def k_data(self) -> int:
        """First beat of the K data."""
        return self.v_scales + self.config.scale_beats

    def cell_beats(self, narrow: Any = 0) -> Any:
        """Of a cell of all keys."""
        return self.config.key_tile >> narrow

    def data_beats(self, cells: Any, narrow: Any = 0) -> Any:
        """Of the K (or V) data."""
        return (cells << exact_log2(self.config.key_tile)) >> narrow

    def v_data(self, cells: Any, k_narrow: Any = 0) -> Any:
        """First beat of the V data, and beats of the K record."""
        return self.data_beats(cells, k_narrow) + self.k_data

    def block_stride(self, cells: Any, k_narrow: Any = 0, v_narrow: Any = 0) -> Any:
        """From block to block."""
        return self.data_beats(cells, k_narrow) + self.data_beats(cells, v_narrow) + self.k_data

    def blocks(self, positions: int) -> int:
        """Blocks of a (slot, KV head) of so many positions."""
        return ceil_div(positions, self.config.key_block)

    # ---- a block of the output head: the scales of key_block rows, then their data ------------------------------------

    def head_block(self, cells: Any) -> Any:
        """Beats of it."""
        return self.data_beats(cells) + self.config.scale_beats

    # ---- what a pass reads of a block that holds `keys` keys ---------------------------------------------------------

    def scale_reads(self, keys: Any) -> Any:
        """Beats that hold the K (or V) scales of the block's first keys."""
        return (keys * 4 + (self.config.beat_bytes - 1)) >> exact_log2(self.config.beat_bytes)

    def cell_reads(self, keys: Any, narrow: Any = 0) -> Any:
        """Beats that hold a cell of the block's first keys."""
        bits = exact_log2(self.config.keys_per_beat)
        return (keys + ((self.config.keys_per_beat << narrow) - 1)) >> (bits + narrow)

    # ---- the pass's own K and V: rows, each a cell of all lanes: K heads, then V heads, each with its cells ---------

    @cached_property
    def own_beats(self) -> int:
        """Beats that hold a cell of all lanes."""
        return max(1, self.config.lanes // self.config.keys_per_beat)

    @cached_property
    def own_depth(self) -> int:
        """Beats of the RAM: keys, then values, of as many cells as the largest `kv_heads` heads have."""
        return 2 * (self.config.max_kv_dim // self.config.cell) * self.own_beats

    def own_head(self, kv_head: Any, cells: Any) -> Any:
        """First row of a KV head, from the first of K, or of V."""
        return kv_head * cells

    def own_values(self, kv_heads: Any, cells: Any) -> Any:
        """First row of V, behind those of K."""
        return kv_heads * cells

    def own_address(self, row: Any, lane_beat: Any) -> Any:
        """Beat of a row that holds a lane; `lane_beat` is lane // keys_per_beat, below `own_beats`, a power of two."""
        if self.own_beats == 1:
            return row
        return (row << exact_log2(self.own_beats)) | lane_beat
