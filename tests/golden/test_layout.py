"""Objects in memory, against the formulas of docs/formats.md written out element by element."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tellme.golden import layout
from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.formats import TERNARY
from tellme.golden.kv import CACHE_FORMATS, CacheFormat
from tellme.golden.layout import KvLayout, LayoutError
from tellme.golden.spec import STEPS

HALF = AcceleratorConfig(
    name="half", ports=2, port_bytes=16, lanes=4, key_tile=16, max_hidden=256, max_features=1024, max_context=256
)
"""32-byte beats."""

CONFIGS = pytest.mark.parametrize("config", [TINY, HALF, KV260], ids=lambda c: c.name)


def ternary_rows(rows: int, inputs: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(-1, 2, (rows, inputs)).astype(np.int8)


@CONFIGS
@pytest.mark.parametrize(
    ("rows", "inputs", "block"), [(8, 32, 64), (64, 320, 64), (72, 321, 64), (136, 81, 128), (24, 960, 8)]
)
def test_a_matrix_is_streamed_by_block_tile_and_row(
    config: AcceleratorConfig, rows: int, inputs: int, block: int
) -> None:
    w = ternary_rows(rows, inputs)
    beats = layout.pack_linear(w, config, block)
    width, n = config.beat_weights, 0
    for start in range(0, rows, block):
        for t in range(-(-inputs // width)):
            for row in range(start, min(start + block, rows)):
                part = w[row, t * width : (t + 1) * width].tolist()
                part += [0] * (width - len(part))
                want = [sum((part[5 * b + j] + 1) * 3**j for j in range(5)) for b in range(config.beat_bytes)]
                assert beats[n].tolist() == want
                n += 1
    assert n == len(beats)
    assert (layout.unpack_linear(beats, rows, inputs, config, block) == w).all()
    whole = inputs // 5 * 5
    assert (TERNARY.unpack(layout.packed_rows(beats, rows, inputs, config, block), whole) == w[:, :whole]).all()


def test_padding_of_a_matrix_is_zero_weights() -> None:
    beats = layout.pack_linear(np.ones((8, 1), np.int8), TINY)
    assert (beats[:, 0] == 2 + 3 + 9 + 27 + 81).all() and (beats[:, 1:] == 121).all()


@pytest.mark.parametrize(
    ("rows", "block", "message"),
    [
        (12, 8, "multiple of 8 rows, not 12"),
        (16, 12, "block_rows must be a multiple of 8 up to 128, not 12"),
        (16, 256, "block_rows must be a multiple of 8 up to 128, not 256"),
        (16, 0, "not 0"),
    ],
)
def test_matrices_that_do_not_fit_are_refused(rows: int, block: int, message: str) -> None:
    with pytest.raises(LayoutError, match=message):
        layout.pack_linear(ternary_rows(rows, 32), TINY, block)


def test_a_matrix_of_another_length_is_refused() -> None:
    with pytest.raises(LayoutError, match="16 rows of 1 tiles are 16 beats, not 8"):
        layout.unpack_linear(layout.pack_linear(ternary_rows(8, 32), TINY), 16, 32, TINY)


@CONFIGS
def test_ports_hold_the_columns_of_beats(config: AcceleratorConfig) -> None:
    beats = np.random.default_rng(4).integers(0, 256, (5, config.beat_bytes)).astype(np.uint8)
    regions = layout.stripe(beats, config)
    assert regions.shape == (config.ports, 5, config.port_bytes)
    for byte in range(config.beat_bytes):
        assert (regions[byte // config.port_bytes, :, byte % config.port_bytes] == beats[:, byte]).all()
    assert (layout.unstripe(regions) == beats).all()


def test_rope_order_makes_pairs_neighbours() -> None:
    assert layout.rope_order(8).tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 32), (4, 2, 64), (5, 1, 96), (8, 2, 128)])
def test_qkv_rows_join_and_split(heads: int, kv_heads: int, dim: int) -> None:
    q, k, v = (ternary_rows(n * dim, 32, n) for n in (heads, kv_heads, kv_heads))
    joined = layout.join_rows(STEPS["qkv"], (q, k, v), dim)
    assert (joined[dim + 1] == q[dim + dim // 2]).all()  # second row of the second query head
    assert (joined[heads * dim + 2] == k[1]).all()
    assert (joined[(heads + kv_heads) * dim :] == v).all()
    parts = layout.split_rows(STEPS["qkv"], joined, [len(q), len(k), len(v)], dim)
    for got, want in zip("qkv", (q, k, v), strict=True):
        assert (parts[got] == want).all()
    stored = layout.split_rows(STEPS["qkv"], joined, [len(q), len(k), len(v)], None)
    assert (stored["k"][1] == k[dim // 2]).all() and (stored["v"] == v).all()


def test_heads_that_are_not_whole_are_refused() -> None:
    with pytest.raises(LayoutError, match="48 rows are not whole heads of 32"):
        layout.interleave_heads(ternary_rows(48, 32), 32)


def test_gate_and_up_rows_alternate() -> None:
    gate, up = ternary_rows(16, 32, 1), ternary_rows(16, 32, 2)
    joined = layout.join_rows(STEPS["gate"], (gate, up), 32)
    assert (joined[6] == gate[3]).all() and (joined[7] == up[3]).all()
    parts = layout.split_rows(STEPS["gate"], joined, [16, 16], 32)
    assert (parts["gate"] == gate).all() and (parts["up"] == up).all()


@CONFIGS
@pytest.mark.parametrize("n", [4, 32, 100])
def test_floats_are_padded_to_beats(config: AcceleratorConfig, n: int) -> None:
    v = np.random.default_rng(5).normal(size=(3, n)).astype(np.float32)
    beats = layout.pack_floats(v, config)
    each = layout.float_beats(n, config)
    assert beats.shape == (3 * each, config.beat_bytes)
    flat = beats.reshape(3, -1)
    assert flat[1, : 4 * n].tobytes() == v[1].tobytes() and not flat[:, 4 * n :].any()
    assert (layout.unpack_floats(beats, n, config) == v).all()
    assert (layout.pack_gain(v[0], config) == beats[:each]).all()


@CONFIGS
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_rotary_table_holds_pairs(config: AcceleratorConfig, dim: int) -> None:
    rng = np.random.default_rng(6)
    cos, sin = rng.normal(size=(2, 7, dim // 2)).astype(np.float32)
    beats = layout.pack_rope(cos, sin, config)
    n = layout.rope_beats(dim, config)
    assert len(beats) == 7 * n
    position = np.frombuffer(beats[3 * n : 4 * n].tobytes(), np.float32)
    assert position[8] == cos[3, 4] and position[9] == sin[3, 4]
    assert all((a == b).all() for a, b in zip(layout.unpack_rope(beats, dim, config), (cos, sin), strict=True))


@CONFIGS
@pytest.mark.parametrize("vocabulary", [1, 31, 128, 300])
def test_head_rows_lie_in_blocks_of_cells(config: AcceleratorConfig, vocabulary: int) -> None:
    rng = np.random.default_rng(7)
    rows = rng.integers(-128, 128, (vocabulary, 96)).astype(np.int8)
    scales = rng.uniform(0, 1, vocabulary).astype(np.float32)
    beats = layout.pack_head(rows, scales, config)
    block, each = config.key_block, layout.head_block_beats(96, config)
    assert len(beats) == -(-vocabulary // block) * each
    for row in {0, vocabulary // 2, vocabulary - 1}:
        b, i = row // block, row % block
        for d in (0, config.cell, 95):
            beat = b * each + config.scale_beats + d // config.cell * config.key_tile + i // config.keys_per_beat
            assert beats[beat].view(np.int8)[i % config.keys_per_beat * config.cell + d % config.cell] == rows[row, d]
        scale = beats[b * each : b * each + config.scale_beats].reshape(-1)[4 * i : 4 * i + 4]
        assert scale.tobytes() == scales[row].tobytes()
    got = layout.unpack_head(beats, vocabulary, 96, config)
    assert (got[0] == rows).all() and (got[1] == scales).all()


def elements(data: NDArray[np.uint8], narrow: bool) -> list[int]:
    """Bytes as the elements they hold, one or two each."""
    if not narrow:
        return data.view(np.int8).tolist()
    nibbles = [nibble for byte in data.tolist() for nibble in (byte % 16, byte // 16)]
    return [n - 16 * (n > 7) for n in nibbles]


@CONFIGS
@pytest.mark.parametrize("cache", CACHE_FORMATS.values(), ids=lambda c: c.name)
@pytest.mark.parametrize("dim", [32, 64, 96, 128])
def test_kv_places_agree_with_packed_blocks(config: AcceleratorConfig, dim: int, cache: CacheFormat) -> None:
    config = replace(config, narrow_cache=True)
    kv = KvLayout(config, dim, 3, 2 * config.key_block, cache)
    rng = np.random.default_rng(8)
    n = config.key_block
    bounds = [8 if narrow else 128 for narrow in (cache.k_narrow, cache.v_narrow)]
    k, v = (rng.integers(-bound, bound, (n, dim)).astype(np.int8) for bound in bounds)
    ks, vs = rng.uniform(0, 1, (2, n)).astype(np.float32)
    beats = kv.pack_block(k, ks, v, vs)
    bits = sum(cache.element_bits)
    assert len(beats) == kv.block_stride == 2 * config.scale_beats + bits * dim // config.cell * config.key_tile // 8
    base = kv.block(1, 2, n)  # the last block of the last head of the second slot
    assert base == 2 * kv.slot_stride - kv.block_stride
    for key in (0, 1, n - 1):
        for cell in range(dim // config.cell):
            dims = slice(cell * config.cell, (cell + 1) * config.cell)
            for place, want, narrow in ((kv.k_cell, k, cache.k_narrow), (kv.v_cell, v, cache.v_narrow)):
                beat, byte, length = place(1, 2, n + key, cell)
                assert elements(beats[beat - base, byte : byte + length], narrow) == want[key, dims].tolist()
        for scale, values in ((kv.k_scale, ks), (kv.v_scale, vs)):
            beat, byte, length = scale(1, 2, n + key)
            assert beats[beat - base, byte : byte + length].tobytes() == values[key].tobytes()
    for got, expected in zip(kv.unpack_block(beats), (k, ks, v, vs), strict=True):
        assert (got == expected).all()


@pytest.mark.parametrize("cache", CACHE_FORMATS.values(), ids=lambda c: c.name)
def test_every_byte_of_a_slot_has_one_place(cache: CacheFormat) -> None:
    kv = KvLayout(replace(HALF, narrow_cache=True), 64, 2, HALF.key_block + 1, cache)
    seen = np.zeros((kv.slot_stride, HALF.beat_bytes), int)
    for head in range(2):
        for position in range(2 * HALF.key_block):
            places = [kv.k_scale(0, head, position), kv.v_scale(0, head, position)]
            places += [f(0, head, position, c) for f in (kv.k_cell, kv.v_cell) for c in range(2)]
            for beat, byte, length in places:
                seen[beat, byte : byte + length] += 1
    assert (seen == 1).all()


def test_a_part_of_a_block_is_filled_with_zeros() -> None:
    kv = KvLayout(TINY, 32, kv_heads=1, max_context=64)
    k, ks, v, vs = kv.unpack_block(kv.pack_block(np.ones((3, 32)), [1, 2, 3], np.ones((3, 32)), [4, 5, 6]))
    assert k[:3].all() and not k[3:].any() and not v[3:].any()
    assert ks[:4].tolist() == [1, 2, 3, 0] and vs[:4].tolist() == [4, 5, 6, 0]


def test_kv_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LayoutError, match="multiple of 32, not 48"):
        KvLayout(KV260, 48, kv_heads=1, max_context=128)
    with pytest.raises(LayoutError, match="from 1 to 256 .*, not 257"):
        KvLayout(TINY, 32, kv_heads=1, max_context=257)
    with pytest.raises(LayoutError, match="a block has 32 keys, not 33"):
        KvLayout(TINY, 32, kv_heads=1, max_context=64).pack_block(*[np.zeros((33, 32)), np.zeros(33)] * 2)
    with pytest.raises(LayoutError, match="a block has 32 rows, not 31"):
        layout.pack_cells(np.zeros((31, 32)), TINY)
    for value in (-9, 8):
        with pytest.raises(LayoutError, match="elements of 4 bits are from -8 to 7"):
            layout.pack_cells(np.full((32, 32), value), TINY, narrow=True)


def test_a_narrow_cache_needs_an_accelerator_that_has_it() -> None:
    wide, narrow = replace(TINY, narrow_cache=False), replace(TINY, narrow_cache=True)
    for name in ("8-4", "4"):
        with pytest.raises(LayoutError, match=f"'tiny' is built without a cache below 8 bits .* as '{name}'"):
            KvLayout(wide, 32, 1, 64, CACHE_FORMATS[name])
        assert KvLayout(narrow, 32, 1, 512, CACHE_FORMATS[name]).blocks == 16  # twice the positions
    with pytest.raises(LayoutError, match="from 1 to 256 .*, not 257"):
        KvLayout(narrow, 32, 1, 257)
