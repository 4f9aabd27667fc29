"""Objects in memory: what the host writes, the hardware streams and tests feed. See docs/formats.md.

A packed object is `uint8[beats, beat_bytes]`, in the order in which it is streamed. `stripe` splits the columns of
beats over the ports.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tellme.golden.arith import ceil_div
from tellme.golden.config import AcceleratorConfig
from tellme.golden.kv import EIGHT, CacheFormat, KvGeometry
from tellme.golden.spec import MATRICES, Step

Beats = NDArray[np.uint8]
F32 = NDArray[np.float32]
I8 = NDArray[np.int8]
Ints = NDArray[np.integer]
Rows = NDArray[Any]
"""An element, or an array of them, for each row of a matrix."""
Span = tuple[int, int, int]
"""(beat, first byte, bytes): a place inside an object."""

ROW_MULTIPLE = 8
"""Rows that the epilogue takes together; matrices have a multiple of them."""


class LayoutError(ValueError):
    """A shape that the memory formats cannot hold."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise LayoutError(message)


# ---- ports -----------------------------------------------------------------------------------------------------------


def stripe(beats: Beats, config: AcceleratorConfig) -> Beats:
    """Beats [n, beat_bytes] as the ports' regions [ports, n, port_bytes]."""
    return np.ascontiguousarray(beats.reshape(-1, config.ports, config.port_bytes).transpose(1, 0, 2))


def unstripe(regions: Beats | Sequence[Beats]) -> Beats:
    """Inverse of `stripe`; also from an array [n, port_bytes] of each port."""
    return np.concatenate(list(regions), axis=1)


# ---- order of rows ---------------------------------------------------------------------------------------------------


def rope_order(head_dim: int) -> NDArray[np.int64]:
    """Rows of a Q or K head as stored: 0, D/2, 1, D/2+1, ..., so that rotated pairs are neighbours."""
    return np.arange(head_dim).reshape(2, -1).T.reshape(-1)


def interleave_heads(rows: Rows, head_dim: int) -> Rows:
    """Q or K rows [heads * head_dim, ...] with every head in `rope_order`."""
    _require(rows.shape[0] % head_dim == 0, f"{rows.shape[0]} rows are not whole heads of {head_dim}")
    return rows.reshape(-1, head_dim, *rows.shape[1:])[:, rope_order(head_dim)].reshape(rows.shape)


def deinterleave_heads(rows: Rows, head_dim: int) -> Rows:
    """Inverse of `interleave_heads`."""
    inverse = np.argsort(rope_order(head_dim))
    return rows.reshape(-1, head_dim, *rows.shape[1:])[:, inverse].reshape(rows.shape)


def join_rows(step: Step, matrices: Sequence[Rows], head_dim: int) -> Rows:
    """Rows of a step's matrices, or of something else that has one for each row, in the order in which they are stored.

    QKV: Q heads and K heads, both in rope order, then V heads. Gate: g0, u0, g1, u1, ...
    """
    rows = [
        r if MATRICES[name].heads is None else interleave_heads(r, head_dim)
        for name, r in zip(step.matrices, matrices, strict=True)
    ]
    if step.alternating:
        return np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:])
    return rows[0] if len(rows) == 1 else np.concatenate(rows)


def split_rows(step: Step, rows: Rows, sizes: Sequence[int], head_dim: int | None) -> dict[str, Rows]:
    """Inverse of `join_rows`, by name of the matrix.

    Parameters
    ----------
    sizes : rows of each matrix.
    head_dim : None leaves rows of heads in the order in which they are stored.
    """
    if step.alternating:
        parts = [rows[i :: len(sizes)] for i in range(len(sizes))]
    else:
        parts = np.split(rows, np.cumsum(sizes)[:-1])
    return {
        name: r if head_dim is None or MATRICES[name].heads is None else deinterleave_heads(r, head_dim)
        for name, r in zip(step.matrices, parts, strict=True)
    }


# ---- matrices --------------------------------------------------------------------------------------------------------


def tiles(inputs: int, config: AcceleratorConfig) -> int:
    """K tiles of a matrix of `inputs` columns."""
    return ceil_div(inputs, config.beat_weights)


def row_block(rows: int, config: AcceleratorConfig) -> int:
    """Rows of a row block: as few blocks as the accumulators allow, of about equal size, a multiple of 8."""
    blocks = ceil_div(rows, config.block_rows)
    return ceil_div(rows, blocks * ROW_MULTIPLE) * ROW_MULTIPLE


def pack_linear(weights: ArrayLike, config: AcceleratorConfig, block_rows: int | None = None) -> Beats:
    """A matrix [rows, inputs] in row blocks of `block_rows` (config.block_rows if None): K tile, then row.

    Raises
    ------
    LayoutError : rows are not a multiple of 8, or block_rows is outside 8..config.block_rows or no multiple of 8.
    WeightError : a weight that the configuration's format cannot hold (one that is not -1, 0 or 1).
    """
    w = config.packing.check(weights)
    n, k = w.shape
    block = config.block_rows if block_rows is None else block_rows
    _require(n % ROW_MULTIPLE == 0 and n > 0, f"a matrix must have a multiple of {ROW_MULTIPLE} rows, not {n}")
    _require(
        block % ROW_MULTIPLE == 0 and 0 < block <= config.block_rows,
        f"block_rows must be a multiple of {ROW_MULTIPLE} up to {config.block_rows}, not {block}",
    )
    width = config.beat_weights
    padded = np.zeros((n, tiles(k, config) * width), w.dtype)
    padded[:, :k] = w
    rows = config.packing.pack(padded).reshape(n, -1, config.beat_bytes)
    parts = [rows[i : i + block].swapaxes(0, 1).reshape(-1, config.beat_bytes) for i in range(0, n, block)]
    return np.concatenate(parts)


def _row_blocks(
    beats: Beats, rows: int, inputs: int, config: AcceleratorConfig, block_rows: int | None
) -> Iterator[tuple[int, Beats]]:
    """(first row, packed bytes uint8[rows, tiles * beat_bytes]) of each row block of a matrix."""
    block = config.block_rows if block_rows is None else block_rows
    t = tiles(inputs, config)
    _require(len(beats) == rows * t, f"{rows} rows of {t} tiles are {rows * t} beats, not {len(beats)}")
    for i in range(0, rows, block):
        n = min(block, rows - i)
        yield i, beats[i * t : (i + n) * t].reshape(t, n, -1).swapaxes(0, 1).reshape(n, -1)


def unpack_linear(
    beats: Beats, rows: int, inputs: int, config: AcceleratorConfig, block_rows: int | None = None
) -> Ints:
    """Inverse of `pack_linear`. Raises WeightError on a byte that no weights pack to."""
    out = np.empty((rows, inputs), config.packing.dtype)
    for i, part in _row_blocks(beats, rows, inputs, config, block_rows):
        out[i : i + len(part)] = config.packing.unpack(part, inputs)
    return out


def packed_rows(
    beats: Beats, rows: int, inputs: int, config: AcceleratorConfig, block_rows: int | None = None
) -> Beats:
    """The bytes of `pack_linear` by rows, uint8[rows, bytes]: those that hold only weights and no filling."""
    out = np.empty((rows, config.packing.whole_bytes(inputs)), np.uint8)
    for i, part in _row_blocks(beats, rows, inputs, config, block_rows):
        out[i : i + len(part)] = part[:, : out.shape[1]]
    return out


# ---- floats ----------------------------------------------------------------------------------------------------------


def float_beats(count: int, config: AcceleratorConfig) -> int:
    """Beats of `count` float32."""
    return ceil_div(count, config.word)


def pack_floats(values: ArrayLike, config: AcceleratorConfig) -> Beats:
    """float32 [..., n] in beats, each leading element starting at a beat, padded with 0: gains, inputs, logits."""
    v = np.asarray(values, np.float32)
    n = v.shape[-1]
    padded = np.zeros((*v.shape[:-1], float_beats(n, config) * config.word), "<f4")
    padded[..., :n] = v
    return padded.view(np.uint8).reshape(-1, config.beat_bytes)


def unpack_floats(beats: Beats, count: int, config: AcceleratorConfig) -> F32:
    """Inverse of `pack_floats`: [..., count], one leading element for every float_beats(count) beats."""
    v = np.ascontiguousarray(beats).view("<f4").reshape(-1, float_beats(count, config) * config.word)
    return v[:, :count].astype(np.float32)


def pack_gain(gain: ArrayLike, config: AcceleratorConfig) -> Beats:
    """A norm's weight [n]."""
    return pack_floats(np.asarray(gain, np.float32).reshape(1, -1), config)


def rope_beats(head_dim: int, config: AcceleratorConfig) -> int:
    """Beats of the rotary table of a position."""
    return float_beats(head_dim, config)


def pack_rope(cos: ArrayLike, sin: ArrayLike, config: AcceleratorConfig) -> Beats:
    """The rotary table: cos and sin [positions, head_dim / 2] as pairs (cos, sin), `rope_beats` a position."""
    pairs = np.stack([np.asarray(cos, np.float32), np.asarray(sin, np.float32)], axis=-1)
    return pack_floats(pairs.reshape(len(pairs), -1), config)


def unpack_rope(beats: Beats, head_dim: int, config: AcceleratorConfig) -> tuple[F32, F32]:
    """Inverse of `pack_rope`: cos and sin [positions, head_dim / 2]."""
    pairs = unpack_floats(beats, head_dim, config).reshape(-1, head_dim // 2, 2)
    return pairs[..., 0], pairs[..., 1]


# ---- cells: K, V and the head ----------------------------------------------------------------------------------------


def cells(dim: int, config: AcceleratorConfig) -> int:
    """Cells of `dim` dimensions. Raises LayoutError unless they are whole."""
    _require(dim % config.cell == 0 and dim > 0, f"dimensions must be a multiple of {config.cell}, not {dim}")
    return dim // config.cell


def pack_cells(rows: ArrayLike, config: AcceleratorConfig, narrow: bool = False) -> Beats:
    """int8 rows [key_block, dim] as data of a block: for each cell, for each tile beat, keys_per_beat rows.

    narrow : the elements are from -8 to 7 and take 4 bits each in the same order, the first of two in the low nibble.
    """
    r = np.ascontiguousarray(rows, np.int8)
    c = cells(r.shape[1], config)
    _require(r.shape[0] == config.key_block, f"a block has {config.key_block} rows, not {r.shape[0]}")
    split = r.view(np.uint8).reshape(config.key_tile, config.keys_per_beat, c, config.cell)
    data = np.ascontiguousarray(split.transpose(2, 0, 1, 3)).reshape(-1, config.beat_bytes)
    if narrow:
        _require(bool(((-8 <= r) & (r < 8)).all()), "elements of 4 bits are from -8 to 7")
        pairs = data.reshape(-1, 2) & 15
        data = (pairs[:, 0] | pairs[:, 1] << 4).reshape(-1, config.beat_bytes)
    return data


def unpack_cells(beats: Beats, config: AcceleratorConfig, narrow: bool = False) -> I8:
    """Inverse of `pack_cells`."""
    if narrow:
        nibbles = np.stack([beats & 15, beats >> 4], axis=-1).reshape(-1, config.beat_bytes)
        beats = (nibbles ^ 8) - 8  # the sign, in 8 bits
    split = beats.reshape(-1, config.key_tile, config.keys_per_beat, config.cell)
    rows = np.ascontiguousarray(split.transpose(1, 2, 0, 3)).reshape(config.key_block, -1)
    return rows.view(np.int8)


def head_block_beats(features: int, config: AcceleratorConfig) -> int:
    """Beats of a block of the output head."""
    return int(KvGeometry(config).head_block(cells(features, config)))


def pack_head(rows: ArrayLike, scales: ArrayLike, config: AcceleratorConfig) -> Beats:
    """The output head: int8 rows [vocabulary, features] and their scales, padded with zeros to whole blocks."""
    r, s = np.asarray(rows, np.int8), np.asarray(scales, np.float32)
    blocks = ceil_div(len(r), config.key_block)
    padded_rows = np.zeros((blocks * config.key_block, r.shape[1]), np.int8)
    padded_scales = np.zeros(blocks * config.key_block, np.float32)
    padded_rows[: len(r)], padded_scales[: len(r)] = r, s
    parts = []
    for b in range(blocks):
        part = slice(b * config.key_block, (b + 1) * config.key_block)
        parts += [pack_floats(padded_scales[None, part], config), pack_cells(padded_rows[part], config)]
    return np.concatenate(parts)


def unpack_head(beats: Beats, vocabulary: int, features: int, config: AcceleratorConfig) -> tuple[I8, F32]:
    """Inverse of `pack_head`."""
    blocks = beats.reshape(-1, head_block_beats(features, config), config.beat_bytes)
    scales = unpack_floats(blocks[:, : config.scale_beats].reshape(-1, config.beat_bytes), config.key_block, config)
    rows = np.concatenate([unpack_cells(b[config.scale_beats :], config) for b in blocks])
    return rows[:vocabulary], scales.reshape(-1)[:vocabulary]


# ---- the screened head -----------------------------------------------------------------------------------------------


def screen_rows(rows: int, planes: int) -> int:
    """Rows of the ternary matrix of a screened head, filled up with zeros."""
    return ceil_div(rows * planes, ROW_MULTIPLE) * ROW_MULTIPLE


def screen_scale_beats(config: AcceleratorConfig) -> int:
    """Beats of the uint16 scales before each row block of a screened head."""
    return config.block_rows * 2 // config.beat_bytes


def screen_beats(rows: int, planes: int, inputs: int, config: AcceleratorConfig) -> int:
    """Beats of the ternary matrix of a screened head, with its scales."""
    n = screen_rows(rows, planes)
    return ceil_div(n, config.block_rows) * screen_scale_beats(config) + n * tiles(inputs, config)


def pack_screen(planes: ArrayLike, scales: ArrayLike, config: AcceleratorConfig) -> Beats:
    """A screened head's ternary rows int8 [rows, planes, inputs], or a ternary head's in the type of the format, and scales uint16 [rows, planes].

    The planes of a row are neighbours. Before each row block of `config.block_rows` rows (the last may have fewer) lie its scales.
    """
    w, s = np.asarray(planes), np.asarray(scales, np.uint16)
    n = screen_rows(w.shape[0], w.shape[1])
    block, beats = config.block_rows, screen_scale_beats(config)
    rows = np.zeros((n, w.shape[2]), w.dtype)
    rows[: s.size] = w.reshape(s.size, -1)
    values = np.zeros(ceil_div(n, block) * block, "<u2")
    values[: s.size] = s.reshape(-1)
    parts: list[Beats] = []
    for i in range(0, n, block):
        parts.append(values[i : i + block].view(np.uint8).reshape(beats, config.beat_bytes))
        parts.append(pack_linear(rows[i : i + block], config))
    return np.concatenate(parts)


def unpack_screen(
    beats: Beats, rows: int, planes: int, inputs: int, config: AcceleratorConfig, exact: bool = False
) -> tuple[NDArray[np.signedinteger], NDArray[np.uint16]]:
    """Inverse of `pack_screen`; `exact`: of a ternary head, in the type of the format."""
    n, block, t = screen_rows(rows, planes), config.block_rows, tiles(inputs, config)
    weights, scales = (
        np.empty((n, inputs), config.packing.dtype if exact else np.int8),
        np.empty(ceil_div(n, block) * block, np.uint16),
    )
    at = 0
    for i in range(0, n, block):
        count = min(block, n - i)
        data = at + screen_scale_beats(config)
        scales[i : i + block] = np.ascontiguousarray(beats[at:data]).view("<u2").reshape(-1)
        at = data + count * t
        weights[i : i + count] = unpack_linear(beats[data:at], count, inputs, config)
    used = rows * planes
    return weights[:used].reshape(rows, planes, inputs), scales[:used].reshape(rows, planes)


def row_beats(features: int, config: AcceleratorConfig) -> int:
    """Beats of a row of the head that lies alone: its int8, then its scale and number."""
    return ceil_div(features, config.beat_bytes) + 1


def pack_rows(rows: ArrayLike, scales: ArrayLike, first: int, config: AcceleratorConfig) -> Beats:
    """Rows of the head one after the other: int8 [rows, features] filled up to a beat, then a beat of scale (float32) and number (uint32).

    Parameters
    ----------
    first : number of the first row.
    """
    r, s = np.asarray(rows, np.int8), np.asarray(scales, "<f4")
    n, width = len(r), config.beat_bytes
    out = np.zeros((n, row_beats(r.shape[1], config), width), np.uint8)
    out.reshape(n, -1)[:, : r.shape[1]] = r.view(np.uint8)
    out[:, -1, :4] = s[:, None].view(np.uint8)
    out[:, -1, 4:8] = np.arange(first, first + n, dtype="<u4")[:, None].view(np.uint8)
    return out.reshape(-1, width)


def unpack_candidates(beats: Beats, count: int) -> tuple[NDArray[np.int64], F32]:
    """Rows and logits of `count` candidates of a lane, ascending by row, from where a SCREEN descriptor has them written."""
    pairs = np.ascontiguousarray(beats).reshape(-1)[: 8 * count].view("<u4").reshape(count, 2)
    pairs = pairs[np.argsort(pairs[:, 1])]
    return pairs[:, 1].astype(np.int64), np.ascontiguousarray(pairs[:, 0]).view("<f4").astype(np.float32)


# ---- KV cache --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KvLayout:
    """Places in the cache of one layer; all in beats from `kv_address` of its ATTENTION descriptor.

    A block holds `key_block` keys of one slot and KV head: K scales, V scales, K data (the K record), V data (the V
    record). Blocks of a head, heads of a slot and slots follow one another.
    """

    config: AcceleratorConfig
    head_dim: int
    kv_heads: int
    max_context: int
    cache: CacheFormat = EIGHT

    def __post_init__(self) -> None:
        cells(self.head_dim, self.config)
        why = self.cache.problem(self.config)
        _require(why is None, why or "")
        limit = self.config.context_limit(self.cache.v_narrow)
        _require(
            0 < self.max_context <= limit,
            f"max_context must be from 1 to {limit} (the accelerator's), not {self.max_context}",
        )

    @cached_property
    def geometry(self) -> KvGeometry:
        """What a block is made of."""
        return KvGeometry(self.config)

    @property
    def _cells(self) -> int:
        return int(self.geometry.cells(self.head_dim))

    @property
    def block_stride(self) -> int:
        """Beats of a block."""
        return int(self.geometry.block_stride(self._cells, self.cache.k_narrow, self.cache.v_narrow))

    @property
    def blocks(self) -> int:
        """Blocks of a (slot, KV head)."""
        return self.geometry.blocks(self.max_context)

    @property
    def head_stride(self) -> int:
        """Beats from KV head to KV head."""
        return self.blocks * self.block_stride

    @property
    def slot_stride(self) -> int:
        """Beats from slot to slot; also what a layer takes with one slot."""
        return self.kv_heads * self.head_stride

    def block(self, slot: int, kv_head: int, position: int) -> int:
        """First beat of the block that holds a position."""
        b = position // self.config.key_block
        return slot * self.slot_stride + kv_head * self.head_stride + b * self.block_stride

    def _scale(self, start: int, slot: int, kv_head: int, position: int) -> Span:
        beat, byte = divmod(4 * (position % self.config.key_block), self.config.beat_bytes)
        return self.block(slot, kv_head, position) + start + beat, byte, 4

    def k_scale(self, slot: int, kv_head: int, position: int) -> Span:
        """Where the K scale of a key is."""
        return self._scale(self.geometry.k_scales, slot, kv_head, position)

    def v_scale(self, slot: int, kv_head: int, position: int) -> Span:
        """Where the V scale of a key is."""
        return self._scale(self.geometry.v_scales, slot, kv_head, position)

    def _cell(self, start: int, slot: int, kv_head: int, position: int, cell: int, narrow: bool) -> Span:
        beat, key = divmod(position % self.config.key_block, self.config.keys_per_beat << narrow)
        start += self.block(slot, kv_head, position) + cell * self.geometry.cell_beats(narrow)
        size = self.config.cell >> narrow
        return start + beat, key * size, size

    def k_cell(self, slot: int, kv_head: int, position: int, cell: int) -> Span:
        """Where dimensions [cell * C, (cell + 1) * C) of a key are."""
        return self._cell(self.geometry.k_data, slot, kv_head, position, cell, self.cache.k_narrow)

    def v_cell(self, slot: int, kv_head: int, position: int, cell: int) -> Span:
        """Where dimensions [cell * C, (cell + 1) * C) of a value are."""
        start = self.geometry.v_data(self._cells, self.cache.k_narrow)
        return self._cell(start, slot, kv_head, position, cell, self.cache.v_narrow)

    def pack_block(self, k: ArrayLike, k_scales: ArrayLike, v: ArrayLike, v_scales: ArrayLike) -> Beats:
        """A block: int8 [keys, head_dim] and float32 [keys] of K and V, keys <= key_block; zeros behind them."""
        n, block = len(np.asarray(k)), self.config.key_block
        _require(n <= block, f"a block has {block} keys, not {n}")
        data = np.zeros((2, block, self.head_dim), np.int8)
        scales = np.zeros((2, block), np.float32)
        data[0, :n], data[1, :n], scales[0, :n], scales[1, :n] = k, v, k_scales, v_scales
        narrow = self.cache.k_narrow, self.cache.v_narrow
        parts = (pack_cells(d, self.config, n) for d, n in zip(data, narrow, strict=True))
        return np.concatenate([pack_floats(scales, self.config), *parts])

    def unpack_block(self, beats: Beats) -> tuple[I8, F32, I8, F32]:
        """Inverse of `pack_block`: k, k_scales, v, v_scales of all key_block keys."""
        k_narrow, v_narrow = self.cache.k_narrow, self.cache.v_narrow
        k, v = self.geometry.k_data, self.geometry.v_data(self._cells, k_narrow)
        scales = unpack_floats(beats[:k], self.config.key_block, self.config)
        keys, values = unpack_cells(beats[k:v], self.config, k_narrow), unpack_cells(beats[v:], self.config, v_narrow)
        return keys, scales[0], values, scales[1]
