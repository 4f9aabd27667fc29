"""Where K and V lie, against docs/formats.md written out beat by beat, in ints and as the hardware computes it."""

from dataclasses import replace

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from tellme.golden.config import KV260, TINY, AcceleratorConfig
from tellme.golden.kv import CACHE_FORMATS, CacheFormat, KvGeometry
from tellme.golden.layout import KvLayout

HALF = AcceleratorConfig(
    name="half", ports=2, port_bytes=16, lanes=4, key_tile=16, max_hidden=256, max_features=1024, max_context=256
)
CONFIGS = pytest.mark.parametrize(
    "config", [replace(c, narrow_cache=True) for c in (TINY, HALF, KV260)], ids=lambda c: c.name
)
FORMATS = pytest.mark.parametrize("cache", CACHE_FORMATS.values(), ids=lambda c: c.name)


def block_of(config: AcceleratorConfig, cells: int, cache: CacheFormat) -> list[str]:
    """What each beat of a block is, in order."""
    scales = -(-config.key_block * 4 // config.beat_bytes)
    k, v = (
        cells * config.key_block * min(32, config.beat_bytes) * b // 8 // config.beat_bytes for b in cache.element_bits
    )
    return ["k scales"] * scales + ["v scales"] * scales + ["k"] * k + ["v"] * v


@CONFIGS
@FORMATS
@pytest.mark.parametrize("cells", [1, 2, 3, 4])
def test_a_block_is_scales_then_data(config: AcceleratorConfig, cells: int, cache: CacheFormat) -> None:
    g, beats = KvGeometry(config), block_of(config, cells, cache)
    k, v = cache.k_narrow, cache.v_narrow
    assert g.block_stride(cells, k, v) == len(beats)
    for part, at in (("k scales", g.k_scales), ("v scales", g.v_scales), ("k", g.k_data), ("v", g.v_data(cells, k))):
        assert beats.index(part) == at
    assert (g.data_beats(cells, k), g.data_beats(cells, v)) == (beats.count("k"), beats.count("v"))
    assert (cells * g.cell_beats(k), cells * g.cell_beats(v)) == (beats.count("k"), beats.count("v"))


@CONFIGS
@FORMATS
def test_reads_of_a_block_are_what_its_first_keys_take(config: AcceleratorConfig, cache: CacheFormat) -> None:
    g, kv = KvGeometry(config), KvLayout(config, 96, 1, config.key_block, cache)
    for keys in (1, 2, 3, config.keys_per_beat, config.word + 1, config.key_block - 1, config.key_block):
        places = [kv.k_scale(0, 0, p)[0] for p in range(keys)]
        assert g.scale_reads(keys) == len(set(places)) == max(places) - min(places) + 1
        for cell, narrow in ((kv.k_cell, cache.k_narrow), (kv.v_cell, cache.v_narrow)):
            places = [cell(0, 0, p, 1)[0] for p in range(keys)]
            assert g.cell_reads(keys, narrow) == len(set(places)) == max(places) - min(places) + 1
    for positions in (1, config.key_block, config.key_block + 1):
        assert g.blocks(positions) == len({(p // config.key_block) for p in range(positions)})


@CONFIGS
def test_every_cell_and_lane_has_its_own_place(config: AcceleratorConfig) -> None:
    g = KvGeometry(config)
    dim = 32
    kv_heads, cells = config.max_kv_dim // dim, dim // config.cell
    seen = np.zeros((g.own_depth, config.keys_per_beat), int)
    for v in range(2):
        for head in range(kv_heads):
            for cell in range(cells):
                row = v * g.own_values(kv_heads, cells) + g.own_head(head, cells) + cell
                for lane in range(config.lanes):
                    seen[g.own_address(row, lane // config.keys_per_beat), lane % config.keys_per_beat] += 1
    assert (seen[:, : min(config.lanes, config.keys_per_beat)] == 1).all()


@CONFIGS
def test_the_hardware_may_compute_it(config: AcceleratorConfig) -> None:
    g = KvGeometry(config)
    cells, row, lane, keys, k, v = Signal(16), Signal(16), Signal(8), Signal(16), Signal(), Signal()
    pairs = [
        (g.block_stride(cells), g.block_stride(3)),
        (g.v_data(cells), g.v_data(3)),
        (g.own_address(row, lane), g.own_address(5, 1)),
        (g.scale_reads(keys), g.scale_reads(config.key_block - 1)),
        (g.cell_reads(keys), g.cell_reads(config.key_block - 1)),
        (g.block_stride(cells, k, v), g.block_stride(3, False, True)),
        (g.block_stride(cells, v, v), g.block_stride(3, True, True)),
        (g.v_data(cells, v), g.v_data(3, True)),
        (g.cell_beats(v), g.cell_beats(True)),
        (g.cell_reads(keys, v), g.cell_reads(config.key_block - 1, True)),
    ]

    async def bench(ctx: object) -> None:
        for signal, value in ((cells, 3), (row, 5), (lane, 1), (keys, config.key_block - 1), (v, 1)):
            ctx.set(signal, value)  # type: ignore[attr-defined]
        for got, want in pairs:
            assert ctx.get(got) == want  # type: ignore[attr-defined]

    sim = Simulator(Module())
    sim.add_testbench(bench)
    sim.run()
